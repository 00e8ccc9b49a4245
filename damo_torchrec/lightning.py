"""PyTorch Lightning: rows saved and loaded with a Trainer's own checkpoints. Needs the package ``lightning``."""

import os
from pathlib import Path
from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(f"damo_torchrec.lightning needs pip install lightning: {error}") from error

from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.listing import checkpoints_at, free_name
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.origin import LIGHTNING
from damo_torchrec.checkpoints.retention import Retention
from damo_torchrec.errors import CorruptionError
from damo_torchrec.files import os_errors
from damo_torchrec.modules import store_of, tables_of
from damo_torchrec.modules.state import Description, without_warning
from damo_torchrec.store.checkpoint_writer import CheckpointOptions
from damo_torchrec.store.opening import restore_unless_at

_KEY = "damo_torchrec"


class StoreCheckpoint(Callback):
    """Has each checkpoint of Lightning's go with one of the rows, and brings both back.

    ::

        trainer = lightning.Trainer(
            callbacks=[ModelCheckpoint(every_n_train_steps=1000, save_last=True), StoreCheckpoint("run/rows")]
        )
        trainer.fit(model, data, ckpt_path="last")

    Whatever writes a checkpoint (`ModelCheckpoint`, ``trainer.save_checkpoint``) has the rows written first; the file
    names them. ``ckpt_path=`` loads the file and its rows, or refuses.

    Args:
        directory: where checkpoints of rows are, as ``step_N``; made if it does not exist. Relative paths are kept in
            Lightning's files as they are resolved now.
        keep: how many checkpoints of rows stay, the newest ones; None for all. Lightning's `ModelCheckpoint` may keep
            older files longer if it goes by a metric: those are then refused. What another store made, or another than
            this callback, is neither counted nor removed.
        whole_store: whether tables of the store that are not the model's may be replaced and removed, too, where
            ``ckpt_path=`` is given. Else a checkpoint since which they have changed is refused.

    Raises:
        ValueError: `keep` is not positive.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, keep: int | None = None, whole_store: bool = False
    ) -> None:
        self._retention = Retention(keep)
        self._directory = Path(directory).absolute()
        self._whole_store = whole_store
        self._line: CheckpointLine | None = None  # of the store that was saved last

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Saves the rows. Lightning calls it before it writes `checkpoint`."""
        with os_errors(f"cannot make the directory {self._directory}"):
            self._directory.mkdir(parents=True, exist_ok=True)
        session = store_of(pl_module).session
        path = session.checkpoint(free_name(self._directory, trainer.global_step), CheckpointOptions(keeper=LIGHTNING))
        tensors = checkpoint.get("state_dict", {})
        tensors.update({k: without_warning(v) for k, v in tensors.items() if isinstance(v, Description)})
        checkpoint[_KEY] = {"rows": str(path), "checkpoint_id": Manifest.read(path).id}
        if self._line is None or self._line.line != session.catalog.checkpoints.line:
            self._line = CheckpointLine(self._directory, session.catalog.checkpoints.line)
        self._retention.apply(self._line, LIGHTNING, just_written=path)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Loads the rows that `checkpoint` names.

        Raises:
            ValueError: it names none, or they are no longer there; other tables would be replaced.
            CorruptionError: others are in their place.
        """
        if _KEY not in checkpoint:
            raise ValueError("the checkpoint names no rows: it was saved without StoreCheckpoint among the callbacks")
        named = checkpoint[_KEY]
        path = Path(named["rows"])
        if not path.is_dir():
            path = self._directory / path.name  # it has been moved
        if not path.is_dir():
            there = ", ".join(found.name for found in checkpoints_at(self._directory)) or "none"
            raise ValueError(f"the checkpoint's rows are not in {named['rows']}; {self._directory} has {there}")
        if Manifest.read(path).id != named["checkpoint_id"]:
            raise CorruptionError(f"the rows in {path} are not those that the checkpoint was saved with")
        restore_unless_at(store_of(pl_module).session, path, None if self._whole_store else tables_of(pl_module))
