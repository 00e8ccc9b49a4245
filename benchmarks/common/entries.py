"""Who takes part in a race, with which optimizer and how many threads."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.workload import Workload

OURS = "damo_torchrec"

# By our optimizer: what each peer runs against it. Where a peer has no such optimizer on the CPU, it has a cheaper one.
PEERS = {
    "sgd": {"FBGEMM": "SGD", "nn.EmbeddingBag": "SGD"},
    "rowwise_adagrad": {"FBGEMM": "RowWiseAdagrad", "nn.EmbeddingBag": "SGD"},
    "adam": {"nn.EmbeddingBag": "SparseAdam"},
}
OUR_OPTIMIZERS = {"sgd": "SGD", "rowwise_adagrad": "RowWiseAdagrad", "adam": "SparseAdam"}
PEER_NAMES = {"fbgemm": "FBGEMM", "embedding_bag": "nn.EmbeddingBag"}

# glibc's malloc keeps what is freed, so that a step takes no pages anew, and torch asks for huge pages, as our cache
# always does.
TUNED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 40),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "THP_MEM_ALLOC_ENABLE": "1",
}

# What a process takes besides its tables: torch, TorchRec, ids, gradients.
PROCESS_BYTES = 768 << 20


@dataclass(frozen=True)
class Entry:
    """A contestant.

    Args:
        library: whose tables.
        optimizer: "SGD", "RowWiseAdagrad" or "SparseAdam".
        threads: that it may use.
        spins: whether OpenMP's threads spin while they wait for work, which peers are faster with.
        tuned_memory: whether the process runs under TUNED_MEMORY.
    """

    library: str
    optimizer: str
    threads: int
    spins: bool = False
    tuned_memory: bool = False

    @property
    def name(self) -> str:
        """Library and optimizer."""
        return f"{self.library}, {self.optimizer}"

    @property
    def setting(self) -> str:
        """Its threads and memory, in words."""
        words = [f"{self.threads} thread{'s' if self.threads > 1 else ''}"]
        words += ["spinning"] * self.spins + ["tuned memory"] * self.tuned_memory
        return ", ".join(words)

    def environment(self) -> dict[str, str]:
        """The variables by which OpenMP, malloc and torch are told."""
        variables = {"OMP_NUM_THREADS": str(self.threads)}
        if self.spins:
            variables["OMP_WAIT_POLICY"] = "ACTIVE"
        return variables | (TUNED_MEMORY if self.tuned_memory else {})

    def table_bytes(self, workload: Workload) -> int:
        """Weights and optimizer state."""
        state = {"SGD": 0, "RowWiseAdagrad": 1, "SparseAdam": 2 * workload.dim}[self.optimizer]
        return workload.tables * workload.rows * 4 * (workload.dim + state)

    def memory_bytes(self, workload: Workload) -> int:
        """What its process may take, on the safe side."""
        return int(1.15 * self.table_bytes(workload)) + PROCESS_BYTES


def entries(optimizer: str, threads: int, peers: Sequence[str], tuned_memory: bool = False) -> list[Entry]:
    """Ours, then each peer that has a counterpart: with as many threads, which spin, and with one."""
    race = [Entry(OURS, OUR_OPTIMIZERS[optimizer], threads, tuned_memory=tuned_memory)]
    for peer in peers:
        library = PEER_NAMES[peer]
        if library not in PEERS[optimizer]:
            continue
        theirs = PEERS[optimizer][library]
        if threads > 1:
            race.append(Entry(library, theirs, threads, spins=True, tuned_memory=tuned_memory))
        race.append(Entry(library, theirs, 1, tuned_memory=tuned_memory))
    return race
