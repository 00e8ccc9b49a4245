"""The example's side of the terminal: progress, the table of the store, and Ctrl-C."""

import os
import signal
from types import FrameType

from tqdm import tqdm

from damo_torchrec import EmbeddingStore, StoreStats

REFRESH_STEPS = 10


class Progress:
    """A bar over the samples with the loss (smoothed) and the share of cache hits so far."""

    def __init__(self, store: EmbeddingStore, epochs: int, total: int | None, done: int) -> None:
        self._store = store
        self._epochs = epochs
        self._bar = tqdm(total=total, initial=done, unit=" samples", unit_scale=True)
        self._steps = 0
        self._loss: float | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self, epoch: int, samples: int, loss: float) -> None:
        self._loss = loss if self._loss is None else 0.98 * self._loss + 0.02 * loss
        if self._steps % REFRESH_STEPS == 0:
            self._bar.set_postfix(
                epoch=f"{epoch + 1}/{self._epochs}",
                loss=f"{self._loss:.4f}",
                cache_hits=hit_rate(self._store.stats()),
                refresh=False,
            )
        self._steps += 1
        self._bar.update(samples)


class StopRequest:
    """Within its block the first SIGINT or SIGTERM only sets `signal`; a second one kills."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nStopping after this step with a checkpoint. Once more to abort at once.\n")


def hit_rate(stats: StoreStats) -> str:
    """The share of lookups that were served from memory since the store was opened."""
    hits = sum(table.hits for table in stats.tables.values())
    return _percentage(hits, hits + sum(table.misses for table in stats.tables.values()))


def store_report(stats: StoreStats) -> str:
    """A line for each table and one for all, in aligned columns, and the bytes they take."""
    tables = stats.tables.values()
    lines = [("table", "rows", "in memory", "cache hits")]
    for name, table in stats.tables.items():
        hits = _percentage(table.hits, table.hits + table.misses)
        lines.append((name, f"{table.rows:,}", f"{table.cached_rows:,}", hits))
    rows = sum(table.rows for table in tables)
    cached = sum(table.cached_rows for table in tables)
    lines.append((f"all {len(tables)} tables", f"{rows:,}", f"{cached:,}", hit_rate(stats)))
    name_width, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    text = ["  ".join([name.ljust(name_width), *map(str.rjust, numbers, widths)]) for name, *numbers in lines]
    text.append(
        f"{_mebibytes(stats.memory_bytes)} in memory, of a budget of "
        f"{_mebibytes(stats.memory_budget)}; {_mebibytes(stats.disk_bytes)} on disk, beside the checkpoints"
    )
    return "\n".join(text)


def _percentage(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
