"""What every contestant trains on: tables of equal size, and batches of Zipf-distributed ids."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from dlrm_data.zipf import Zipf, scatter

__all__ = ["Workload", "Zipf", "scatter"]

# Distinct batches of at least so many ids for each table are made, and then used over and over.
DISTINCT_IDS = 131_072


@dataclass(frozen=True)
class Workload:
    """Tables, batches and the seed of both.

    Args:
        tables: number of tables, one feature each.
        rows: rows of a table, all of which exist before the first step.
        dim: float32 weights of a row.
        batch_size: samples in a step.
        bag: ids of a feature in a sample, pooled by their sum.
        zipf: exponent of the ids' distribution.
        seed: of ids and gradients.
    """

    tables: int = 26
    rows: int = 250_000
    dim: int = 64
    batch_size: int = 4096
    bag: int = 1
    zipf: float = 1.05
    seed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.tables} tables × {self.rows:,} rows, dim {self.dim}, batch {self.batch_size:,}, "
            f"{self.bag} per feature, Zipf {self.zipf:g}"
        )

    def batches(self) -> np.ndarray:
        """Ids from 0 to rows - 1: int64 (batches, tables, batch_size, bag), at least 8 batches."""
        count = max(8, -(-DISTINCT_IDS // (self.batch_size * self.bag)))
        return np.stack([self.feature(table, count) for table in range(self.tables)], axis=1)

    def feature(self, table: int, batches: int, part: int = 0) -> np.ndarray:
        """Ids of a table in so many batches: int64 (batches, batch_size, bag); in each `part` others."""
        rng = np.random.default_rng((self.seed, table, 1 + part))
        ranks = Zipf(self.rows, self.zipf).sample(rng, batches * self.batch_size * self.bag)
        return self.by_popularity(table)[ranks - 1].reshape(batches, self.batch_size, self.bag)

    def by_popularity(self, table: int) -> np.ndarray:
        """A table's ids, int64 (rows,), the most popular one first.

        They are scattered over the table, as hashing and the order of a database scatter them.
        """
        return np.random.default_rng((self.seed, table)).permutation(self.rows)
