"""What servers begin from: the checkpoint that was exported for them, or any other state of a store."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from damo_torchrec.checkpoints.delta import DeltaManifest
from damo_torchrec.checkpoints.exported import Exported
from damo_torchrec.checkpoints.layout import DELTA_FILE
from damo_torchrec.checkpoints.lineage import Lineage, StoreState
from damo_torchrec.checkpoints.listing import is_checkpoint
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.errors import CorruptionError, DamoError
from damo_torchrec.serving.dense import DENSE_FILE
from damo_torchrec.store.changed_rows import Differences
from damo_torchrec.store.embedding_store import EmbeddingStore

_log = logging.getLogger(__name__)
_READING_BUDGET = "64MiB"


@dataclass(frozen=True)
class Start:
    """What servers begin from.

    Args:
        name: for messages.
        states: ids of the states that led to it, with its own at the end.
        checkpoint: where it is; None if it is a delta, or is no longer where it was made.
    """

    name: str
    states: Sequence[str]
    checkpoint: Path | None = None

    @staticmethod
    def given(store: EmbeddingStore, since: str | int | os.PathLike[str]) -> "Start":
        """That which a caller names: a checkpoint or a delta, by its path or step. Raises ValueError."""
        if not isinstance(since, int):
            path = Path(since).absolute()
            if is_checkpoint(path):
                return Start._of_checkpoint(f"since={since!r}", path)
            if os.path.lexists(path / DELTA_FILE):
                manifest = DeltaManifest.read(path)
                return Start(f"since={since!r}", [*manifest.line, manifest.id])
        return Start(f"since={since!r}", [store.session.catalog.lineage.find(since).id])

    @staticmethod
    def noted(store: EmbeddingStore) -> "Start | None":
        """What was exported last of the store; None if nothing was."""
        noted = Exported.read(store.path)
        if noted is None:
            return None
        path = Path(noted.path)
        name = f"{path}, which was exported last"
        try:
            if is_checkpoint(path) and Manifest.read(path).id == noted.id:
                return Start._of_checkpoint(name, path)
        except CorruptionError as error:
            _log.warning("what was exported last is damaged: %s", error)
        return Start(name, [noted.id])

    @staticmethod
    def newest(store: EmbeddingStore) -> "Start":
        """The newest checkpoint inside the store that its past has. Raises ValueError if there is none."""
        past = store.session.catalog.lineage.ids()
        for path in reversed(store.checkpoints()):
            if (state := Manifest.read(path).id) in past:
                return Start(str(path), [state])
        raise ValueError(f"the store {store.path} has no checkpoint: say since= what deltas go on from")

    @staticmethod
    def _of_checkpoint(name: str, path: Path) -> "Start":
        return Start(name, Lineage.read(path, Manifest.read(path)).ids(), path)

    def __str__(self) -> str:
        return self.name

    def dense(self) -> bytes | None:
        """Its dense part, if it is a checkpoint that has one."""
        if self.checkpoint is None:
            return None
        manifest = Manifest.read(self.checkpoint)
        return manifest.read_file(self.checkpoint, DENSE_FILE) if DENSE_FILE in manifest.files else None

    def differences_since(self, state: StoreState) -> Differences:
        """Rows that are otherwise in it than in a state before it.

        Raises:
            ValueError: it is no longer where it was made, or cannot be read.
        """
        if self.checkpoint is None:
            raise ValueError(f"the store has gone back behind {self}, and it cannot be read: export the model anew")
        try:
            with EmbeddingStore(self.checkpoint, read_only=True, memory_budget=_READING_BUDGET) as store:
                return Differences.since(store.session, state)
        except DamoError as error:
            raise ValueError(f"the store has gone back behind {self}, and it cannot be read: {error}") from error
