"""A table of a store: its rows by id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from damo_torchrec import _core
from damo_torchrec.checkpoints.manifest import InitializerNumbers, TableSchema
from damo_torchrec.init import Initializer, describe, from_description
from damo_torchrec.optim.spec import OptimizerSpec

if TYPE_CHECKING:
    from damo_torchrec.store.embedding_store import EmbeddingStore


@dataclass(frozen=True)
class TableDefinition:
    """What a collection says of a table."""

    name: str
    dim: int
    num_embeddings: int
    optimizer: OptimizerSpec
    initializer: Initializer
    unseen_in_eval: str = "zeros"
    row_dtype: str = "float32"

    def schema(self) -> TableSchema:
        """What of it may not change while the table has rows."""
        core = self.initializer.to_core(self.num_embeddings, self.dim)
        return TableSchema(
            dim=self.dim,
            optimizer=self.optimizer.schema(),
            initializer=describe(self.initializer, self.num_embeddings, self.dim),
            numbers=InitializerNumbers(a=core.a, b=core.b, low=core.low, high=core.high),
            row_dtype=self.row_dtype,
        )

    @staticmethod
    def of_schema(name: str, schema: TableSchema, unseen_in_eval: str = "zeros") -> TableDefinition:
        """A definition to open a table with where there is no collection: for its rows to be read and set.

        Hyperparameters, which a schema does not keep, are none that updates could use.

        Raises:
            ValueError: this version does not know its initializer.
        """
        initializer, num_embeddings = from_description(schema.initializer)
        initial = float(schema.optimizer["initial_accumulator_value"])
        return TableDefinition(
            name=name,
            dim=schema.dim,
            num_embeddings=num_embeddings,
            optimizer=OptimizerSpec(str(schema.optimizer["name"]), lr=1.0, initial_accumulator_value=initial),
            initializer=initializer,
            unseen_in_eval=unseen_in_eval,
            row_dtype=schema.row_dtype,
        )


class Table:
    """The rows of one table, in memory and on disk, by id. Every int64 is an id.

    Made by `EmbeddingStore.table`. Ids are given as int64 or int32 tensors of shape ``(n,)`` or sequences of ints, in
    any order, with duplicates.
    """

    def __init__(self, store: EmbeddingStore, definition: TableDefinition) -> None:
        self._store = store
        self._definition = definition
        self._number = 0  # on disk
        self._index = -1  # in the engine that is open now
        self._optimizer = definition.optimizer  # as the engine has it

    @property
    def name(self) -> str:
        """The table's name."""
        return self._definition.name

    @property
    def dim(self) -> int:
        """Weights in a row."""
        return self._definition.dim

    @property
    def row_dtype(self) -> torch.dtype:
        """What weights are stored as. They are read and set as float32, and rounded to nearest where they are set."""
        dtype: torch.dtype = getattr(torch, self._definition.row_dtype)
        return dtype

    @property
    def iter(self) -> int:
        """Updates applied to the table so far."""
        return self._store._engine.iter(self._index)

    def __len__(self) -> int:
        """Number of rows."""
        return self._store._engine.rows(self._index)

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a Table cannot be copied or pickled: use save_model and load_model")

    def __repr__(self) -> str:
        return f"Table({self.name!r}, dim={self.dim}, store={str(self._store.path)!r})"

    def get(self, ids: torch.Tensor) -> torch.Tensor:
        """Weights of rows, float32 ``(n, dim)``; ids without a row as eval mode reads them. Creates no rows."""
        ids = _as_ids(ids)
        weights = torch.empty(len(ids), self.dim, dtype=torch.float32, device="cpu")
        unseen = _core.UnseenRows[self._definition.unseen_in_eval.upper()]
        self._store._engine.get(self._index, ids.data_ptr(), len(ids), unseen, weights.data_ptr())
        return weights

    def set(self, ids: torch.Tensor, weights: torch.Tensor) -> None:
        """Sets rows, creating those that are not there, with the optimizer state of new ones.

        Args:
            ids: int64 ``(n,)``; the last of equal ids wins.
            weights: floating point ``(n, dim)``.

        Raises:
            ValueError: the shapes do not fit, or a weight is not finite.
        """
        ids = _as_ids(ids)
        _check_floating_point(weights)
        if tuple(weights.shape) != (len(ids), self.dim):
            raise ValueError(
                f"table {self.name!r}: weights must have the shape {(len(ids), self.dim)}, got {tuple(weights.shape)}"
            )
        weights = weights.detach().to("cpu", torch.float32).contiguous()
        finite = torch.isfinite(weights).all(dim=1)
        if not bool(finite.all()):
            raise ValueError(f"table {self.name!r}: weights must be finite, those of id {ids[~finite][0]} are not")
        with self._store._mutex:
            self._store._note_change()
            self._store._engine.set(self._index, ids.data_ptr(), len(ids), weights.data_ptr(), 0)

    def delete(self, ids: torch.Tensor) -> None:
        """Deletes rows; ids without a row are passed over. An update still to come creates a row anew."""
        ids = _as_ids(ids)
        with self._store._mutex:
            self._store._note_change()
            self._store._engine.delete(self._index, ids.data_ptr(), len(ids))

    def contains(self, ids: torch.Tensor) -> torch.Tensor:
        """Whether the ids have rows: bool ``(n,)``."""
        ids = _as_ids(ids)
        found = torch.empty(len(ids), dtype=torch.bool, device="cpu")
        self._store._engine.contains(self._index, ids.data_ptr(), len(ids), found.data_ptr())
        return found

    def items(self, batch_size: int = 65536) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All rows in ascending id order, as ``(ids int64 (n,), weights float32 (n, dim))`` with n <= `batch_size`.

        The rows are those of the moment the iteration begins, whatever happens to them meanwhile.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        scan = _core.Scan(self._store._engine, self._index)
        while True:
            _ = self._store._engine  # names the store if it is closed by now
            ids = torch.empty(batch_size, dtype=torch.int64, device="cpu")
            weights = torch.empty(batch_size, self.dim, dtype=torch.float32, device="cpu")
            n = scan.next(ids.data_ptr(), weights.data_ptr(), batch_size)
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

    def _set_state(self, ids: torch.Tensor, state: torch.Tensor) -> None:
        """Sets the optimizer state of rows: int64 ``(n,)``, and float32 ``(n, k)`` as the table's rule has it."""
        with self._store._mutex:
            self._store._note_change()
            self._store._engine.set(self._index, ids.data_ptr(), len(ids), 0, state.data_ptr())

    def _set_optimizer(self, spec: OptimizerSpec) -> None:
        """Has the next update use these hyperparameters."""
        if spec != self._optimizer:
            self._store._engine.set_optimizer(self._index, spec.to_core())
            self._optimizer = spec


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
    if ids.dim() != 1:
        raise ValueError(f"ids must have the shape (n,), got {tuple(ids.shape)}")
    return ids.detach().to("cpu", torch.int64).contiguous()


def _check_floating_point(weights: object) -> None:
    if not isinstance(weights, torch.Tensor) or not weights.is_floating_point():
        raise TypeError(f"weights must be a floating point tensor, got {_describe(weights)}")


def _describe(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype}"
    return type(value).__name__
