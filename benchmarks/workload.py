"""What every contestant trains on: tables of equal size, and batches of Zipf-distributed ids."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from dlrm_data.zipf import Zipf  # noqa: E402: it is in the folder above

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
        """Ids from 0 to rows - 1: int64 (batches, tables, batch_size, bag), at least 8 batches.

        Popular ids are scattered over each table, as hashing and the order of a database scatter them.
        """
        ids_per_batch = self.batch_size * self.bag
        count = max(8, -(-DISTINCT_IDS // ids_per_batch))
        batches = np.empty((count, self.tables, self.batch_size, self.bag), dtype=np.int64)
        zipf = Zipf(self.rows, self.zipf)
        for table in range(self.tables):
            rng = np.random.default_rng((self.seed, table))
            id_of_rank = rng.permutation(self.rows)
            ranks = zipf.sample(rng, count * ids_per_batch)
            batches[:, table] = id_of_rank[ranks - 1].reshape(count, self.batch_size, self.bag)
        return batches
