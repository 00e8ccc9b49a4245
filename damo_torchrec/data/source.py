"""Where rows come from: `Source` says what `Batches` asks of it."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from damo_torchrec.data.columns import Columns


class Source(Protocol):
    """Rows in an order that is the same whenever they are read with the same arguments."""

    @property
    def count(self) -> int | None:
        """How many rows an epoch has; None if that is not known."""

    def read(self, columns: Columns, begin: int, seed: Sequence[int] | None) -> Iterator[pa.RecordBatch]:
        """The rows of an epoch from row `begin` on, of these columns and maybe more.

        Args:
            columns: that are wanted.
            begin: how many rows to leave out.
            seed: of the order; None: as they lie.
        """

    def fingerprint(self) -> dict[str, Any]:
        """What another source has to have in common for a position in this one to be a position in that one."""


def check_columns(columns: Columns, names: Sequence[str], where: str) -> None:
    """Raises ValueError if columns are missing, or there twice."""
    if missing := [name for name in columns.names if name not in names]:
        raise ValueError(f"{where} has no columns {missing}; it has {list(names)}")
    if twice := [name for name in columns.names if names.count(name) > 1]:
        raise ValueError(f"{where} has several columns {twice}")


def permutation(count: int, seed: Sequence[int]) -> npt.NDArray[np.int64]:
    """The same in every version of NumPy, which changes what its newer generators draw."""
    words = [word for number in seed for word in (number & 0xFFFFFFFF, number >> 32)]
    return np.random.RandomState(words).permutation(count)
