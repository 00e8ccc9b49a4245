"""What was exported last, to be served: the state that new servers begin from."""

from dataclasses import asdict, dataclass
from pathlib import Path

from damo_torchrec.checkpoints.document import dump_document, parse_document, read_document
from damo_torchrec.checkpoints.layout import EXPORTED_FILE
from damo_torchrec.checkpoints.rules import check_id
from damo_torchrec.files import replace_file

_VERSION = 1


@dataclass(frozen=True)
class Exported:
    """What ``exported.json`` says, in a store's directory. Going back to a checkpoint leaves it as it is.

    Args:
        id: of the state, which is the checkpoint's.
        path: of the checkpoint, when it was made.
    """

    id: str
    path: str

    def check(self) -> None:
        """Raises ValueError if there is no such id."""
        check_id("id", self.id)

    def write(self, store: Path) -> None:
        """Makes it that of the store's directory, whole or not at all. Raises OutOfSpaceError or DamoError."""
        document = dump_document("exported", _VERSION, asdict(self), Exported, Exported.check)
        replace_file(store / EXPORTED_FILE, document.encode())

    @staticmethod
    def read(store: Path) -> "Exported | None":
        """That of a store; None if nothing was exported. Raises CorruptionError if it is damaged."""
        path = store / EXPORTED_FILE
        try:
            content = read_document(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return parse_document(content, path, "exported", range(_VERSION, _VERSION + 1), Exported, Exported.check)
