"""Where a checkpoint comes from: the line of states that it is of, and who may remove it.

A store's line begins when its directory is made, and goes on for as long as that is there, whichever checkpoints the
store goes back to, its own or others. So two stores that begin with one checkpoint are two lines from there on.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from damo_torchrec.checkpoints.document import dump_document, parse_document, read_document, shown
from damo_torchrec.checkpoints.layout import ORIGIN_FILE
from damo_torchrec.checkpoints.rules import check_id
from damo_torchrec.files import replace_file

_VERSION = 1

# Who removes a checkpoint once it is outdated: what made it without being told a name. What has a name of the user's
# own is nobody's.
STORE = "EmbeddingStore"
MANAGER = "CheckpointManager"
LIGHTNING = "StoreCheckpoint"
NOBODY = ""


@dataclass(frozen=True)
class Origin:
    """What ``origin.json`` says, in a store's directory and in each of its checkpoints.

    Args:
        line: the id of the line of states.
        keeper: who may remove the checkpoint.
    """

    line: str
    keeper: str = NOBODY

    def check(self) -> None:
        """Raises ValueError if there are no such line and keeper."""
        if self.line:
            check_id("line", self.line)
        if self.keeper not in (STORE, MANAGER, LIGHTNING, NOBODY):
            raise ValueError(f"keeper is {shown(self.keeper)}")

    def dump(self) -> bytes:
        """What `read` reads."""
        return dump_document("origin", _VERSION, asdict(self), Origin, Origin.check).encode()

    def write(self, store: Path) -> None:
        """Makes it that of the store's directory, whole or not at all."""
        replace_file(store / ORIGIN_FILE, self.dump())

    @staticmethod
    def read(directory: Path) -> "Origin | None":
        """That of a checkpoint or a store; None if it has none: earlier releases wrote none.

        Raises:
            CorruptionError: it is damaged.
        """
        path = directory / ORIGIN_FILE
        try:
            content = read_document(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Origin.parse(content, path)

    @staticmethod
    def parse(content: bytes, path: Path) -> "Origin":
        """That in the contents of the file `path`. Raises CorruptionError."""
        return parse_document(content, path, "origin", range(_VERSION, _VERSION + 1), Origin, Origin.check)
