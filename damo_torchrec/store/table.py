"""A table of a store: its rows by id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from damo_torchrec import _core
from damo_torchrec.errors import DamoError
from damo_torchrec.store.catalog import OpenTable
from damo_torchrec.store.session import Session
from damo_torchrec.store.table_definition import TableDefinition
from damo_torchrec.tensors import address, plain


class Table:
    """The rows of one table, in memory and on disk, by id. Every int64 is an id.

    Made by `EmbeddingStore.table`. Ids are given as int64 or int32 tensors of shape ``(n,)`` or sequences of ints, in
    any order, with duplicates.
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
    def _index(self) -> int:
        """In the engine. Raises DamoError if the store has the table no more."""
        if self._opened.gone:
            raise DamoError(f"the store {self._session.path} has no table {self.name!r} any more: it was dropped")
        return self._opened.index

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
        return self._session.engine.iter(self._index)

    def __len__(self) -> int:
        """Number of rows."""
        return self._session.engine.rows(self._index)

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a Table cannot be copied or pickled: use save_model and load_model")

    def __eq__(self, other: object) -> bool:
        """Whether both are of one open table."""
        return isinstance(other, Table) and self._opened is other._opened

    def __hash__(self) -> int:
        return id(self._opened)

    def __repr__(self) -> str:
        return f"Table({self.name!r}, dim={self.dim}, store={str(self._session.path)!r})"

    def get(self, ids: torch.Tensor) -> torch.Tensor:
        """Weights of rows, float32 ``(n, dim)``; ids without a row as eval mode reads them. Creates no rows."""
        ids = _as_ids(ids)
        weights = torch.empty(len(ids), self.dim, dtype=torch.float32, device="cpu")
        unseen = _core.UnseenRows[self._opened.definition.unseen_in_eval.upper()]
        self._session.engine.get(self._index, address(ids), len(ids), unseen, address(weights))
        return weights

    def set(self, ids: torch.Tensor, weights: torch.Tensor) -> None:
        """Sets rows, creating those that are not there, with the optimizer state of new ones.

        Rows are set some thousands at a time, in the order of `ids`: those before an error, as of a full disk, are set.

        Args:
            ids: int64 ``(n,)``; the last of equal ids wins.
            weights: floating point ``(n, dim)``.

        Raises:
            ValueError: the shapes do not fit, or a weight is not finite.
        """
        ids = _as_ids(ids)
        _check_floating_point(weights)
        weights = plain("weights", weights).detach().to(torch.float32)
        if tuple(weights.shape) != (len(ids), self.dim):
            raise ValueError(
                f"table {self.name!r}: weights must have the shape {(len(ids), self.dim)}, got {tuple(weights.shape)}"
            )
        finite = torch.isfinite(weights).all(dim=1)
        if not bool(finite.all()):
            raise ValueError(f"table {self.name!r}: weights must be finite, those of id {ids[~finite][0]} are not")
        with self._session.changing(self._opened) as engine:
            engine.set(self._index, address(ids), len(ids), address(weights), 0)

    def delete(self, ids: torch.Tensor) -> None:
        """Deletes rows; ids without a row are passed over. An update still to come creates a row anew.

        Rows are deleted some thousands at a time, in the order of `ids`: those after an error, as of a full disk, stay.
        """
        ids = _as_ids(ids)
        with self._session.changing(self._opened) as engine:
            engine.delete(self._index, address(ids), len(ids))

    def contains(self, ids: torch.Tensor) -> torch.Tensor:
        """Whether the ids have rows: bool ``(n,)``."""
        ids = _as_ids(ids)
        found = torch.empty(len(ids), dtype=torch.bool, device="cpu")
        self._session.engine.contains(self._index, address(ids), len(ids), address(found))
        return found

    def items(self, batch_size: int = 65536) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All rows in ascending id order, as ``(ids int64 (n,), weights float32 (n, dim))`` with n <= `batch_size`.

        The rows are those of the moment the iteration begins, whatever happens to them meanwhile.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        with self._session.waiting_call("read"):
            scan = _core.Scan(self._session.engine, self._index)
        batch_size = min(batch_size, max(len(self), 1))  # no more memory than there are rows
        while True:
            _ = self._session.engine  # names the store if it is closed by now
            ids = torch.empty(batch_size, dtype=torch.int64, device="cpu")
            weights = torch.empty(batch_size, self.dim, dtype=torch.float32, device="cpu")
            n = scan.next(address(ids), address(weights), batch_size)
            if n == 0:
                return
            yield ids[:n], weights[:n]

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
    for table in tables:
        table.opened.note_user(table)
    return tables


def _as_ids(ids: object) -> torch.Tensor:
    if isinstance(ids, list | tuple | range):
        if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise TypeError(f"ids must be ints, got {ids!s:.80}")
        beyond = [i for i in ids if not -(2**63) <= i < 2**63]
        if beyond:
            raise ValueError(f"ids must fit int64, got {beyond[0]}")
        ids = torch.tensor(list(ids), dtype=torch.int64, device="cpu")
    if not isinstance(ids, torch.Tensor) or ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"ids must be an int64 or int32 tensor or a sequence of ints, got {_describe(ids)}")
    values = plain("ids", ids).detach()
    if values.dim() != 1:
        raise ValueError(f"ids must have the shape (n,), got {tuple(values.shape)}")
    return values.to(torch.int64)


def _check_floating_point(weights: object) -> None:
    if not isinstance(weights, torch.Tensor) or not weights.is_floating_point():
        raise TypeError(f"weights must be a floating point tensor, got {_describe(weights)}")


def _describe(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype}"
    return type(value).__name__
