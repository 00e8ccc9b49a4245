"""Who reads rows that are not in memory: our lookups, RocksDB's MultiGet, and the disk itself."""

from __future__ import annotations

import resource
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

import damo_torchrec as damo
from common import raw
from common.cold_store import ScatteredIds, as_input, collection
from common.entries import OURS
from common.workload import Workload
from parts.cold.reading import DISK, RAW, Reading

DISK_SECONDS_PER_BATCH = 0.1


@dataclass(frozen=True)
class Setup:
    """What is read, and with what.

    Args:
        checkpoint: that holds the rows.
        workload: its tables, and how many ids a batch has.
        ids: of the rows.
        memory_budget: of our store; MultiGet's RocksDB has the share that ours has.
        threads: that lookups have, and MultiGet, unless it has to wait for the disk.
        in_flight: reads under way at a time, where the disk is waited for.
        direct_io: past the page cache.
    """

    checkpoint: Path
    workload: Workload
    ids: ScatteredIds
    memory_budget: int
    threads: int
    in_flight: int
    direct_io: bool

    @property
    def db(self) -> Path:
        """The checkpoint's RocksDB."""
        return self.checkpoint / "rows"

    @property
    def rows_per_batch(self) -> int:
        return self.workload.tables * self.workload.batch_size


class Reader(ABC):
    """Takes turns like a `turns.Contestant`.

    Args:
        name: of the reader.
        setting: of it, in words.
    """

    def __init__(self, setup: Setup, name: str, setting: str) -> None:
        self.name = name
        self.setting = setting
        self._setup = setup

    @abstractmethod
    def run(self, batches: int) -> Reading:
        """Reads so many batches."""


class RowReader(Reader):
    """Reads a store's rows, each one once."""

    _next = 0

    def run(self, batches: int) -> Reading:
        """Reads so many batches that it has not read yet, after one that is not timed."""
        first, self._next = self._next, self._next + 1 + batches
        before = blocks_read()
        seconds = self._read(range(first, self._next))
        return Reading(seconds, (blocks_read() - before) / ((1 + batches) * self._setup.rows_per_batch))

    @abstractmethod
    def _read(self, numbers: range) -> list[float]:
        """Seconds of each batch but the first, or of an average one."""


def blocks_read() -> int:
    """4 KiB blocks that this process and those that it has waited for have read from disks."""
    return sum(resource.getrusage(who).ru_inblock for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // 8


class Ours(RowReader):
    """Forward calls of a collection whose store is only read. A context manager.

    Args:
        prefetch: announce each batch one forward call ahead.
    """

    def __init__(self, setup: Setup, prefetch: bool) -> None:
        super().__init__(setup, OURS, f"{'prefetch' if prefetch else 'forward'}, {in_words(setup.threads)}")
        self._prefetch = prefetch
        self._store = damo.EmbeddingStore(
            setup.checkpoint,
            memory_budget=setup.memory_budget,
            read_only=True,
            options=damo.StoreOptions(num_threads=setup.threads, direct_io=setup.direct_io),
        )
        self._module = collection(self._store, setup.workload).eval()

    @torch.no_grad()
    def _read(self, numbers: range) -> list[float]:
        first, *others = [as_input(self._setup.workload, self._setup.ids.batch(number)) for number in numbers]
        self._module(first)
        times = [time.perf_counter()]
        for batch in damo.PrefetchIterator(others, self._module) if self._prefetch else others:
            self._module(batch)
            times.append(time.perf_counter())
        self._check_that_all_were_read()
        if self._prefetch:  # where one batch ends and the next begins is open
            return [(times[-1] - times[0]) / len(others)]
        return [end - start for start, end in pairwise(times)]

    def _check_that_all_were_read(self) -> None:
        asked = self._next * self._setup.rows_per_batch
        read = self._store.stats().rows_read
        if read != asked:
            raise RuntimeError(f"{read} rows were read of {asked} that were asked for: not all were misses")

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()


class RawMultiGet(RowReader):
    """RocksDB's `MultiGet` of the same rows, in a new process each turn."""

    def __init__(self, setup: Setup) -> None:
        self._threads = setup.in_flight if setup.direct_io else setup.threads
        super().__init__(setup, RAW, in_words(self._threads))

    def _read(self, numbers: range) -> list[float]:
        setup = self._setup
        keys = setup.ids.keys(numbers.start, numbers.stop)
        rate = raw.multi_get(
            setup.db, keys, setup.rows_per_batch, self._threads, setup.direct_io, memory_budget=setup.memory_budget
        )
        if rate.found != len(keys):
            raise RuntimeError(f"MultiGet found {rate.found} of {len(keys)} rows")
        return rate.seconds[1:]


class Disk(Reader):
    """Random reads of 4 KiB, as many as a batch has rows.

    It reads for a time, of which it takes the average.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, DISK, f"{setup.in_flight} in flight")

    def run(self, batches: int) -> Reading:
        limit = raw.disk_limit(self._setup.db, self._setup.in_flight, batches * DISK_SECONDS_PER_BATCH)
        return Reading([self._setup.rows_per_batch / limit], blocks_per_row=1)


def in_words(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"
