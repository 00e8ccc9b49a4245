"""The disk that a directory lies on: of what kind it is, and how many random reads it does."""

import mmap
import os
import random
import re
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_IN_MEMORY = ("tmpfs", "ramfs")
_NETWORK = ("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "lustre", "nfs", "nfs4", "smb3", "virtiofs")

SCRATCH_BYTES = 256 << 20
_LEFT_FREE = 10  # of the free space, the scratch file takes this part at most
_LEAST_SCRATCH_BYTES = 16 << 20
_READ_BYTES = 4096
_SECONDS = 0.7  # for each number of threads: Python gives them turns, and counts no more than some 100,000 a second
_THREADS = 32


@dataclass(frozen=True)
class RandomReads:
    """What was measured: aligned reads of 4096 bytes, past the page cache, at random places of a scratch file."""

    file_bytes: int
    one_thread_per_second: int
    median_microseconds: float
    threads: int
    threads_per_second: int


def existing(path: Path) -> Path:
    """The path itself, or the folder above it that is there. Raises ValueError if that is no folder."""
    while not path.exists() and path != path.parent:
        path = path.parent
    if not path.is_dir():
        raise ValueError(f"{path} is no directory")
    return path


def describe(directory: Path, measure: bool) -> dict[str, Any]:
    """A document: ``path``, ``file_system``, ``device``, ``kind``, ``total_bytes``, ``free_bytes``, ``random_reads``.

    ``kind`` is ``memory``, ``network``, ``container layer``, ``virtual``, ``rotating``, ``solid state`` or ``unknown``:
    by what the kernel says, which of a virtual machine's disk knows no more than that.

    Args:
        directory: one that is there.
        measure: whether to measure ``random_reads``: it writes a file of `SCRATCH_BYTES` or less, which has no name.
    """
    file_system, device = mounted_at(Path("/proc/self/mountinfo").read_text(), directory.resolve())
    sizes = os.statvfs(directory)
    free = sizes.f_bavail * sizes.f_frsize
    reads, reason = None, "not asked for"
    if measure:
        try:
            reads, reason = measured_reads(directory, free), ""
        except OSError as error:
            reason = str(error)
    return {
        "path": str(directory),
        "file_system": file_system,
        "device": device,
        "kind": _kind(file_system, directory),
        "total_bytes": sizes.f_blocks * sizes.f_frsize,
        "free_bytes": free,
        "random_reads": asdict(reads) if reads else None,
        "not_measured": reason,
    }


def mounted_at(mountinfo: str, path: Path) -> tuple[str, str]:
    """The type and the source of the file system that a path lies in, by what /proc/self/mountinfo has."""
    best, found = -1, ("unknown", "unknown")
    for line in mountinfo.splitlines():
        fields, _, more = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields.split()[4])
        if (Path(point) == path or Path(point) in path.parents) and len(point) >= best:  # a later one lies over it
            best, found = len(point), (more.split()[0], more.split()[1])
    return found


def _kind(file_system: str, directory: Path) -> str:
    if file_system in _IN_MEMORY:
        return "memory"
    if file_system in _NETWORK or file_system.startswith("fuse."):
        return "network"
    device = os.stat(directory).st_dev
    folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if re.match("(xvd|vd)[a-z]", folder.name):
        return "virtual"
    for candidate in (folder, folder.parent):  # a partition's queue is its disk's
        try:
            rotating = (candidate / "queue" / "rotational").read_text().strip()
        except OSError:
            continue
        return "rotating" if rotating == "1" else "solid state"
    return "container layer" if file_system == "overlay" else "unknown"


def measured_reads(directory: Path, free: int) -> RandomReads:
    """Measures it within some seconds. Raises OSError where there is no direct I/O, or too little space."""
    size = min(SCRATCH_BYTES, free // _LEFT_FREE) // (1 << 20) * (1 << 20)
    if size < _LEAST_SCRATCH_BYTES:
        raise OSError(f"{free} bytes are free: too few for a file of {_LEAST_SCRATCH_BYTES * _LEFT_FREE // 10} bytes")
    with tempfile.TemporaryFile(dir=directory, buffering=0) as scratch:
        for _ in range(0, size, 1 << 20):
            scratch.write(os.urandom(1 << 20))
        os.fsync(scratch.fileno())
        direct = os.open(f"/proc/self/fd/{scratch.fileno()}", os.O_RDONLY | os.O_DIRECT)
        try:
            took = _read(direct, size)
            with ThreadPoolExecutor(_THREADS) as pool:
                many = sum(map(len, pool.map(lambda _: _read(direct, size), range(_THREADS))))
        finally:
            os.close(direct)
    return RandomReads(
        file_bytes=size,
        one_thread_per_second=round(len(took) / _SECONDS),
        median_microseconds=round(1e6 * statistics.median(took), 1),
        threads=_THREADS,
        threads_per_second=round(many / _SECONDS),
    )


def _read(file: int, size: int) -> list[float]:
    """Reads at random places for a while; the seconds that each took."""
    places = random.Random()
    took = []
    with mmap.mmap(-1, _READ_BYTES) as page:  # at an address that direct I/O takes
        began = time.perf_counter()
        end = began + _SECONDS
        while began < end:
            os.preadv(file, [page], places.randrange(size // _READ_BYTES) * _READ_BYTES)
            ended = time.perf_counter()
            took.append(ended - began)
            began = ended
    return took
