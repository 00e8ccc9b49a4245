"""What a collection says of a table, and what of it may not change while the table has rows."""

from __future__ import annotations

from dataclasses import dataclass

from damo_torchrec import _core
from damo_torchrec.checkpoints.table_entry import InitializerNumbers, TableSchema
from damo_torchrec.init import Initializer, describe, from_description
from damo_torchrec.life import ASKS_NOTHING, AskedLife
from damo_torchrec.optim.spec import OptimizerSpec


@dataclass(frozen=True)
class TableDefinition:
    """What a collection says of a table.

    Raises:
        ValueError: rows of no such `dim` can be stored.
        TypeError: `dim` is no int.
    """

    name: str
    dim: int
    num_embeddings: int
    optimizer: OptimizerSpec
    initializer: Initializer
    unseen_in_eval: str = "zeros"
    row_dtype: str = "float32"
    life: AskedLife = ASKS_NOTHING

    def __post_init__(self) -> None:
        if isinstance(self.dim, bool) or not isinstance(self.dim, int):
            raise TypeError(f"table {self.name!r}: embedding_dim must be an int, got {self.dim!r}")
        if self.dim < 1:
            raise ValueError(f"table {self.name!r}: embedding_dim must be positive, got {self.dim}")
        if self.dim > _core.MOST_DIM:
            raise ValueError(f"table {self.name!r}: embedding_dim must be at most {_core.MOST_DIM}, got {self.dim}")

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

        Raises:
            ValueError: this version does not know its initializer.
        """
        initializer, num_embeddings = from_description(schema.initializer)
        return TableDefinition(
            name=name,
            dim=schema.dim,
            num_embeddings=num_embeddings,
            optimizer=OptimizerSpec.of_schema(schema.optimizer),
            initializer=initializer,
            unseen_in_eval=unseen_in_eval,
            row_dtype=schema.row_dtype,
        )
