"""Arrays of NumPy's format, version 1.0: written while they grow, and mapped once their header is what it should be.

``numpy.load`` decides by a file's content what it is, and takes the memory that a header names.
"""

import ast
import math
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from damo_torchrec.errors import CorruptionError

_MAGIC = b"\x93NUMPY\x01\x00"
_LARGEST_HEADER = 1024


def map_array(
    file: Path, dtype: npt.DTypeLike, shape: tuple[int, ...], private: Path | None = None
) -> npt.NDArray[Any]:
    """The array in a file, mapped; in memory if it has no elements.

    Whoever cuts a file that is mapped ends the process that reads it.

    Args:
        file: a regular one.
        dtype: that it must have, little-endian.
        shape: that it must have. In the order of C or of Fortran.
        private: a directory for a copy without a name, which nobody can cut, to be mapped in place of the file.

    Raises:
        CorruptionError: it is none of that dtype and shape.
        OSError: it cannot be read.
    """
    expected = np.dtype(dtype).newbyteorder("<")
    with file.open("rb") as opened:
        beginning = opened.read(len(_MAGIC) + 2)
        length = int.from_bytes(beginning[len(_MAGIC) :], "little")
        if not beginning.startswith(_MAGIC) or length > _LARGEST_HEADER:
            raise CorruptionError(f"{file} is damaged: it is no array of NumPy's format, version 1.0")
        header = _header(file, opened.read(length))
        if (header["descr"], header["shape"]) != (expected.str, shape):
            found = f"{header['descr']!s:.40} {header['shape']!s:.80}"
            raise CorruptionError(f"{file} is damaged: expected {expected.str} {shape}, found {found}")
        offset, n = len(beginning) + length, math.prod(shape)
        if (size := os.fstat(opened.fileno()).st_size) != offset + n * expected.itemsize:
            raise CorruptionError(f"{file} is damaged: {shape} {expected} does not take its {size - offset} bytes")
        order: Any = "F" if header["fortran_order"] else "C"
        if n == 0:  # which cannot be mapped
            return np.empty(shape, expected, order)
        if private is None:
            return np.memmap(opened, expected, "r", offset, shape, order)
        with tempfile.TemporaryFile(dir=private) as copy:
            opened.seek(0)
            shutil.copyfileobj(opened, copy)
            copy.flush()
            if copy.tell() != size:
                raise CorruptionError(f"{file} is damaged: it was {size} bytes, but changed while it was read")
            return np.memmap(copy, expected, "r", offset, shape, order)


def _header(file: Path, text: bytes) -> dict[str, Any]:
    try:
        header = ast.literal_eval(text.decode("latin-1").strip())
        types = {key: type(value) for key, value in header.items()}
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError) as error:
        raise CorruptionError(f"{file} is damaged: its header is {text[:80]!r}") from error
    if types != {"descr": str, "fortran_order": bool, "shape": tuple}:
        raise CorruptionError(f"{file} is damaged: its header is {text[:80]!r}")
    return dict(header)


class ArrayWriter:
    """A file of an array that grows, complete at the end of its ``with``: the header has room for any number of rows.

    Args:
        path: the file's.
        dtype: of the array.
        columns: of a row; none if the array has one dimension.

    Attributes:
        rows: how many there are.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, *columns: int) -> None:
        self.rows = 0
        self._like = np.empty((0, *columns), dtype)
        self._file = path.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        header = np.lib.format.header_data_from_array_1_0(self._like)
        np.lib.format.write_array_header_1_0(self._file, {**header, "shape": (self.rows, *self._like.shape[1:])})

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Adds rows. REQUIRES: they are of the dtype, and in the order of C."""
        self._file.write(rows.data)
        self.rows += len(rows)

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._file.seek(0)
                self._write_header()
