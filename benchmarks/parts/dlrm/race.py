"""Who takes part in the training of a DLRM, with how much memory, and for how long."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.budget import SPARE, budget_for, cache_share, cached_row_bytes
from common.entries import OURS, PROCESS_BYTES, Entry
from common.measure import MIN_ROUNDS
from common.workload import Workload

DENSE = "dense part alone"
FBGEMM = "FBGEMM"
EMBEDDING_BAG = "nn.EmbeddingBag"
# Where FBGEMM keeps its rows on a GPU: in its memory, or in host memory with a cache there.
DEVICE = "GPU memory"
MANAGED_CACHING = "host memory, cached on the GPU"
OPTIMIZER = "RowWiseAdagrad"

LONGEST_TURN = 20
WARM_UP_TURNS = 1

# Of the cache's bytes, where all rows are to fit: segments as budget.SPARE, and what a step looks up on top.
SPARE_FOR_ALL = 0.05


@dataclass(frozen=True)
class Racer(Entry):
    """A contestant.

    Args:
        percent: ours: how many of the rows its budget holds.
        direct_io: ours: whether it reads and writes past the page cache.
        depth: ours: how many batches ahead it reads rows; 0 for none.
        device: of the dense part, and of outputs: "cpu" or "cuda".
        rows_in: a peer's on a GPU: DEVICE or MANAGED_CACHING.
    """

    device: str = "cpu"
    rows_in: str = ""
    percent: float = 100
    direct_io: bool = False
    depth: int = 0

    @property
    def name(self) -> str:
        """The library alone: all of ours and FBGEMM's have the same optimizer."""
        return self.library

    @property
    def setting(self) -> str:
        """What sets it apart from others of that name, in words."""
        if self.library != OURS:
            return ", ".join([super().setting, self.rows_in] if self.rows_in else [super().setting])
        words = [f"{self.percent:g} % of the rows"]
        if self.percent < 100:
            words += ["direct I/O" if self.direct_io else "page cache", f"prefetch {self.depth or 'off'}"]
        return ", ".join(words)

    def environment(self) -> dict[str, str]:
        """As of others; where rows are on disk, OpenMP's threads sleep at once: who reads rows needs the processors."""
        policy = {"OMP_WAIT_POLICY": "PASSIVE"} if self.library == OURS and self.percent < 100 else {}
        return super().environment() | policy

    def budget(self, workload: Workload) -> int:
        """The memory budget that holds so many of the rows: ours."""
        rows = workload.tables * workload.rows * self.percent / 100
        spare = SPARE_FOR_ALL if self.percent == 100 else SPARE
        return budget_for(int((1 + spare) * rows * cached_row_bytes(workload.dim)))

    def share_in_memory(self, workload: Workload) -> float:
        """Of the rows, what its cache holds: ours. Of small tables the least budget holds more than was asked for."""
        rows = workload.tables * workload.rows
        return min(1.0, cache_share(self.budget(workload)) / (rows * cached_row_bytes(workload.dim)))

    def memory_bytes(self, workload: Workload) -> int:
        """What its process may take, on the safe side."""
        if self.library == OURS:
            return PROCESS_BYTES + self.budget(workload)
        in_host_memory = self.library == FBGEMM and self.rows_in != DEVICE
        return PROCESS_BYTES + (int(1.15 * self.table_bytes(workload)) if in_host_memory else 0)


@dataclass(frozen=True)
class Plan:
    """How long everything takes, in steps.

    Args:
        steps: that are timed, of each contestant, in turns.
        warm_up: at most.
        latency: in a row, of the dense part and of each contestant that `times_latency`; 0 for none.
    """

    steps: int
    warm_up: int
    latency: int

    @property
    def turn(self) -> int:
        """Timed steps of a turn: few enough that there are enough rounds."""
        return min(LONGEST_TURN, math.ceil(self.steps / MIN_ROUNDS))

    @property
    def rounds(self) -> int:
        return math.ceil(self.steps / self.turn)

    @property
    def turn_steps(self) -> int:
        """Steps of all turns, with the first of each, which is not timed."""
        return self.rounds * (self.turn + 1)

    def batches(self, depth: int) -> int:
        """That a contestant needs, if none is to come twice."""
        return self.warm_up + self.turn_steps + WARM_UP_TURNS * (self.turn + 1) + self.latency + 1 + depth


def times_latency(racer: Racer) -> bool:
    """Whether it takes part where each single step counts."""
    return racer.library != OURS or (racer.percent == 10 and not racer.direct_io)


def races(
    budgets: Sequence[float],
    io: Sequence[bool],
    depths: Sequence[int],
    peers: bool,
    threads: int,
    device: str = "cpu",
) -> list[list[Racer]]:
    """One for each budget: the dense part alone, peers where all rows are in memory, then ours.

    Args:
        budgets: percents of the rows.
        io: with direct I/O, or without.
        depths: of prefetch.
        peers: whether there are any.
        threads: of each contestant.
        device: of the dense parts.
    """
    return [
        [
            Racer(DENSE, OPTIMIZER, threads, device=device),
            *(peer_settings(threads, device) if percent == 100 and peers else []),
            *ours(percent, io, depths, threads, device),
        ]
        for percent in budgets
    ]


def builder() -> Racer:
    """Who builds the store."""
    return Racer(OURS, OPTIMIZER, 1)


def peer_settings(threads: int, device: str) -> list[Racer]:
    """Without a GPU FBGEMM's. The dense part wants all threads, so they only differ in whether those spin."""
    if device != "cpu":
        fbgemm = [
            Racer(FBGEMM, OPTIMIZER, threads, device=device, rows_in=place) for place in (DEVICE, MANAGED_CACHING)
        ]
        return [*fbgemm, Racer(EMBEDDING_BAG, "SGD", threads, device=device, rows_in=DEVICE)]
    return [Racer(FBGEMM, OPTIMIZER, threads, spins) for spins in ([True, False] if threads > 1 else [False])]


def ours(percent: float, io: Sequence[bool], depths: Sequence[int], threads: int, device: str) -> list[Racer]:
    """Every kind of reading that differs while rows are on disk."""
    if percent == 100:
        return [Racer(OURS, OPTIMIZER, threads, device=device)]
    return [
        Racer(OURS, OPTIMIZER, threads, device=device, percent=percent, direct_io=direct_io, depth=depth)
        for direct_io in io
        for depth in depths
    ]
