"""Stored tables that get another optimizer, dim or dtype of rows: `EmbeddingStore.convert_table`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from damo_torchrec import _core
from damo_torchrec.checkpoints.table_entry import InitializerNumbers, TableEntry, TableSchema
from damo_torchrec.init import Uniform, from_description
from damo_torchrec.optim.spec import OptimizerSpec
from damo_torchrec.optim.state_parts import StatePart, state_parts
from damo_torchrec.progress import reporting
from damo_torchrec.store.schemas import differences
from damo_torchrec.store.session import Session
from damo_torchrec.store.table_changes import changing_table, hidden_table, reclaim, undone_unless_done
from damo_torchrec.store.table_definition import TableDefinition
from damo_torchrec.torch_at_use import torch

_log = logging.getLogger(__name__)
_BATCH_BYTES = 1 << 20
_ROW_DTYPES = ("float32", "float16", "bfloat16")

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Wanted:
    """What a table is to become; None is for what it has.

    Args:
        optimizer: a class as collections take them, or the name of an update rule.
        optimizer_kwargs: the class's; with a name, `initial_accumulator_value` and `corrected_max` alone.
        row_dtype: of the weights.
        dim: how many there are in a row.
    """

    optimizer: type[torch.optim.Optimizer] | str | None = None
    optimizer_kwargs: Mapping[str, Any] | None = None
    row_dtype: torch.dtype | str | None = None
    dim: int | None = None

    def schema(self, now: TableSchema) -> TableSchema:
        """What comes of a table that is as `now`. Raises ValueError or TypeError for what there is not."""
        dim = now.dim if self.dim is None else self.dim
        schema = replace(now, dim=dim, optimizer=self._optimizer(now), row_dtype=self._row_dtype(now))
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"dim must be an int, got {dim!r}")
        if not 1 <= dim <= _core.MOST_DIM:
            raise ValueError(f"dim must be in 1..{_core.MOST_DIM}, got {dim}")
        if dim == now.dim:
            return schema
        initializer, num_embeddings = from_description(now.initializer)
        core = initializer.to_core(num_embeddings, dim)
        return replace(schema, numbers=InitializerNumbers(a=core.a, b=core.b, low=core.low, high=core.high))

    def _optimizer(self, now: TableSchema) -> dict[str, float | str]:
        kwargs = dict(self.optimizer_kwargs or {})
        if self.optimizer is None:
            if kwargs:
                raise ValueError(f"optimizer_kwargs need an optimizer, got {kwargs}")
            return now.optimizer
        if not isinstance(self.optimizer, str):
            from damo_torchrec.optim.rules import optimizer_spec  # with which TorchRec comes

            return optimizer_spec(self.optimizer, kwargs).schema()
        if self.optimizer not in _core.UPDATE_RULES:
            rules = ", ".join(_core.UPDATE_RULES)
            raise ValueError(f"optimizer must be a class or one of {rules}, got {self.optimizer!r}")
        if others := kwargs.keys() - {"initial_accumulator_value", "corrected_max"}:
            raise ValueError(
                f"an update rule takes initial_accumulator_value and corrected_max alone, got {sorted(others)}"
            )
        spec = OptimizerSpec(self.optimizer, lr=1.0, **kwargs)
        if spec.initial_accumulator_value and not spec.initial_state():
            raise ValueError(f"initial_accumulator_value has no effect on {self.optimizer}")
        return spec.schema()

    def _row_dtype(self, now: TableSchema) -> str:
        if self.row_dtype is None:
            return now.row_dtype
        name = str(self.row_dtype).removeprefix("torch.")
        if name not in _ROW_DTYPES:
            raise ValueError(f"row_dtype must be float32, float16 or bfloat16, got {self.row_dtype}")
        return name


def new_schema(name: str, dim: int, num_embeddings: int) -> TableSchema:
    """What `Wanted` makes one of for a table that nobody has said more of: float32, drawn from ±1/√num_embeddings."""
    given: object = num_embeddings
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= 2**64:
        raise ValueError(f"num_embeddings must be a positive int, of at most 2^64, got {num_embeddings!r}")
    bound = 1 / math.sqrt(num_embeddings)
    return TableDefinition(name, dim, num_embeddings, OptimizerSpec("SGD", lr=1.0), Uniform(-bound, bound)).schema()


def convert_table(session: Session, name: str, wanted: Wanted) -> None:
    """What `EmbeddingStore.convert_table` does."""
    with changing_table(session, "convert", name) as entry:
        schema = wanted.schema(entry.schema)
        if schema == entry.schema:
            _log.info("table %r of the store %s is as it is to be already", name, session.path)
            return
        table = session.catalog.open_stored(name, session.engine)
        life = session.engine.life_bytes(table.index)
        with hidden_table(session, name, replace(entry, schema=schema), life) as (number, index):
            conversion = Conversion(entry.schema, schema)
            _copy_rows(session, conversion, table.index, index, f"rows of table {name!r}")
            if entry.life is not None:
                _copy_sightings(session, table.index, index)
            rows = session.engine.rows(index)
            with undone_unless_done(session):
                converted = TableEntry(number, schema, entry.iter, rows, entry.life)
                tables = {**session.catalog.manifest.tables, name: converted}
                session.catalog.change_tables(tables, f"table {name!r} was converted")
                table.define_by(schema)
                table.number = number
                table.is_at(index)
                session.engine.drop_table(entry.number)
        session.hyperparameters.forget(name)
        _log.info(
            "converted table %r of the store %s, with %d rows, which had %s; of its state %s began anew",
            name,
            session.path,
            rows,
            differences(entry.schema, schema),
            ", ".join(conversion.anew) or "none",
        )
    reclaim(session, entry.number)


class Conversion:
    """Of rows from one schema to another.

    Attributes:
        old_dim: weights in a row before.
        new_dim: and afterwards.
        old_state: numbers of state in a row before.
        new_state: and afterwards.
        anew: names of the parts of that which begin anew.
    """

    def __init__(self, old: TableSchema, new: TableSchema) -> None:
        self.old_dim, self.new_dim = old.dim, new.dim
        self._old = state_parts(old.optimizer)
        self._new = state_parts(new.optimizer)
        self._initial = TableDefinition.of_schema("", new).optimizer.initial_state()
        self.old_state = sum(part.width(old.dim) for part in self._old)
        self.new_state = sum(part.width(new.dim) for part in self._new)
        sources = {part.means: part for part in self._old}
        self.anew = [part.name for part in self._new if not _gives(sources.get(part.means), part)]

    def state(self, old: Floats) -> Floats:
        """Parts that mean the same are taken over, the mean of columns for what is one number; others begin anew."""
        new = np.full((len(old), self.new_state), self._initial, dtype=np.float32)
        kept, column = min(self.old_dim, self.new_dim), 0
        sources = self._by_meaning(old)
        for part in self._new:
            target = new[:, column : column + part.width(self.new_dim)]
            column += part.width(self.new_dim)
            source, values = sources.get(part.means, (None, new))
            if source is None or not _gives(source, part):
                continue
            if source.rowwise == part.rowwise:
                target[:, :kept] = values[:, :kept]
            else:
                target[:, 0] = values[:, :kept].mean(axis=1, dtype=np.float64)
        return new

    def _by_meaning(self, state: Floats) -> dict[str, tuple[StatePart, Floats]]:
        sources, column = {}, 0
        for part in self._old:
            width = part.width(self.old_dim)
            sources[part.means] = (part, state[:, column : column + width])
            column += width
        return sources


def _gives(source: StatePart | None, target: StatePart) -> bool:
    """Whether a part of state becomes another: not where one number would have to become one for each weight."""
    return source is not None and (target.rowwise or not source.rowwise)


def _copy_rows(session: Session, conversion: Conversion, source: int, target: int, what: str) -> None:
    """Adds the rows of one table of the engine, as they become, to another, some at a time."""
    engine = session.engine
    old_dim, new_dim = conversion.old_dim, conversion.new_dim
    floats = 2 * max(old_dim + conversion.old_state, new_dim + conversion.new_state)
    batch = max(_BATCH_BYTES // (4 * floats), 1)
    ids = np.empty(batch, dtype=np.int64)
    weights = np.empty((batch, old_dim), dtype=np.float32)
    state = np.empty((batch, conversion.old_state), dtype=np.float32)
    headers = np.empty((batch, 2), dtype=np.uint32)
    scan, done, total = _core.Scan(engine, source), 0, engine.rows(source)
    with reporting(session.options.progress) as progress:
        while n := scan.next_rows(ids.ctypes.data, weights.ctypes.data, state.ctypes.data, headers.ctypes.data, batch):
            new_weights = np.empty((n, new_dim), dtype=np.float32)
            if new_dim > old_dim:
                engine.initial_weights(target, ids.ctypes.data, n, new_weights.ctypes.data)
            kept = min(old_dim, new_dim)
            new_weights[:, :kept] = weights[:n, :kept]
            new_state = conversion.state(state[:n])
            engine.add_rows(
                target, ids.ctypes.data, n, new_weights.ctypes.data, new_state.ctypes.data, headers.ctypes.data
            )
            done += n
            progress(what, done, total)


def _copy_sightings(session: Session, source: int, target: int) -> None:
    """Adds what was seen of ids that have no row, which no schema changes."""
    batch = _BATCH_BYTES // 16
    ids, headers = np.empty(batch, dtype=np.int64), np.empty((batch, 2), dtype=np.uint32)
    scan = _core.SightingScan(session.engine, source)
    while n := scan.next(ids.ctypes.data, headers.ctypes.data, batch):
        session.engine.add_sightings(target, ids.ctypes.data, n, headers.ctypes.data)
