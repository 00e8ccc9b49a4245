"""How evenly ids spread over ranks: rows by distinct ids, traffic by occurrences."""

from dataclasses import dataclass

import numpy as np
import torch

from damo_torchrec.distributed import rank_of


@dataclass(frozen=True)
class Balance:
    """The busiest rank over the mean of all: 1 is even.

    Args:
        rows: by distinct ids.
        lookups: by occurrences.
        distinct: by ids that are distinct in each rank's batch, which sequences send once.
        hottest: the share of the most frequent id in all occurrences.
    """

    rows: float
    lookups: float
    distinct: float
    hottest: float


def balance_of(batches: list[np.ndarray], ranks: int) -> Balance:
    """Of ids in the batches of one rank each."""
    ids, counts = np.unique(np.concatenate(batches), return_counts=True)
    owners = rank_of(torch.from_numpy(ids), ranks).numpy()
    once = [rank_of(torch.from_numpy(np.unique(batch)), ranks).numpy() for batch in batches]
    return Balance(
        rows=_unevenness(np.bincount(owners, minlength=ranks)),
        lookups=_unevenness(np.bincount(owners, weights=counts, minlength=ranks)),
        distinct=_unevenness(np.bincount(np.concatenate(once), minlength=ranks)),
        hottest=float(counts.max() / counts.sum()),
    )


def _unevenness(loads: np.ndarray) -> float:
    return float(loads.max() / loads.mean())
