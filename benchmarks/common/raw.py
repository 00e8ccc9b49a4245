"""RocksDB without our engine, and the disk without RocksDB: what the engine's figures are compared with.

A program in C++ (`benchmarks/csrc`) measures. It opens databases with the engine's options, and is built when it is
first needed.
"""

import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.program import RefusedError

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "benchmarks" / "raw"
TARGET = "raw_rocksdb"
GIB = 1 << 30


@dataclass(frozen=True)
class Rate:
    """How fast rows were read or written.

    Args:
        rows_per_second: over all batches; for writes, with the final flush.
        seconds: of each batch.
        found: rows that there were.
    """

    rows_per_second: float
    seconds: list[float]
    found: int


def multi_get(
    db: Path,
    ids: np.ndarray,
    rows_per_batch: int,
    threads: int,
    direct_io: bool,
    write_rows: int = 0,
    payload_bytes: int = 0,
    *,
    memory_budget: int = GIB,
) -> Rate:
    """`DB::MultiGet` of rows, batch by batch. The files of `db` are not changed.

    Args:
        db: a RocksDB of rows, the directory `rows` of a checkpoint.
        ids: int64 (n, 2), table number and id. Each batch is sorted beforehand; the last one may be smaller.
        rows_per_batch: of reads.
        threads: that share each batch.
        direct_io: past the page cache.
        write_rows: rows written back for each batch, while later ones are read; a batch waits for the writes of the one
            before. They are those of `ids`, over and over.
        payload_bytes: of a row, where rows are written.
        memory_budget: of a store; RocksDB gets the share of it that it has in a store.

    Raises:
        RefusedError: the program cannot be built or fails, for example without direct I/O where that is asked for.
    """
    options = ["--rows-per-batch", rows_per_batch, "--threads", threads, "--memory-budget", memory_budget]
    options += ["--direct"] * direct_io
    if write_rows == 0:
        return _rate("read", db, ids, options)
    with _copy(db) as copy:
        return _rate("read", copy, ids, [*options, "--write-rows", write_rows, "--payload-bytes", payload_bytes])


def write(
    db: Path,
    ids: np.ndarray,
    rows_per_batch: int,
    payload_bytes: int,
    direct_io: bool = False,
    *,
    memory_budget: int = GIB,
) -> Rate:
    """Writes rows of `payload_bytes`, sorted as a store's write-back sorts them, on one thread.

    Arguments and errors are those of `multi_get`. The last flush counts, compactions that are still due do not.
    """
    options = ["--rows-per-batch", rows_per_batch, "--payload-bytes", payload_bytes, "--memory-budget", memory_budget]
    options += ["--direct"] * direct_io
    with _copy(db) as copy:
        return _rate("write", copy, ids, options)


def disk_limit(db: Path, in_flight: int = 64, seconds: float = 2) -> float:
    """Random reads of 4 KiB per second that the disk does for the files of `db`, with direct I/O.

    Raises:
        RefusedError: as for `multi_get`.
    """
    files = sorted(db.glob("*.sst"))
    figures = _run("disk", *files, "--in-flight", in_flight, "--seconds", seconds)
    return float(figures["reads_per_second"])


def _rate(command: str, db: Path, ids: np.ndarray, options: list[Any]) -> Rate:
    if ids.dtype != np.int64 or ids.ndim != 2 or ids.shape[1] != 2:
        raise ValueError(f"ids must be int64 of the shape (n, 2), got {ids.dtype} of {ids.shape}")
    with tempfile.NamedTemporaryFile(prefix="damo-ids-") as file:
        ids.tofile(file)
        file.flush()
        figures = _run(command, db, file.name, *options)
    return Rate(figures["rows_per_second"], figures["seconds"], figures["found"])


@contextmanager
def _copy(db: Path) -> Iterator[Path]:
    """Its files under other names, or copies of them where the file system has no hard links."""
    from damo_torchrec import _core  # here: it imports torch, which reads the environment then

    with tempfile.TemporaryDirectory(prefix="damo-raw-") as directory:
        copy = Path(directory) / "rows"
        _core.link_or_copy_rows(str(db), str(copy))
        yield copy


def _run(*arguments: Any) -> Any:
    process = subprocess.run([program(), *map(str, arguments)], capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise RefusedError(process.stderr.strip() or f"{TARGET} ended with exit code {process.returncode}")
    return json.loads(process.stdout)


@functools.cache
def program() -> Path:
    """Builds it, if it is not there or its sources have changed.

    Raises:
        RefusedError: CMake, a compiler or RocksDB's headers are missing, or it does not compile.
    """
    # The tools of the virtual environment that this runs in come first, whether it is activated or not.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        raise RefusedError(f"CMake is needed to build {TARGET}: pip install cmake, or install the system's package")
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not any((BUILD / made).exists() for made in ("build.ninja", "Makefile")):
            print(f"building {TARGET} in {BUILD}", file=sys.stderr)
            generator = ["-G", "Ninja"] if shutil.which("ninja", path=path) else []
            _call(cmake, "-S", ROOT, "-B", BUILD, *generator, "-DDAMO_BUILD_BENCHMARKS=ON", path=path)
        jobs = len(os.sched_getaffinity(0))
        _call(cmake, "--build", BUILD, "--target", TARGET, "--parallel", jobs, path=path)
    return BUILD / TARGET


def _call(*command: Any, path: str) -> None:
    environment = os.environ | {"PATH": path}
    words = [str(word) for word in command]
    process = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if process.returncode != 0:
        raise RefusedError(f"cannot build {TARGET}: {' '.join(words)} says\n{process.stdout}{process.stderr}".rstrip())
