"""Damo-Embedding's binary dump: weights by group and key. Its documentation, "Storage", gives the layout.

All numbers are little-endian. The head is one of two: of documentation and releases since dumps list their groups ::

    int32                the number n of groups
    int32 × n            groups
    int32 × n            dims of these groups
    int64 × n            how many keys each has

and of those before ::

    int32 × 256          dims of the groups 0 to 255; 0 for those that are not there
    uint64 × 256         how many keys each has

Records follow up to the end of the file ::

    int64                the key
    int32                its group
    float32 × dim        weights, as many as the group's dim says
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from damo_torchrec import _core
from damo_torchrec.errors import CorruptionError

_MOST_GROUPS = 1 << 16
_GROUPS_BEFORE = 256
_KEY_AND_GROUP = 12  # bytes
_CHUNK = 4 << 20  # bytes that are read at a time
_MOST_AT_ONCE = 4096  # records that are looked at together: groups may take turns


@dataclass(frozen=True)
class DumpedGroup:
    """A group of a dump: `keys` rows of `dim` weights."""

    group: int
    dim: int
    keys: int

    @property
    def record_bytes(self) -> int:
        """Of each of its rows."""
        return _KEY_AND_GROUP + 4 * self.dim


@dataclass(frozen=True)
class _Head:
    size: int  # in bytes
    groups: tuple[DumpedGroup, ...]

    @property
    def file_bytes(self) -> int:
        """Of a whole dump with this head."""
        return self.size + sum(group.keys * group.record_bytes for group in self.groups)


class DamoDump:
    """A dump, of which no more is in memory than some megabytes at a time.

    Args:
        path: a regular file.

    Raises:
        CorruptionError: it has neither head, or another size than its head says.
        OSError: it cannot be read.

    Attributes:
        groups: what its head says, in that order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _open(path) as file:
            self._bytes = os.fstat(file.fileno()).st_size
            self._head = _read_head(path, file, self._bytes)
        self.groups = self._head.groups

    def read(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """All rows as ``(group, keys int64 (n,), weights float32 (n, dim))``, in the order of the file.

        Raises:
            CorruptionError: a record is of a group that the head does not have, or has weights that are not finite; a
                group has another number of records than the head says; or the file has changed meanwhile.
        """
        by_number = {group.group: group for group in self.groups}
        read = dict.fromkeys(by_number, 0)
        with _open(self.path) as file:
            file.seek(self._head.size)
            at, chunk, begin = self._head.size, b"", 0  # the record at this byte begins there in the chunk
            while at < self._bytes:
                if len(chunk) - begin < _KEY_AND_GROUP:
                    chunk, begin = self._more(file, at, chunk[begin:], _KEY_AND_GROUP), 0
                number = int.from_bytes(chunk[begin + 8 : begin + 12], "little", signed=True)
                if number not in by_number:
                    raise self._damaged(at, f"it is of group {number}, which the head does not have")
                group = by_number[number]
                if len(chunk) - begin < group.record_bytes:
                    chunk, begin = self._more(file, at, chunk[begin:], group.record_bytes), 0
                records = _first_of_group(chunk, begin, group)
                self._check(at, group, records)
                read[number] += len(records)
                yield number, records["key"].copy(), records["weights"].copy()
                at, begin = at + records.nbytes, begin + records.nbytes
        for group in self.groups:
            if read[group.group] != group.keys:
                raise CorruptionError(
                    f"{self.path} is damaged: its head says that group {group.group} has {group.keys} keys, but there "
                    f"are {read[group.group]} records of it"
                )

    def _more(self, file: BinaryIO, at: int, chunk: bytes, least: int) -> bytes:
        """A chunk that goes on beyond what is there of the record at byte `at`."""
        chunk += file.read(max(_CHUNK, least - len(chunk)))
        if len(chunk) < least:
            raise self._damaged(at, f"the file ends, which had {self._bytes} bytes")
        return chunk

    def _check(self, at: int, group: DumpedGroup, records: np.ndarray) -> None:
        finite = np.isfinite(records["weights"]).all(axis=1)
        if not finite.all():
            first = int(np.argmin(finite))
            key = records["key"][first]
            raise self._damaged(
                at + first * group.record_bytes, f"weights of key {key} of group {group.group} are not finite"
            )

    def _damaged(self, at: int, what: str) -> CorruptionError:
        return CorruptionError(f"{self.path} is damaged: in the record at byte {at}, {what}")


def _open(path: Path) -> BinaryIO:
    """Raises OSError, also for what is no regular file, which is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return os.fdopen(descriptor, "rb")


def _first_of_group(chunk: bytes, begin: int, group: DumpedGroup) -> np.ndarray:
    """The records from there on, as long as they are of this group, as the first is; no more than some thousands."""
    kind = np.dtype([("key", "<i8"), ("group", "<i4"), ("weights", "<f4", (group.dim,))])
    n = min((len(chunk) - begin) // kind.itemsize, _MOST_AT_ONCE)
    records = np.frombuffer(chunk, kind, n, begin)
    others = records["group"] != group.group
    return records[: int(np.argmax(others))] if others.any() else records


def _read_head(path: Path, file: BinaryIO, size: int) -> _Head:
    """The head by which the file has the size that it has. Raises CorruptionError if there is none."""
    faults = []
    for name, read in (("a list of groups", _head_with_list), ("256 groups", _head_of_256)):
        file.seek(0)
        try:
            head = read(file)
        except ValueError as error:
            faults.append(f"as one with {name}, {error}")
            continue
        if head.file_bytes == size:
            return head
        keys = sum(group.keys for group in head.groups)
        faults.append(
            f"as one with {name}, its head says {len(head.groups)} groups with {keys} keys, which make "
            f"{head.file_bytes} bytes, and the file has {size}"
        )
    raise CorruptionError(f"{path} is no dump of Damo-Embedding, or a damaged one: {'; '.join(faults)}")


def _head_with_list(file: BinaryIO) -> _Head:
    (n,) = _numbers(file, "<i4", 1)
    if not 0 < n <= _MOST_GROUPS:
        raise ValueError(f"its head says {n} groups, expected 1 to {_MOST_GROUPS}")
    groups, dims, keys = (_numbers(file, kind, n) for kind in ("<i4", "<i4", "<i8"))
    return _head(4 + n * 16, groups, dims, keys)


def _head_of_256(file: BinaryIO) -> _Head:
    dims, keys = _numbers(file, "<i4", _GROUPS_BEFORE), _numbers(file, "<u8", _GROUPS_BEFORE)
    there = [group for group in range(_GROUPS_BEFORE) if (dims[group], keys[group]) != (0, 0)]
    if not there:
        raise ValueError("its head has no groups")
    return _head(_GROUPS_BEFORE * 12, there, [dims[group] for group in there], [keys[group] for group in there])


def _head(size: int, groups: list[int], dims: list[int], keys: list[int]) -> _Head:
    found: dict[int, DumpedGroup] = {}
    for group, dim, count in zip(groups, dims, keys, strict=True):
        if not 0 <= group < _MOST_GROUPS or group in found:
            raise ValueError(f"its head has group {group}, expected each once, in 0..{_MOST_GROUPS - 1}")
        if not 0 < dim <= _core.MOST_DIM:
            raise ValueError(f"its head says dim {dim} of group {group}, expected 1 to {_core.MOST_DIM}")
        if count < 0:
            raise ValueError(f"its head says {count} keys of group {group}")
        found[group] = DumpedGroup(group, dim, count)
    return _Head(size, tuple(found.values()))


def _numbers(file: BinaryIO, kind: str, n: int) -> list[int]:
    size = np.dtype(kind).itemsize * n
    content = file.read(size)
    if len(content) < size:
        raise ValueError("the file ends in the head")
    return [int(number) for number in np.frombuffer(content, kind)]
