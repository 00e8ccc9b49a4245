"""Made-up clicks with Zipf-distributed ids, for any number of tables and rows."""

from collections.abc import Iterator

import numpy as np
from torchrec.datasets.utils import Batch

from dlrm_data.samples import Samples
from dlrm_data.zipf import Zipf, scatter

DENSE_FEATURES = 13
TEST_BATCHES = 20


class Synthetic:
    """`steps` batches an epoch; batch i of epoch e is a function of (seed, e, i) alone.

    The labels follow a hidden linear model of the 13 numbers, so the loss falls; the ids carry no
    signal.
    """

    dense_features = DENSE_FEATURES

    def __init__(
        self,
        batch_size: int,
        tables: int = 26,
        rows_per_table: int = 1_000_000,
        steps: int = 1000,
        exponent: float = 1.05,
        seed: int = 0,
    ) -> None:
        self.feature_names = tuple(f"S{number}" for number in range(1, tables + 1))
        self.expected_ids = rows_per_table
        self.train_size = steps * batch_size
        self._batch_size = batch_size
        self._steps = steps
        self._seed = seed
        self._zipf = Zipf(rows_per_table, exponent)
        self._hidden = np.random.default_rng((seed, 0)).standard_normal(DENSE_FEATURES)

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        for number in range(first, self._steps):
            yield self._batch(1, epoch, number)

    def test_batches(self) -> Iterator[Batch]:
        for number in range(TEST_BATCHES):
            yield self._batch(2, number)

    def _batch(self, *position: int) -> Batch:
        rng = np.random.default_rng((self._seed, *position))
        size = self._batch_size
        dense = rng.standard_normal((size, DENSE_FEATURES), dtype=np.float32)
        ids = [scatter(self._zipf.sample(rng, size), table) for table in range(len(self.feature_names))]
        clicked = rng.random(size) < 1 / (1 + np.exp(-dense @ self._hidden))
        return Samples(dense, np.stack(ids, axis=1), clicked.astype(np.float32)).batch(self.feature_names)
