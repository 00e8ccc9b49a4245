"""A table as a manifest has it, and which tables there can be."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from damo_torchrec import _core
from damo_torchrec.checkpoints.document import shown
from damo_torchrec.init import TruncatedNormal, describe, from_description
from damo_torchrec.life import Life

# Numbers are given out from 1 on, and this one is the last that there is.
NEVER_GIVEN = 2**31 - 1

_ROW_DTYPES = tuple(name.lower() for name in _core.WeightType.__members__)
_LARGEST = float(np.finfo(np.float32).max)

_Count = Annotated[int, range(2**63)]
_Step = Annotated[int, range(2**32)]


@dataclass(frozen=True)
class InitializerNumbers:
    """What an initializer's arguments came to where its table was made; another C library may round otherwise."""

    a: float
    b: float
    low: float
    high: float


@dataclass(frozen=True)
class TableSchema:
    """What may not change while a table has rows.

    Args:
        dim: weights in a row.
        optimizer: the update rule's name, and what its state begins with.
        initializer: the distribution of initial weights.
        numbers: what that came to.
        row_dtype: of the weights: "float32", "float16" or "bfloat16".
        stream: the name that initial weights are drawn by: the one that the table was made with, or empty where that is
            the name that it has.
    """

    dim: Annotated[int, range(1, _core.MOST_DIM + 1)]
    optimizer: dict[str, float | str]
    initializer: dict[str, float | str]
    numbers: InitializerNumbers = field(compare=False)
    row_dtype: str = "float32"
    stream: str = field(default="", compare=False)


@dataclass(frozen=True)
class TableEntry:
    """A table as a checkpoint holds it. `number` is its key on disk and never given to another table.

    `life` is what decides how long rows live, where that has ever been said: some that are stored may be dead then, and
    `layout.life_file` tells which.
    """

    number: Annotated[int, range(1, NEVER_GIVEN)]
    schema: TableSchema
    iter: _Step
    rows: _Count
    life: Life | None = None

    def to_core(self, name: str) -> _core.TableSchema:
        """The engine's schema of the table `name`: what its rows are, without what a collection says of them."""
        schema = _core.TableSchema()
        schema.name, schema.number, schema.iter, schema.rows = name, self.number, self.iter, self.rows
        schema.dim = self.schema.dim
        schema.weight_type = _core.WeightType[self.schema.row_dtype.upper()]
        schema.optimizer = _core.OptimizerConfig(str(self.schema.optimizer["name"]))
        return schema

    def bytes_of_rows(self, name: str) -> int:
        """The least that the rows of the table `name` take in files: each is there whole, uncompressed."""
        return self.rows * _core.payload_size(self.to_core(name))

    def check(self) -> None:
        """Raises ValueError if this version does not know what the table is, or its parts contradict each other."""
        schema = self.schema
        if schema.row_dtype not in _ROW_DTYPES:
            raise ValueError(f"row_dtype is {shown(schema.row_dtype)}, expected one of {', '.join(_ROW_DTYPES)}")
        _check_optimizer(schema.optimizer)
        _check_initializer(schema)


def check_tables(tables: Mapping[str, TableEntry], next_number: int) -> None:
    """Raises ValueError unless these can be the tables of one store, whose next one gets `next_number`."""
    names: dict[int, str] = {}
    for name, table in tables.items():
        try:
            table.check()
        except ValueError as error:
            raise ValueError(f"table {shown(name)}: {error}") from error
        if table.number in names:
            raise ValueError(f"tables {shown(names[table.number])} and {shown(name)} have one number, {table.number}")
        if table.number >= next_number:
            raise ValueError(f"table {shown(name)} has the number {table.number}, but the next one gets {next_number}")
        names[table.number] = name


def _check_optimizer(optimizer: Mapping[str, float | str]) -> None:
    if optimizer.keys() - {"corrected_max"} != {"name", "initial_accumulator_value"}:
        raise ValueError(f"optimizer is {shown(dict(optimizer))}, expected name and initial_accumulator_value")
    if "corrected_max" in optimizer and (optimizer["name"] != "AMSGRAD" or optimizer["corrected_max"] != 1):
        raise ValueError(f"optimizer is {shown(dict(optimizer))}, expected corrected_max of AMSGRAD alone, and as 1")
    if optimizer["name"] not in _core.UPDATE_RULES:
        raise ValueError(f"optimizer is {shown(optimizer['name'])}, expected one of {', '.join(_core.UPDATE_RULES)}")
    value = optimizer["initial_accumulator_value"]
    if isinstance(value, str) or not 0 <= value <= _LARGEST:
        raise ValueError(f"initial_accumulator_value is {shown(value)}, expected a float32 that is not negative")


def _check_initializer(schema: TableSchema) -> None:
    """Raises ValueError unless the numbers are what its arguments come to; another C library may round otherwise."""
    try:
        initializer, num_embeddings = from_description(schema.initializer)
        core = initializer.to_core(num_embeddings, schema.dim)
        if describe(initializer, num_embeddings, schema.dim) != schema.initializer:
            raise ValueError("it has arguments without an effect, or lacks some")
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"initializer is {shown(dict(schema.initializer))}: {error}") from error
    numbers = schema.numbers
    # Earlier releases did not mirror any.
    mirrored = isinstance(initializer, TruncatedNormal) and math.copysign(1, numbers.b) != math.copysign(1, core.b)
    pairs = [(numbers.a, core.a), (-numbers.b if mirrored else numbers.b, core.b)]
    if not all(math.isclose(*pair, rel_tol=1e-5, abs_tol=1e-30) for pair in pairs):
        raise ValueError(f"numbers are {numbers}, but the initializer's come to a={core.a} and b={core.b}")
    if not 0 <= numbers.low <= numbers.high <= 1:
        raise ValueError(f"numbers are {numbers}, expected 0 <= low <= high <= 1")
