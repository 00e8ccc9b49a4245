"""Census Income (https://archive.ics.uci.edu/dataset/2/adult), as in the Wide & Deep tutorial.

The categories and all their pairs become ids by hashing the text: there is no vocabulary to build,
to store, or to serve with the model, and 64 bits leave no collisions to worry about.
"""

import csv
import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
from torchrec.datasets.utils import Batch

from dlrm_data.samples import Samples

CATEGORIES = (
    "workclass",
    "education",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "native-country",
)
CROSSES = tuple(combinations(CATEGORIES, 2))
NUMBERS = ("age", "education-num", "capital-gain", "capital-loss", "hours-per-week")
LOG_SCALED = ("capital-gain", "capital-loss")
DATA_DIRECTORY = Path(__file__).parent.parent / "data"


@cache
def stable_hash(text: str) -> int:
    """A 64-bit signed hash of a text; unlike `hash`, the same in every run and on every machine."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def read_census(path: Path) -> Samples:
    """Reads a gzipped file: 8 categories and 28 pairs as ids, 5 numbers (log-scaled if skewed)."""
    with gzip.open(path, "rt", newline="") as file:
        people = list(csv.DictReader(file, skipinitialspace=True))
    categories = [[person[name] for name in CATEGORIES] for person in people]
    crosses = [["&".join(pair) for pair in combinations(values, 2)] for values in categories]
    texts = (values + pairs for values, pairs in zip(categories, crosses, strict=True))
    dense = np.array([[person[name] for name in NUMBERS] for person in people], dtype=np.float32)
    skewed = [NUMBERS.index(name) for name in LOG_SCALED]
    dense[:, skewed] = np.log1p(dense[:, skewed])
    return Samples(
        dense=dense,
        ids=np.array([[stable_hash(text) for text in row] for row in texts], dtype=np.int64),
        labels=np.array([person["Y"].startswith(">50K") for person in people], dtype=np.float32),
    )


class Census:
    """The whole data set in memory. The training samples come in a new order each epoch."""

    feature_names = CATEGORIES + tuple("_x_".join(pair) for pair in CROSSES)
    dense_features = len(NUMBERS)
    expected_ids = 10_000

    def __init__(self, batch_size: int, seed: int = 0, directory: Path = DATA_DIRECTORY) -> None:
        train = read_census(directory / "adult_train.csv.gz")
        test = read_census(directory / "adult_test.csv.gz")
        # In double precision: over this many rows the sums of single precision are visibly off.
        mean, deviation = (moment(train.dense, axis=0, dtype=np.float64) for moment in (np.mean, np.std))
        self._train, self._test = (
            replace(part, dense=((part.dense - mean) / deviation).astype(np.float32)) for part in (train, test)
        )
        self._batch_size = batch_size
        self._seed = seed
        self.train_size = len(train)

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        order = np.random.default_rng((self._seed, epoch)).permutation(self.train_size)
        for begin in range(first * self._batch_size, self.train_size, self._batch_size):
            yield self._train[order[begin : begin + self._batch_size]].batch(self.feature_names)

    def test_batches(self) -> Iterator[Batch]:
        for begin in range(0, len(self._test), self._batch_size):
            yield self._test[begin : begin + self._batch_size].batch(self.feature_names)
