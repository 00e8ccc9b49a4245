"""Rows that go by what is in them, which only reading all of them tells: `EmbeddingStore.expire`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from damo_torchrec import _core
from damo_torchrec.progress import Progress, reporting
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.store.session import Session
from damo_torchrec.tensors import address
from damo_torchrec.torch_at_use import torch

# Of ids, weights, last steps and counts, which rows go.
Where: TypeAlias = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"], object]

_log = logging.getLogger(__name__)
_BATCH_BYTES = 1 << 20
_MOST_STEPS = 2**32


@dataclass(frozen=True)
class Condition:
    """Which rows go. Exactly one of `below_norm` and `where` is there; `EmbeddingStore.expire` says what they mean.

    Raises:
        ValueError, TypeError: they are none, or out of their range.
    """

    below_norm: float | None
    idle_steps: int
    where: Where | None

    def __post_init__(self) -> None:
        if (self.below_norm is None) == (self.where is None):
            raise ValueError(
                "expire takes exactly one of below_norm and where, got "
                + ("none: options like Idle go by themselves" if self.where is None else "both")
            )
        steps: object = self.idle_steps
        if isinstance(steps, bool) or not isinstance(steps, int):
            raise TypeError(f"idle_steps must be an int, got {steps!r}")
        if not 0 <= steps < _MOST_STEPS:
            raise ValueError(f"idle_steps must be in 0..{_MOST_STEPS - 1}, got {steps}")
        if self.where is not None:
            if not callable(self.where):
                raise TypeError(f"where must be a function of ids, weights, last_steps, counts, got {self.where!r}")
            if steps != 1:
                raise ValueError("idle_steps goes with below_norm: where gets the rows' last_steps")
            return
        norm: object = self.below_norm
        if isinstance(norm, bool) or not isinstance(norm, int | float):
            raise TypeError(f"below_norm must be a number, got {norm!r}")
        if not 0 < norm < math.inf:
            raise ValueError(f"below_norm must be positive and finite, got {norm}")

    def chosen(self, table: OpenTable, iteration: int, rows: _Rows) -> torch.Tensor:
        """Which of the rows go: bool ``(n,)``. Raises ValueError or TypeError if `where` returns something else."""
        if self.where is None:
            assert self.below_norm is not None
            idle = rows.last_steps <= iteration - self.idle_steps
            return idle & (_squared_norms(rows.weights) < float(self.below_norm) ** 2)
        found: Any = self.where(rows.ids, rows.weights, rows.last_steps, rows.counts)
        chosen = torch.from_numpy(found) if isinstance(found, np.ndarray) else found
        what = f"where must return a bool tensor or array of the shape {(len(rows.ids),)} for table {table.name!r}"
        if not isinstance(chosen, torch.Tensor):
            raise TypeError(f"{what}, got {type(found).__name__}")
        if chosen.dtype != torch.bool or tuple(chosen.shape) != (len(rows.ids),):
            raise ValueError(f"{what}, got {chosen.dtype} of the shape {tuple(chosen.shape)}")
        return chosen.to("cpu")


@dataclass(frozen=True)
class _Rows:
    """Some rows of a table, as `where` gets them."""

    ids: torch.Tensor
    weights: torch.Tensor
    last_steps: torch.Tensor
    counts: torch.Tensor


def expire(session: Session, names: Iterable[str] | None, condition: Condition) -> dict[str, int]:
    """What `EmbeddingStore.expire` does."""
    if session.read_only:
        raise ValueError(f"the store {session.path} is read-only: no rows can go")
    with session.alone("expire rows of"), reporting(session.options.progress) as progress:
        known = session.catalog.names()
        wanted = known if names is None else list(dict.fromkeys(names))
        if unknown := [name for name in wanted if name not in known]:
            raise KeyError(f"the store {session.path} has no table {unknown[0]!r}; its tables are {known}")
        session.wait_for_checkpoint()
        tables = {name: session.catalog.open_stored(name, session.engine) for name in wanted}
        return {name: _expire(session, table, condition, progress) for name, table in tables.items()}


def _expire(session: Session, table: OpenTable, condition: Condition, progress: Progress) -> int:
    """One table's. REQUIRES: the mutex."""
    engine, layout = session.engine, table.layout
    iteration, total = engine.iter(layout.index), engine.rows(layout.index)
    batch = max(_BATCH_BYTES // (4 * (layout.dim + layout.state_size + 8)), 1)
    scan, done, removed = _core.Scan(engine, layout.index), 0, 0
    while (rows := _next(scan, layout.dim, layout.state_size, batch)) is not None:
        gone = rows.ids[condition.chosen(table, iteration, rows)]
        if len(gone) > 0:
            if removed == 0:
                session.note_change()
                table.edited_after = session.catalog.manifest.sequence
            engine.delete(layout.index, address(gone), len(gone))
            removed += len(gone)
        done += len(rows.ids)
        progress(f"rows of table {table.name!r} that may go", done, total)
    _log.info("of %d rows of table %r of the store %s, %d have gone", total, table.name, session.path, removed)
    return removed


def _next(scan: _core.Scan, dim: int, state_size: int, n: int) -> _Rows | None:
    ids = torch.empty(n, dtype=torch.int64, device="cpu")
    weights = torch.empty(n, dim, dtype=torch.float32, device="cpu")
    state = torch.empty(n, state_size, dtype=torch.float32, device="cpu")
    headers = torch.empty(n, 2, dtype=torch.int32, device="cpu")
    n = scan.next_rows(address(ids), address(weights), address(state), address(headers), n)
    if n == 0:
        return None
    last_steps, counts = (headers[:n].to(torch.int64) & 0xFFFFFFFF).unbind(dim=1)
    return _Rows(ids[:n], weights[:n], last_steps, counts)


def _squared_norms(weights: torch.Tensor) -> torch.Tensor:
    """Added up in the order of the columns, so that they are the same bits on every machine."""
    sums = torch.zeros(len(weights), dtype=torch.float64)
    for column in weights.to(torch.float64).unbind(dim=1):
        sums += column * column
    return sums
