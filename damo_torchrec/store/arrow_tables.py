"""New tables of Arrow's record batches: `EmbeddingStore.table_from_arrow`."""

from __future__ import annotations

from dataclasses import replace

from damo_torchrec.checkpoints.table_entry import TableSchema
from damo_torchrec.needs_pyarrow import pyarrow as pa
from damo_torchrec.store.arrow_rows import reader_of, table_from_arrow
from damo_torchrec.store.arrow_schema import StoredAs, dim_of
from damo_torchrec.store.conversion import Wanted, new_schema
from damo_torchrec.store.session import Session


def make_table(
    session: Session,
    name: str,
    data: object,
    wanted: Wanted,
    num_embeddings: int | None,
    *,
    state: bool,
    counts: bool,
) -> int:
    """What `EmbeddingStore.table_from_arrow` does. Returns how many rows there are."""
    reader = reader_of(data)
    stored = StoredAs.of(reader.schema)
    schema = wanted.schema(_told(name, reader.schema, stored, wanted, num_embeddings))
    iteration = stored.iter if stored is not None else 0
    return table_from_arrow(session, name, reader, schema, iteration, state=state, counts=counts)


def _told(
    name: str, columns: pa.Schema, stored: StoredAs | None, wanted: Wanted, num_embeddings: int | None
) -> TableSchema:
    """What metadata, or else columns and arguments, say of a table, before it is as wanted."""
    dim = dim_of(columns) or wanted.dim or (stored.schema.dim if stored is not None else None)
    if stored is None:
        if dim is None or wanted.optimizer is None or num_embeddings is None:
            raise ValueError(
                f"table {name!r}: nothing says what it is: give optimizer, num_embeddings and, unless weight is of "
                f"lists of a fixed size, dim; got {wanted.optimizer}, {num_embeddings} and {dim}"
            )
        return new_schema(name, dim, num_embeddings)
    stream = stored.schema.stream or stored.table
    schema = replace(stored.schema, stream="" if stream == name else stream)
    if num_embeddings is None:
        return schema
    fresh = new_schema(name, schema.dim, num_embeddings)
    return replace(schema, initializer=fresh.initializer, numbers=fresh.numbers)
