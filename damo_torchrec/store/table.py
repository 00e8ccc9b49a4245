"""A table of a store: its rows by id."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import numpy as np
import numpy.typing as npt

from damo_torchrec import _core
from damo_torchrec.arrays import as_ids, as_numbers
from damo_torchrec.errors import DamoError
from damo_torchrec.html_table import html_table
from damo_torchrec.life import AskedLife, Idle
from damo_torchrec.stats import LookupStats, TableStats
from damo_torchrec.store.agreement import check_most_rows
from damo_torchrec.store.expired import check_had_table, expired
from damo_torchrec.store.life_log import life_stats
from damo_torchrec.store.open_table import Layout, OpenTable
from damo_torchrec.store.row_metadata import RowMetadata
from damo_torchrec.store.row_state import check_state, read_state
from damo_torchrec.store.session import Session
from damo_torchrec.store.table_definition import TableDefinition
from damo_torchrec.tensors import address
from damo_torchrec.torch_at_use import torch

if TYPE_CHECKING:
    import pyarrow

# Of torch only the name is there at first.
IdsLike: TypeAlias = Union["torch.Tensor", npt.NDArray[np.integer[Any]], Sequence[int]]
NumbersLike: TypeAlias = Union[
    "torch.Tensor", npt.NDArray[np.floating[Any]], Sequence[float], Sequence[Sequence[float]]
]

_Read = TypeVar("_Read")

_log = logging.getLogger(__name__)


class Table:
    """The rows of one table, in memory and on disk, by id. Every int64 is an id.

    Made by `EmbeddingStore.table`. Ids are given as tensors or NumPy arrays of integers of shape ``(n,)``, or sequences
    of ints, in any order, with duplicates; numbers as floating point tensors or arrays, or lists of floats, which are
    rounded to float32. `damo_torchrec.arrays` has the rules.
    """

    def __init__(self, session: Session, opened: OpenTable) -> None:
        self._session = session
        self._opened = opened

    @property
    def session(self) -> Session:
        """For the modules of this package: the store that is open. No part of the interface."""
        return self._session

    @property
    def opened(self) -> OpenTable:
        """For the modules of this package: what the store's catalog has of it. No part of the interface."""
        return self._opened

    @property
    def _layout(self) -> Layout:
        """In the engine, which is asked for before. Raises DamoError if the store has the table no more."""
        if self._opened.gone:
            raise DamoError(
                f"the store {self._session.path} has no table {self.name!r} any more: it was dropped, or "
                "is not in the checkpoint that the store went back to"
            )
        return self._opened.layout

    def _reading(self, read: Callable[[_core.Store, Layout], _Read]) -> _Read:
        """What `read` returns; of the table as it is before or after another call, never of some of both."""
        while True:
            engine, layout = self._session.engine, self._layout
            try:
                found = read(engine, layout)
            except ValueError:  # the engine has no table at this index any more
                if self._layout is layout:
                    raise
            else:
                if self._layout is layout:
                    return found

    @contextmanager
    def _changing(self, layout: Layout) -> Iterator[_core.Store]:
        """As `Session.changing`. Raises DamoError if the table has another layout meanwhile than a call began with."""
        with self._session.changing(self._opened) as engine:
            if self._layout is not layout:
                raise DamoError(
                    f"table {self.name!r} of the store {self._session.path} was converted, or went back to a "
                    "checkpoint, in the middle of this call, which did nothing: call again"
                )
            yield engine

    @property
    def name(self) -> str:
        """The table's name."""
        return self._opened.definition.name

    @property
    def dim(self) -> int:
        """Weights in a row."""
        return self._opened.definition.dim

    @property
    def row_dtype(self) -> torch.dtype:
        """What weights are stored as. They are read and set as float32, and rounded to nearest where they are set."""
        dtype: torch.dtype = getattr(torch, self._opened.definition.row_dtype)
        return dtype

    @property
    def iter(self) -> int:
        """Updates applied to the table so far."""
        return self._session.engine.iter(self._layout.index)

    def __len__(self) -> int:
        """Number of rows."""
        return self._session.engine.rows(self._layout.index)

    def stats(self) -> TableStats:
        """Figures since the store was opened; of what came and went, since that has been counted."""
        counted = self._reading(lambda engine, layout: engine.table_stats(layout.index))
        lives = self._reading(lambda engine, layout: life_stats(self._opened, engine))
        training, evaluation, by_id = (LookupStats(c.hits, c.prefetched, c.misses, c.late) for c in counted.lookups)
        return TableStats(len(self), counted.cached_rows, training, evaluation, by_id, lives)

    def preview(
        self,
        *,
        expire: Sequence[Idle] | None = None,
        min_rows: int | None = None,
        max_rows: int | float | None = None,
        keep_rows: int | None = None,
        credit: int | None = None,
    ) -> int:
        """How many rows would go by other options, at once. Nothing changes.

        Of a table that is spread over ranks, all of them call it, with the same options: of the rows of all ranks.

        Rows are counted by their age as finely as the options need that the table has: by far finer ones more rows may
        go in the end than this says, as none goes before its time.

        Args:
            expire: as of `TableOptions`, like the others: None is for what the table has.
            min_rows: likewise.
            max_rows: likewise.
            keep_rows: likewise.
            credit: likewise.

        Raises:
            ValueError: the options contradict themselves; the table's rows have had no option so far, so that nothing
                counts them by their age; or ranks do not count theirs alike before their next update.
        """
        asked = AskedLife(expire=expire, min_rows=min_rows, max_rows=max_rows, keep_rows=keep_rows, credit=credit)
        if self._opened.life is None:
            raise ValueError(
                f"table {self.name!r}: its rows are not counted by their age before TableOptions say how long they "
                "live. Open it with what removes nothing at first, such as max_rows beyond the rows that it has"
            )
        options = asked.over(self._opened.life).to_core()
        lives = []  # of all ranks
        if self._session.agreement is not None:
            own = self._reading(lambda engine, layout: engine.life_bytes(layout.index))
            lives = self._session.agreement.exchange(own or b"")
        return self._reading(lambda engine, layout: engine.preview_life(layout.index, options, lives))

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a Table cannot be copied or pickled: use save_model and load_model")

    def __eq__(self, other: object) -> bool:
        """Whether both are of one open table."""
        return isinstance(other, Table) and self._opened is other._opened

    def __hash__(self) -> int:
        return id(self._opened)

    def __repr__(self) -> str:
        return f"Table({self.name!r}, dim={self.dim}, store={str(self._session.path)!r})"

    def _repr_html_(self) -> str:
        if self._session.closed or self._session.in_other_process:
            return html_table([(repr(self),)])
        optimizer = self._session.catalog.entry(self.name, self._session.engine).schema.optimizer["name"]
        rows = [("rows", len(self)), ("dim", self.dim), ("optimizer", optimizer), ("store", self._session.path)]
        return html_table(rows, caption=self.name)

    def get(self, ids: IdsLike) -> torch.Tensor:
        """Weights of rows, float32 ``(n, dim)``; ids without a row as eval mode reads them. Creates no rows.

        No training: `TableStats` counts it apart.
        """
        ids = as_ids(ids)
        unseen = _core.UnseenRows[self._opened.definition.unseen_in_eval.upper()]
        if unseen is _core.UnseenRows.MEAN:
            self.mean()

        def read(engine: _core.Store, layout: Layout) -> torch.Tensor:
            weights = torch.empty(len(ids), layout.dim, dtype=torch.float32, device="cpu")
            engine.get(layout.index, address(ids), len(ids), unseen, address(weights))
            return weights

        return self._reading(read)

    def mean(self) -> torch.Tensor:
        """The mean of the table's rows, float32 ``(dim,)``: what unseen ids read by ``unseen_in_eval="mean"``.

        It comes of sums in float64, in the order of ids: the same rows have the same mean, to the bit. Zeros if there
        are none. All rows are read, at some 2 to 4 million a second, unless none has changed since the last time; a
        checkpoint that is being written is waited for.
        """
        return torch.tensor(self.mean_weights(), dtype=torch.float32, device="cpu")

    def mean_weights(self) -> list[float]:
        """The same, as a list. For the modules of this package."""
        mean = self._reading(lambda engine, layout: engine.known_mean(layout.index))
        if mean is None:
            began = time.monotonic()
            with self._session.waiting_call("read"):
                mean = self._reading(lambda engine, layout: engine.mean(layout.index))
            seconds = time.monotonic() - began
            _log.info("table %r: took the mean of its rows, %d now, in %.1f s", self.name, len(self), seconds)
        return mean

    def set(self, ids: IdsLike, weights: NumbersLike) -> None:
        """Sets rows, creating those that are not there. Of several ranks each takes those that are its own.

        Each is as a new row then: optimizer state and counts begin anew, also of one that was there. `get_state` before
        and `set_state` afterwards keep the state. Rows are set some thousands at a time, in the order of `ids`: those
        before an error, as of a full disk, are set.

        Args:
            ids: ``(n,)``; the last of equal ids wins.
            weights: ``(n, dim)``.

        Raises:
            ValueError: the shapes do not fit, a weight is not finite, or the table would have more rows than its
                `max_rows`: nothing was set.
        """
        ids = as_ids(ids)
        weights, layout = as_numbers(weights, "weights"), self._layout
        if tuple(weights.shape) == (0,):  # an empty list of rows
            weights = weights.reshape(0, layout.dim)
        if tuple(weights.shape) != (len(ids), layout.dim):
            raise ValueError(
                f"table {self.name!r}: weights must have the shape {(len(ids), layout.dim)}, got {tuple(weights.shape)}"
            )
        finite = torch.isfinite(weights).all(dim=1)
        if not bool(finite.all()):
            raise ValueError(f"table {self.name!r}: weights must be finite, those of id {ids[~finite][0]} are not")
        ids, weights = self._own(ids, weights)
        self._check_most_rows(ids)
        with self._changing(layout) as engine:
            engine.set(layout.index, address(ids), len(ids), address(weights), 0)

    def set_new_state(self, ids: torch.Tensor, state: torch.Tensor) -> None:
        """Sets all state of rows, float32 ``(n, state_size)``, also of new ones. For the modules of this package."""
        layout = self._layout
        ids, state = self._own(ids, state)
        self._check_most_rows(ids)
        with self._changing(layout) as engine:
            engine.set(layout.index, address(ids), len(ids), 0, address(state))

    def _own(self, ids: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of ids and their rows, those that this store has: all, unless other ranks have some."""
        if self._session.has_rows_of is None:
            return ids, rows
        here = self._session.has_rows_of(ids)
        return ids[here], rows[here].contiguous()

    def _check_most_rows(self, own: torch.Tensor) -> None:
        """Raises ValueError on all ranks if they would have more rows than the table may; one store does so itself."""
        agreement, life = self._session.agreement, self._opened.life
        if agreement is not None and life is not None and life.max_rows is not None:
            fresh = int((~self.contains(torch.unique(own))).sum())
            check_most_rows(agreement, self.name, life.max_rows, len(self), fresh)

    def get_state(self, ids: IdsLike) -> dict[str, torch.Tensor]:
        """Optimizer state of rows, float32, by its optimizer's names for it. Ids without a row: that of a new one.

        Returns:
            dict: ``(n, dim)`` each, or ``(n,)`` of what a row has one number of: `momentum_buffer` of SGD with momentum
                and LarsSGD; `sum` of Adagrad and, for a row, of RowWiseAdagrad; `exp_avg` and `exp_avg_sq` of Adam,
                AdamW, LAMB and, with one `exp_avg_sq` for a row, of their PartialRowWise kin; `max_exp_avg_sq` besides
                with ``amsgrad``; `z` and `n` of FTRL; `exp_avg` of Lion. Empty for SGD.
        """
        ids = as_ids(ids)
        state, layout = self._reading(lambda engine, layout: (read_state(engine, layout, ids), layout))
        widths = [part.width(layout.dim) for part in layout.state]
        parts = torch.split(state, widths, dim=1) if widths else ()
        return {
            part.name: (values[:, 0] if part.rowwise else values).clone()
            for part, values in zip(layout.state, parts, strict=True)
        }

    def set_state(self, ids: IdsLike, state: Mapping[str, NumbersLike]) -> None:
        """Sets optimizer state of rows. Their weights and counts stay, and so does the state that is not named.

        Of several ranks each takes what is of its own rows.

        Args:
            ids: ``(n,)``, all with a row; the last of equal ids wins.
            state: by name, of the shapes that `get_state` returns.

        Raises:
            ValueError: an id has no row; the optimizer has no such state, or of another shape; a number is not finite,
                or negative where it is made of squares. Nothing was set.
        """
        ids = as_ids(ids)
        layout = self._layout
        given = check_state(self.name, layout, len(ids), state)
        if self._session.has_rows_of is not None:
            here = self._session.has_rows_of(ids)
            ids, given = ids[here], {name: values[here] for name, values in given.items()}
        with self._changing(layout) as engine:
            found = torch.empty(len(ids), dtype=torch.bool, device="cpu")
            engine.contains(layout.index, address(ids), len(ids), address(found))
            if not bool(found.all()):
                raise ValueError(f"table {self.name!r}: id {ids[~found][0]} has no row whose state could be set")
            rows, column = read_state(engine, layout, ids), 0
            for part in layout.state:
                width = part.width(layout.dim)
                if part.name in given:
                    rows[:, column : column + width] = given[part.name].reshape(len(ids), width)
                column += width
            engine.set_state(layout.index, address(ids), len(ids), address(rows))

    def metadata(self, ids: IdsLike) -> RowMetadata:
        """What the table knows of rows besides their numbers: how often, and when, they were updated."""
        ids = as_ids(ids)
        headers = torch.empty(len(ids), 2, dtype=torch.int32, device="cpu")
        exists = torch.empty(len(ids), dtype=torch.bool, device="cpu")
        self._reading(
            lambda engine, layout: engine.describe(
                layout.index, address(ids), len(ids), state=0, headers=address(headers), contains=address(exists)
            )
        )
        last_step, counts = (headers.to(torch.int64) & 0xFFFFFFFF).unbind(dim=1)
        return RowMetadata(exists, counts * exists, last_step.clone(), counts * ~exists)

    def counters(self, ids: IdsLike) -> tuple[torch.Tensor, torch.Tensor]:
        """What decides which rows live: `last_step` and count, int64 ``(n,)`` each.

        The count is of a row's updates, or of the sightings of an id that has none: `metadata` tells which.
        """
        known = self.metadata(ids)
        return known.last_step, known.updates + known.sightings

    def delete(self, ids: IdsLike) -> None:
        """Deletes rows; ids without a row are passed over. An update still to come creates a row anew.

        Rows are deleted some thousands at a time, in the order of `ids`: those after an error, as of a full disk, stay.
        """
        ids = as_ids(ids)
        with self._session.changing(self._opened) as engine:
            engine.delete(self._layout.index, address(ids), len(ids))

    def contains(self, ids: IdsLike) -> torch.Tensor:
        """Whether the ids have rows: bool ``(n,)``."""
        ids = as_ids(ids)
        found = torch.empty(len(ids), dtype=torch.bool, device="cpu")
        self._reading(lambda engine, layout: engine.contains(layout.index, address(ids), len(ids), address(found)))
        return found

    def items(self, batch_size: int = 65536) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All rows in ascending id order, as ``(ids int64 (n,), weights float32 (n, dim))`` with n <= `batch_size`.

        The rows are those of the moment the iteration begins, whatever happens to them meanwhile.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        with self._session.waiting_call("read"):
            engine, layout = self._session.engine, self._layout
            scan = _core.Scan(engine, layout.index)
            batch_size = min(batch_size, max(engine.rows(layout.index), 1))  # no more memory than there are rows
        while True:
            _ = self._session.engine  # names the store if it is closed by now
            ids = torch.empty(batch_size, dtype=torch.int64, device="cpu")
            weights = torch.empty(batch_size, layout.dim, dtype=torch.float32, device="cpu")
            n = scan.next(address(ids), address(weights), batch_size)
            if n == 0:
                return
            yield ids[:n], weights[:n]

    def expired(self, *, since: str | int | os.PathLike[str]) -> Iterator[torch.Tensor]:
        """Ids that had a row in an earlier checkpoint and have none now, whatever removed it: options, or `delete`.

        For what keeps a copy by id, as a cache or an index of vectors: it calls this with the checkpoint that it went
        by last. A row that went and was made anew is not among them. Both are read in the order of ids, at some million
        rows a second, in the least memory budget besides the store's own.

        Args:
            since: a checkpoint: its step, name or path, or ``"latest"``, as `EmbeddingStore.restore` takes it. The
                table is the one that has this name there, if it was converted or made anew since as well.

        Returns:
            Iterator: int64 ``(n,)`` tensors, ascending, n >= 1 and at most some hundred thousand. The rows of now are
                those of the moment the iteration begins, whatever happens to them meanwhile, and the checkpoint is
                not pruned until it ends.

        Raises:
            ValueError: there is no such checkpoint, or it has no table of this name, as where that was renamed.
            CorruptionError: it is damaged; what only reading rows shows is raised by the iteration.
        """
        _ = self._layout
        source = check_had_table(self._session, self.name, since)
        return (torch.from_numpy(ids) for ids in expired(self._session, self._opened, source))

    def to_arrow(
        self, *, state: bool = False, counts: bool = False, batch_size: int | None = None
    ) -> pyarrow.RecordBatchReader:
        """All rows as Arrow's record batches, in ascending id order, as they are when this is called.

        The columns are `id` (int64), `weight` (fixed_size_list<float>[dim]; what is stored as 16 bits is widened,
        without loss) and, if asked for, the optimizer's state under the names that `get_state` has, and `last_step` and
        `updates` (int64), as `metadata` has them; none has nulls. The schema's metadata says what the table is.

        Args:
            state: whether the optimizer's state comes along.
            counts: whether the counts of rows do.
            batch_size: rows in a batch, at most; None for what 16 MiB hold.

        Raises:
            ImportError: pyarrow is missing: ``pip install 'damo-torchrec[arrow]'``.
            ValueError: `batch_size` is not positive.
        """
        from damo_torchrec.store.arrow_rows import to_arrow

        return to_arrow(self._session, self._opened, state=state, counts=counts, batch_size=batch_size)

    def from_arrow(self, data: object, *, state: bool = True, counts: bool = True) -> int:
        """Sets rows, creating those that are not there, from columns as those of `to_arrow`. Returns how many.

        All are read into a table aside first, so that what is wrong with any is found before anything changes, and set
        then, some at a time: a full disk may leave a part of them set. That takes their space twice meanwhile.
        Without state, or counts, rows have those of new ones. All of several
        ranks call this, and each takes the rows that are its own; what is wrong with those of one is refused on all.

        Args:
            data: a RecordBatchReader, Table or RecordBatch of pyarrow, or what has ``__arrow_c_stream__``. `id` may be
                of any integer type, `weight` any list of `dim` floats, which become the nearest float32.
            state: whether columns of optimizer state are taken, if there are any; else they are passed over.
            counts: the same of `last_step` and `updates`. Deltas begin anew where they are taken.

        Raises:
            ValueError: a column is missing, of another type, or none of these; an id is null or comes twice; a number
                is null or not finite, or negative where it is made of squares; the state is another optimizer's; a
                last step is beyond the table's `iter`; the table would have more rows than its `max_rows`, or counts
                come into one whose rows live by rules; the store is read-only. Nothing was set.
            ImportError: pyarrow is missing.
            OutOfSpaceError, DamoError: the disk is full or refuses.
        """
        from damo_torchrec.store.arrow_rows import from_arrow

        return from_arrow(self._session, self._opened, data, state=state, counts=counts)

    def to_torch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All rows at once, as `items` yields them: for tables that fit in memory."""
        batches = list(self.items())
        if not batches:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, self.dim)
        ids, weights = zip(*batches, strict=True)
        return torch.cat(ids), torch.cat(weights)


def open_tables(session: Session, definitions: list[TableDefinition]) -> list[Table]:
    """As `Session.open_tables`. The tables can be neither dropped nor changed while what is returned lives."""
    tables = [Table(session, opened) for opened in session.open_tables(definitions)]
    for table, definition in zip(tables, definitions, strict=True):
        table.opened.note_user(table, definition.life)
    return tables
