"""`ArrowRows`: rows that are in memory, or that a function reads."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from damo_torchrec.data.columns import Columns
from damo_torchrec.data.source import check_columns


class ArrowRows:
    """Arrow's record batches, in their order.

    Args:
        batches: a table, a record batch, or a list of record batches; or a function that returns an iterable of record
            batches, such as a RecordBatchReader, anew for each epoch, and the same ones each time.
    """

    def __init__(self, batches: pa.Table | pa.RecordBatch | Sequence[pa.RecordBatch] | Callable[[], Any]) -> None:
        self._batches: Callable[[], Iterable[pa.RecordBatch]] | list[pa.RecordBatch]
        self._count: int | None = None
        self._found: int | None = None  # rows of an epoch of the function, once it was read to its end
        if callable(batches):
            self._batches = batches
            return
        of_table = batches.to_batches() if isinstance(batches, pa.Table) else batches
        self._batches = [of_table] if isinstance(of_table, pa.RecordBatch) else list(of_table)
        for batch in self._batches:
            if not isinstance(batch, pa.RecordBatch):
                raise TypeError(f"batches must be a table or record batches of pyarrow, got {type(batch).__name__}")
        self._count = sum(batch.num_rows for batch in self._batches)

    @property
    def count(self) -> int | None:
        """As of `Source`."""
        return self._count

    def read(self, columns: Columns, begin: int, seed: Sequence[int] | None) -> Iterator[pa.RecordBatch]:
        """As of `Source`; `seed` changes nothing.

        Raises:
            ValueError: the function gives another number of rows than before, or ends before `begin`.
        """
        rows = 0
        for batch in self._batches() if callable(self._batches) else self._batches:
            if not isinstance(batch, pa.RecordBatch):
                raise TypeError(f"the function must give record batches of pyarrow, got {type(batch).__name__}")
            check_columns(columns, batch.schema.names, "a record batch")
            if begin < rows + batch.num_rows:
                yield batch.select(columns.names).slice(max(begin - rows, 0))
            rows += batch.num_rows
        if rows < begin or rows != (self._found if self._found is not None else rows):
            expected = f"at least {begin}" if self._found is None else self._found
            raise ValueError(
                f"the function gave {rows} rows, expected {expected}: it must give the same ones each time, and not an "
                "iterator that has given its rows already"
            )
        self._found = rows

    def fingerprint(self) -> dict[str, Any]:
        """As of `Source`."""
        return {"kind": "Arrow", "count": -1 if self._count is None else self._count}
