"""What to improve, by what ``damo-torchrec doctor`` has found."""

import sys
from collections.abc import Iterator
from typing import Any

from damo_torchrec import _core

# Below it RocksDB closes files that it will read again (csrc/storage_rocksdb/rocksdb_options.cc).
_OPEN_FILES = 16384
_SLOW_READS = 20_000  # a second, by many threads: solid-state disks do some ten thousands or more
_LITTLE_SPACE = 0.1
_LEAST_PYTHON_FOR_ONNX = (3, 11)


def advice(document: dict[str, Any]) -> list[str]:
    """Sentences, the most important ones first; none where all is well.

    Args:
        document: of doctor, but for the advice.
    """
    return [*_of_environment(document["environment"]), *_of_disk(document["disk"]), *_of_limits(document["limits"])]


def size(count: int) -> str:
    """Bytes as people read them, to three digits: "1.86 GiB"."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"


def _of_environment(environment: dict[str, Any]) -> Iterator[str]:
    if environment["message"]:
        yield environment["message"]
    if environment["versions"]["onnxruntime"] is None:
        if sys.version_info < _LEAST_PYTHON_FOR_ONNX:
            yield "Exporting and serving need ONNX Runtime 1.25 or later, and so Python 3.11 or later."
        else:
            yield "Exporting and serving need ONNX Runtime: pip install 'damo-torchrec[onnx]'."
    if _core.INSTRUCTION_SETS == ("plain",):
        yield "The kernels in use are the plain ones: this processor has none of the wider instruction sets."


def _of_disk(storage: dict[str, Any]) -> Iterator[str]:
    where = storage["path"]
    if storage["kind"] == "network":
        yield f"{where} lies on a network: a store belongs on a local disk, and copies of checkpoints may be here."
    if storage["kind"] == "memory":
        yield f"{where} lies in memory: what is written there is gone with the machine, and takes memory from the rest."
    if storage["kind"] == "container layer":
        yield f"{where} lies in the container's own layer and goes with it: mount a volume for stores."
    reads = storage["random_reads"]
    if reads and reads["threads_per_second"] < _SLOW_READS:
        seconds = 10_000 / max(1, reads["threads_per_second"])
        yield (
            f"The disk does {reads['threads_per_second']:,} random reads a second: a batch with 10,000 rows that are "
            f"not in the memory budget waits {seconds:.2g} s for them. Give the store a solid-state disk, or a budget "
            "that holds the rows in use."
        )
    if storage["free_bytes"] < _LITTLE_SPACE * storage["total_bytes"]:
        yield (
            f"{size(storage['free_bytes'])} are free at {where}: StoreOptions(disk_budget=...) refuses growth before "
            "the disk is full."
        )


def _of_limits(limit: dict[str, Any]) -> Iterator[str]:
    memory = limit["memory_limit_bytes"]
    if memory is not None and memory < limit["memory_bytes"]:
        yield (
            f"This process may use {size(memory)} of the machine's {size(limit['memory_bytes'])}: memory_budget is a "
            "part of that, beside torch, the dense model and its batches."
        )
    quota = limit["core_quota"]
    if quota is not None and quota < limit["cores_usable"]:
        threads = max(1, int(quota))
        yield (
            f"A quota leaves {quota:g} of {limit['cores_usable']} processors: StoreOptions(num_threads={threads}) and "
            f"OMP_NUM_THREADS={threads} keep threads from waiting for each other."
        )
    if limit["open_files"] < _OPEN_FILES:
        yield (
            f"{limit['open_files']:,} files may be open: from {_OPEN_FILES:,} on a large store keeps all of its files "
            f"open (ulimit -n {_OPEN_FILES})."
        )
