"""`Batches`: an epoch of a source for each ``for``, from a position that can be kept."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import pyarrow as pa
from torchrec.datasets.utils import Batch

from damo_torchrec.data.columns import Columns
from damo_torchrec.data.decoding import decode, joinable
from damo_torchrec.data.rows import Rows
from damo_torchrec.data.source import Source, permutation

_WINDOW = 1 << 16  # rows that are read at a time where they are not shuffled
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Shuffle:
    """How rows are mixed: row groups of Parquet as a whole, and rows within windows of what comes of that.

    Args:
        seed: in 0..2^64 - 1. The order depends on it and on the number of the epoch, and on nothing else.
        rows: of a window, which is rounded up to whole batches. Three windows are in memory.
    """

    seed: int = 0
    rows: int = 1 << 18

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in 0..2^64 - 1, got {self.seed}")
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")


class Batches:
    """Batches of a source, as TorchRec's ``Batch``: ``dense_features``, ``sparse_features`` and ``labels``.

    ::

        batches = damo.data.Batches(
            damo.data.ParquetRows("clicks/"),
            damo.data.Columns({"user": damo.data.Strings("user"), "clicks": damo.data.Ids("clicks")}, labels="clicked"),
            batch_size=8192,
            shuffle=damo.data.Shuffle(seed=0),
        )
        for batch in batches:
            loss = model(batch.dense_features, batch.sparse_features)
            ...

    Each ``for`` is an epoch, from its beginning or from the position that `load_state_dict` set. Rows are read and
    decoded by windows, the next one in a thread while batches of this one are used.

    Args:
        source: `ParquetRows`, `ArrowRows`, or what does as they do.
        columns: what batches are made of.
        batch_size: rows of a batch; the last of an epoch may have fewer.
        shuffle: None: rows come as they lie.
        drop_last: leave out a last batch that is smaller.

    Raises:
        ValueError: `batch_size` is less than 1.
    """

    def __init__(
        self,
        source: Source,
        columns: Columns,
        *,
        batch_size: int,
        shuffle: Shuffle | None = None,
        drop_last: bool = False,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise TypeError(f"batch_size must be an int, got {batch_size!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._source, self._columns, self._batch_size = source, columns, batch_size
        self._shuffle, self._drop_last = shuffle, drop_last
        window = shuffle.rows if shuffle is not None else _WINDOW
        self._window = -(-window // batch_size) * batch_size
        self._epoch = self._done = self._first = 0
        self._made_of: dict[str, Any] = {
            "batch_size": batch_size,
            "drop_last": drop_last,
            "shuffle": asdict(shuffle) if shuffle is not None else {},
            "source": source.fingerprint(),
        }

    @property
    def epoch(self) -> int:
        """Of the next batch: how many epochs are behind."""
        return self._position()[0]

    def __len__(self) -> int:
        """Batches of a whole epoch; TypeError if the source does not know its rows."""
        if (count := self._source.count) is None:
            raise TypeError("the source does not know how many rows it has")
        return count // self._batch_size if self._drop_last else -(-count // self._batch_size)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that came out: numbers, strings and dicts, for ``save_model(extra=)``."""
        epoch, done = self._position()
        return {"epoch": epoch, "batches": done, "of": self._made_of}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has the next ``for`` begin where `state_dict` was, with the same batches to the bit.

        Raises:
            ValueError: it is of other files, another batch size, shuffling or number of ranks, or none at all.
        """
        epoch, done, of = (state.get(name) for name in ("epoch", "batches", "of"))
        numbers = all(type(number) is int and 0 <= number < 2**63 for number in (epoch, done))
        if not (isinstance(epoch, int) and isinstance(done, int) and isinstance(of, Mapping) and numbers):
            raise ValueError(f"expected what Batches.state_dict returned, got {state!r:.200}")
        if differs := [name for name in self._made_of if of.get(name) != self._made_of[name]]:
            there, here = ({name: made.get(name) for name in differs} for made in (of, self._made_of))
            raise ValueError(f"the position is one of other batches: it is of {there}, these are of {here}")
        self._epoch, self._done, self._first = epoch, done, done

    def __iter__(self) -> Iterator[Batch]:
        first, self._first = self._first, 0
        epoch, self._done = self._epoch, first
        for rows, begin in _one_ahead(self._windows(epoch, first)):
            for start in range(begin, rows.count, self._batch_size):
                end = min(start + self._batch_size, rows.count)
                if self._drop_last and end - start < self._batch_size:
                    break
                batch = rows.batch(start, end)
                self._epoch, self._done = epoch, self._done + 1
                yield batch
        self._epoch, self._done = epoch + 1, 0

    def _position(self) -> tuple[int, int]:
        """The epoch and its batches that came out; the next one after the last of them, where that is known."""
        if self._source.count is not None and self._done >= len(self) > 0:
            return self._epoch + 1, 0
        return self._epoch, self._done

    def _windows(self, epoch: int, first: int) -> Iterator[tuple[Rows, int]]:
        """Windows of an epoch from the one that has batch `first` on; and at which of its rows to begin."""
        number, begin = divmod(first * self._batch_size, self._window)
        seed = None if self._shuffle is None else (self._shuffle.seed, epoch)
        pieces: list[pa.RecordBatch] = []
        missing = self._window
        for piece in self._source.read(self._columns, number * self._window, seed):
            while piece.num_rows >= missing:
                yield self._decoded([*pieces, piece.slice(0, missing)], number, seed), begin
                piece, pieces, missing = piece.slice(missing), [], self._window
                number, begin = number + 1, 0
            if piece.num_rows:
                pieces.append(piece)
                missing -= piece.num_rows
        if pieces:
            yield self._decoded(pieces, number, seed), begin

    def _decoded(self, pieces: list[pa.RecordBatch], window: int, seed: tuple[int, int] | None) -> Rows:
        tables = [pa.Table.from_batches([piece.select(self._columns.names)]) for piece in pieces]
        try:  # files may differ: a column of null in one of them, or of smaller integers
            table = pa.concat_tables(map(joinable, tables), promote_options="permissive").unify_dictionaries()
            if seed is not None:
                table = table.combine_chunks().take(pa.array(permutation(table.num_rows, (*seed, window))))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise TypeError(
                f"record batches have columns of types that do not go together, or cannot be shuffled: {error}"
            ) from error
        return decode(table, self._columns)


def _one_ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """Items, the next of which a thread makes while one is used."""
    with ThreadPoolExecutor(1, "damo_torchrec-data") as thread:
        following = thread.submit(next, items, None)
        try:
            while (item := following.result()) is not None:
                following = thread.submit(next, items, None)
                yield item
        finally:
            following.cancel()
