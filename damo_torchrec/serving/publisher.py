"""`DeltaPublisher`: what a training changes, every so often, for predictors that watch a directory."""

import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from damo_torchrec.checkpoints.atomic_directory import remove_directory
from damo_torchrec.checkpoints.layout import DELTA_FILE
from damo_torchrec.checkpoints.lineage import StoreState
from damo_torchrec.errors import DamoError
from damo_torchrec.files import os_errors
from damo_torchrec.serving.dense import DENSE_FILE
from damo_torchrec.serving.refresh import DenseGraph
from damo_torchrec.serving.watcher import order_of
from damo_torchrec.store.delta_writer import write_delta
from damo_torchrec.store.embedding_store import EmbeddingStore

_PREFIX = "delta-"
_NAME = re.compile(rf"{_PREFIX}\d{{12}}(\.\d+)?")
_log = logging.getLogger(__name__)


class DeltaPublisher:
    """Exports what changed since it last did, every so many steps or seconds.

    ::

        served = damo.serving.export(model, args, "serving")  # for Predictor("serving").watch("deltas")
        publisher = DeltaPublisher(store, "deltas", since=served, model=model, args=args, every_seconds=10, keep=100)
        for batch in batches:
            ...  # one step of training
            publisher.step()

    A delta goes from the one before to the next: a predictor needs all of them since its checkpoint. Each is complete
    as soon as it is there, as ``delta-N``, N being the store's step. A training that goes back to a checkpoint leaves
    deltas behind that lead nowhere: predictors that applied them refuse those that come, and need a new checkpoint.
    Those that come go on from the newest delta that the store's past still knows, or from `since`.

    Args:
        store: where the rows are.
        directory: where deltas go; made if it does not exist. One process at a time uses it.
        since: a checkpoint of the store, or a delta, from which the first one goes on. None: the newest delta in
            `directory` that the store's past knows, or else its newest checkpoint.
        model: whose dense part goes with the rows; None for rows alone.
        args: what the model's forward is called with, as of `damo_torchrec.serving.export`.
        every_steps: how many calls of `step` there are from one delta to the next.
        every_seconds: the least time between two deltas. With `every_steps` too, whichever comes first.
        keep: how many deltas stay; None for all of them. Nothing else in `directory` is removed.

    Raises:
        ValueError: neither `every_steps` nor `every_seconds` is given, or one of the numbers is not positive; there is
            a model without `args`; `since` is not in the store's past.
        DamoError: the directory cannot be made.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        directory: str | os.PathLike[str],
        *,
        since: str | os.PathLike[str] | None = None,
        model: nn.Module | None = None,
        args: Any = None,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        keep: int | None = None,
    ) -> None:
        if every_steps is None and every_seconds is None:
            raise ValueError("a DeltaPublisher needs every_steps, every_seconds or both")
        for name, value in (("every_steps", every_steps), ("every_seconds", every_seconds), ("keep", keep)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if model is not None and args is None:
            raise ValueError("a DeltaPublisher with a model needs args to trace it with")
        self._store = store
        self._directory = Path(directory).absolute()
        with os_errors(f"cannot make the directory {self._directory}"):
            self._directory.mkdir(parents=True, exist_ok=True)
        self._since = since
        self._state = self._newest_state() if since is None else store.session.catalog.lineage.find(since)
        self._dense = DenseGraph(model, args) if model is not None else None
        self._every_steps = every_steps
        self._every_seconds = every_seconds
        self._keep = keep
        self._steps = 0
        self._last = time.monotonic()

    @property
    def directory(self) -> Path:
        """Where the deltas are."""
        return self._directory

    def deltas(self) -> list[Path]:
        """The deltas that publishers have made here, oldest first."""
        return sorted((path for path in self._directory.iterdir() if _is_published(path)), key=order_of)

    def step(self) -> Path | None:
        """To be called after each step of training. Publishes a delta if one is due; returns what `publish` does."""
        self._steps += 1
        by_steps = self._every_steps is not None and self._steps >= self._every_steps
        by_time = self._every_seconds is not None and time.monotonic() - self._last >= self._every_seconds
        return self.publish() if by_steps or by_time else None

    def publish(self) -> Path | None:
        """Publishes a delta now. Returns it, or None if the store is at the step of the last one.

        Raises:
            ValueError: as of `EmbeddingStore.export_delta`; the store remembers its latest states alone, and the last
                delta led to an earlier one.
            RuntimeError: torch.onnx cannot export the dense part.
            OutOfSpaceError, DamoError: the disk is full or refuses. The next delta will hold what this one would have.
        """
        self._steps = 0
        self._last = time.monotonic()
        with self._store.session.mutex:
            lineage = self._store.session.catalog.lineage
            if self._state not in lineage:
                if lineage.may_have_forgotten(self._state):
                    raise ValueError(
                        f"the store {self._store.path} has forgotten its state of step {self._state.step}, so many "
                        "checkpoints and other deltas came since: predictors need a new checkpoint, and deltas since it"
                    )
                gone, self._state = self._state.step, self._newest_state()
                _log.warning(
                    "the store %s went back from step %d: deltas go on from step %d",
                    self._store.path,
                    gone,
                    self._state.step,
                )
            step = self._store.step
            if step == self._state.step:
                return None
            path = write_delta(self._store.session, self._free_name(step), self._state, self._files())
            self._state = lineage.find(path)
        self._remove_oldest()
        return path

    def _newest_state(self) -> StoreState:
        given = [] if self._since is None else [self._since]
        for source in reversed([*self._store.checkpoints(), *given, *self.deltas()]):
            try:
                return self._store.session.catalog.lineage.find(source)
            except (DamoError, ValueError) as error:
                _log.info("deltas cannot go on from %s: %s", source, error)
        raise ValueError(f"the store {self._store.path} has no checkpoint: say since= what deltas go on from")

    def _is_known(self, path: Path) -> bool:
        """Whether a delta is of the store's past."""
        try:
            self._store.session.catalog.lineage.find(path)
        except (DamoError, ValueError):
            return False
        return True

    def _free_name(self, step: int) -> Path:
        """That of the step; with a number behind it where a training that went back has left one."""
        target = self._directory / f"{_PREFIX}{step:012}"
        suffix = 0
        while os.path.lexists(target):
            suffix += 1
            target = target.with_suffix(f".{suffix}")
        return target

    def _files(self) -> Mapping[str, bytes]:
        return {} if self._dense is None else {DENSE_FILE: self._dense.now()}

    def _remove_oldest(self) -> None:
        if self._keep is None:
            return
        deltas = self.deltas()
        if len(deltas) <= self._keep:
            return
        # What leads nowhere goes first.
        for path in sorted(deltas, key=self._is_known)[: -self._keep]:
            remove_directory(path, "delta")


def _is_published(path: Path) -> bool:
    """Whether it is a delta by its name and by what is in it, and not a link."""
    named = _NAME.fullmatch(path.name) is not None
    return named and not path.is_symlink() and os.path.lexists(path / DELTA_FILE)
