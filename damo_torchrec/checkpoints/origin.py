"""Where a checkpoint comes from: the line of states that it is of, and who may remove it.

A store's line begins when its directory is made, and goes on for as long as that is there, whichever checkpoints the
store goes back to, its own or others. So two stores that begin with one checkpoint are two lines from there on.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from damo_torchrec.checkpoints.document import dump_document, parse_document
from damo_torchrec.checkpoints.layout import ORIGIN_FILE
from damo_torchrec.errors import CorruptionError
from damo_torchrec.files import os_errors, read_regular, sync_directory, write_file

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

    def dump(self) -> bytes:
        """What `read` reads."""
        return dump_document("origin", _VERSION, asdict(self), Origin).encode()

    def write(self, store: Path) -> None:
        """Makes it that of the store's directory, whole or not at all."""
        staged = store / f".{ORIGIN_FILE}.tmp"
        with os_errors(f"cannot write {store / ORIGIN_FILE}"):
            staged.unlink(missing_ok=True)  # of an interrupted call, or what somebody put there
            write_file(staged, self.dump())
            with staged.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(staged, store / ORIGIN_FILE)
            sync_directory(store)

    @staticmethod
    def read(directory: Path) -> "Origin | None":
        """That of a checkpoint or a store; None if it has none: earlier releases wrote none.

        Raises:
            CorruptionError: it is damaged.
        """
        path = directory / ORIGIN_FILE
        try:
            content = read_regular(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CorruptionError(f"{path} cannot be read: {error}") from error
        return parse_document(content, path, "origin", range(_VERSION, _VERSION + 1), Origin)
