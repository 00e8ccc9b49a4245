"""Rows in NumPy's arrays, of which batches are cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True)
class Jagged:
    """A feature of n rows.

    Args:
        offsets: int64 ``(n + 1,)``: row i has the values from ``offsets[i]`` to ``offsets[i + 1]``.
        values: int64 ``(N,)``.
        weights: float32 ``(N,)``, or None.
    """

    offsets: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class Rows:
    """Rows of a source.

    Args:
        count: n.
        keys: of the features.
        features: in the order of keys; all of them have weights, or none.
        dense: float32 ``(n, D)``.
        labels: float32 ``(n,)`` or ``(n, L)``.
    """

    count: int
    keys: Sequence[str]
    features: Sequence[Jagged]
    dense: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]

    def batch(self, begin: int, end: int) -> Batch:
        """The rows from `begin` to `end`, of tensors with memory of their own."""
        inside = [slice(f.offsets[begin], f.offsets[end]) for f in self.features]
        lengths = [f.offsets[begin + 1 : end + 1] - f.offsets[begin:end] for f in self.features]
        values = [f.values[part] for f, part in zip(self.features, inside, strict=True)]
        weights = [f.weights[part] for f, part in zip(self.features, inside, strict=True) if f.weights is not None]
        return Batch(
            dense_features=torch.from_numpy(self.dense[begin:end].copy()),
            sparse_features=KeyedJaggedTensor(
                keys=list(self.keys),
                values=_joined(values),
                lengths=_joined(lengths),
                weights=_joined(weights) if weights else None,
                stride=end - begin,
            ),
            labels=torch.from_numpy(self.labels[begin:end].copy()),
        )


def _joined(arrays: Sequence[npt.NDArray[Any]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(arrays))
