"""The columns that rows are to Arrow, and what the schema's metadata say of their table.

The metadata have one key, ``damo_torchrec``, whose value is JSON: ``version`` (1), ``table`` (its name), ``schema``
(what a checkpoint's manifest has of it) and ``iter`` (its updates).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

from damo_torchrec.checkpoints.document import load_json, parse
from damo_torchrec.checkpoints.table_entry import TableEntry, TableSchema
from damo_torchrec.needs_pyarrow import pyarrow as pa
from damo_torchrec.optim.state_parts import STATE_PARTS, StatePart, state_parts

ID, WEIGHT, LAST_STEP, UPDATES = "id", "weight", "last_step", "updates"
_KEY = b"damo_torchrec"
_VERSION = 1


@dataclass(frozen=True)
class StoredAs:
    """What metadata say of a table.

    Args:
        table: its name.
        schema: what it is.
        iter: updates that it has had.
        version: of these fields.
    """

    table: str
    schema: TableSchema
    iter: Annotated[int, range(2**32)]
    version: Annotated[int, range(_VERSION, _VERSION + 1)] = _VERSION

    @staticmethod
    def of(schema: pa.Schema) -> StoredAs | None:
        """What a schema's metadata say; None if they say nothing. Raises ValueError for what is no such document."""
        content = (schema.metadata or {}).get(_KEY)
        if content is None:
            return None
        try:
            found: StoredAs = parse(load_json(content), StoredAs, "metadata")
            TableEntry(1, found.schema, found.iter, 0).check()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the schema's metadata of damo_torchrec are damaged: {error}") from error
        return found


def arrow_schema(stored: StoredAs, parts: Sequence[StatePart], *, counts: bool) -> pa.Schema:
    """The columns of a table's rows, with these parts of its optimizer's state."""
    lists = pa.list_(pa.float32(), stored.schema.dim)
    columns = [(ID, pa.int64()), (WEIGHT, lists)]
    columns += [(part.name, pa.float32() if part.rowwise else lists) for part in parts]
    if counts:
        columns += [(LAST_STEP, pa.int64()), (UPDATES, pa.int64())]
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns]
    return pa.schema(fields, metadata={_KEY: json.dumps(asdict(stored)).encode()})


def dim_of(schema: pa.Schema) -> int | None:
    """How many weights a row has, as far as the columns' types say."""
    index = schema.get_field_index(WEIGHT)
    kind = _storage(schema.field(index).type) if index >= 0 else None
    return kind.list_size if kind is not None and pa.types.is_fixed_size_list(kind) else None


def check_columns(table: str, columns: pa.Schema, schema: TableSchema, parts: Sequence[StatePart] | None) -> set[str]:
    """The names of the columns. Raises ValueError unless a table with such a schema can take them all.

    Args:
        table: its name.
        columns: theirs.
        schema: what the table is.
        parts: the optimizer's state that is taken; None if none is, and any optimizer's is passed over.
    """
    names = columns.names
    passed_over = {part.name for rule in STATE_PARTS.values() for part in rule} if parts is None else set()
    parts = parts or ()
    known = [ID, WEIGHT, *(part.name for part in parts), LAST_STEP, UPDATES]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"table {table!r}: columns come more than once: {twice}")
    if lacking := [name for name in (ID, WEIGHT) if name not in names]:
        raise ValueError(f"table {table!r}: column {lacking[0]!r} is missing, got {names}")
    if unknown := [name for name in names if name not in {*known, *passed_over}]:
        raise ValueError(f"table {table!r} has no column {unknown[0]!r}; those that it takes are {known}")
    if (LAST_STEP in names) != (UPDATES in names):
        raise ValueError(f"table {table!r}: of {LAST_STEP!r} and {UPDATES!r} both are needed, or none")
    for name in {ID, LAST_STEP, UPDATES} & {*names}:
        if not pa.types.is_integer(kind := columns.field(name).type):
            raise ValueError(f"table {table!r}: column {name!r} must be of integers, got {kind}")
    for name in {WEIGHT, *(part.name for part in parts)} & {*names}:
        rowwise = any(part.name == name and part.rowwise for part in parts)
        _check_floats(table, columns.field(name), None if rowwise else schema.dim)
    stored = StoredAs.of(columns)
    if stored is not None:
        meant = {part.name: part.means for part in state_parts(stored.schema.optimizer)}
        for part in parts:
            if part.name in names and meant.get(part.name, part.means) != part.means:
                raise ValueError(
                    f"table {table!r}: {part.name!r} is the state of {stored.schema.optimizer['name']}, not of "
                    f"{schema.optimizer['name']}: import without state"
                )
    return {*names}


def _check_floats(table: str, column: pa.Field, dim: int | None) -> None:
    kind, what = _storage(column.type), "floats" if dim is None else f"lists of {dim} floats"
    inner = kind
    if dim is not None:
        inner = kind.value_type if is_list(kind) else None
        if pa.types.is_fixed_size_list(kind) and kind.list_size != dim:
            inner = None
    if inner is None or not pa.types.is_floating(inner):
        raise ValueError(f"table {table!r}: column {column.name!r} must be of {what}, got {column.type}")


def is_list(kind: pa.DataType) -> bool:
    """Whether it is one of Arrow's kinds of lists."""
    return any(is_kind(kind) for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
