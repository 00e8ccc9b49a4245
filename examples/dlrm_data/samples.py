"""What the data sets have in common: samples, and the batches they come in."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torchrec import KeyedJaggedTensor
from torchrec.datasets.utils import Batch


class Dataset(Protocol):
    """Labelled samples of `dense_features` numbers and an int64 id for each of `feature_names`.

    `expected_ids` is the number of distinct ids to expect in a feature: it sets the range of the
    initial weights, and is no limit. `train_size` is the number of training samples, None where
    only reading tells.
    """

    @property
    def feature_names(self) -> Sequence[str]: ...

    @property
    def dense_features(self) -> int: ...

    @property
    def expected_ids(self) -> int: ...

    @property
    def train_size(self) -> int | None: ...

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `first` on; every call gives the same ones."""
        ...

    def test_batches(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Samples:
    """`dense` float32 `(n, D)`, `ids` int64 `(n, F)` and `labels` float32 `(n,)`, 0 or 1."""

    dense: np.ndarray
    ids: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | np.ndarray) -> "Samples":
        return Samples(self.dense[rows], self.ids[rows], self.labels[rows])

    @staticmethod
    def concatenate(parts: Sequence["Samples"]) -> "Samples":
        return Samples(
            np.concatenate([part.dense for part in parts]),
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.labels for part in parts]),
        )

    def batch(self, feature_names: Sequence[str]) -> Batch:
        """The samples as TorchRec's batch; each feature is a bag of one id."""
        return Batch(
            dense_features=torch.from_numpy(np.ascontiguousarray(self.dense)),
            sparse_features=KeyedJaggedTensor(
                keys=list(feature_names),
                values=torch.from_numpy(np.ascontiguousarray(self.ids.T)).view(-1),
                lengths=torch.from_numpy(np.ones(self.ids.size, dtype=np.int32)),
            ),
            labels=torch.from_numpy(np.ascontiguousarray(self.labels)),
        )


def rebatch(chunks: Iterable[Samples], size: int) -> Iterator[Samples]:
    """Cuts chunks of any length into pieces of `size` samples; the last may be shorter."""
    waiting: list[Samples] = []
    for chunk in chunks:
        waiting.append(chunk)
        if sum(map(len, waiting)) < size:
            continue
        whole = Samples.concatenate(waiting)
        end = len(whole) - len(whole) % size
        for begin in range(0, end, size):
            yield whole[begin : begin + size]
        waiting = [whole[end:]] if end < len(whole) else []
    if waiting:
        yield Samples.concatenate(waiting)
