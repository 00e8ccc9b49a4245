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
        self._open: Callable[[], Iterable[pa.RecordBatch]]
        self._count: int | None = None
        if callable(batches):
            self._open = batches
            return
        of_table = batches.to_batches() if isinstance(batches, pa.Table) else batches
        listed = [of_table] if isinstance(of_table, pa.RecordBatch) else list(of_table)
        if odd := next((batch for batch in listed if not isinstance(batch, pa.RecordBatch)), None):
            raise TypeError(f"batches must be a table or record batches of pyarrow, got {type(odd).__name__}")
        self._open = lambda: listed
        self._count = sum(batch.num_rows for batch in listed)

    @property
    def count(self) -> int | None:
        """As of `Source`."""
        return self._count

    def read(self, columns: Columns, begin: int, seed: Sequence[int] | None) -> Iterator[pa.RecordBatch]:
        """As of `Source`; `seed` changes nothing."""
        for batch in self._open():
            if not isinstance(batch, pa.RecordBatch):
                raise TypeError(f"the function must give record batches of pyarrow, got {type(batch).__name__}")
            check_columns(columns, batch.schema.names, "a record batch")
            if begin < batch.num_rows:
                yield batch.select(columns.names).slice(begin)
            begin = max(begin - batch.num_rows, 0)

    def fingerprint(self) -> dict[str, Any]:
        """As of `Source`."""
        return {"kind": "Arrow", "count": -1 if self._count is None else self._count}
