"""The mean of a table's rows over all ranks: what ids without a row read by ``unseen_in_eval="mean"``."""

from collections.abc import Sequence

import torch
from torch import distributed

from damo_torchrec.store.table import Table


def mean_of_ranks(table: Table, group: distributed.ProcessGroup, device: torch.device) -> list[float]:
    """The mean of all ranks' rows of a table, one for each column; zeros if there are none. All ranks call it.

    Ranks exchange the means of their own rows, which a rank reads anew only where rows have changed, and add them up in
    their order, in float64: for a number of ranks, the same rows have the same mean, to the bit.

    Args:
        table: with this rank's rows.
        group: of the ranks.
        device: where its collectives take tensors.
    """
    mean = table.mean_weights()
    own = torch.tensor([*mean, len(table)], dtype=torch.float64, device=device)
    told = own.new_empty(group.size() * len(own))
    distributed.all_gather_into_tensor(told, own, group=group)
    return mean_of_all([(mean, int(rows)) for *mean, rows in told.view(-1, len(own)).tolist()])


def mean_of_all(of_ranks: Sequence[tuple[Sequence[float], int]]) -> list[float]:
    """The mean of all ranks' rows, of that of each and how many they are, added up in their order, in float64."""
    sums, rows = torch.zeros(len(of_ranks[0][0]), dtype=torch.float64, device="cpu"), 0
    for mean, n in of_ranks:
        sums = sums + torch.tensor(mean, dtype=torch.float64, device="cpu") * n
        rows += n
    found: list[float] = (sums / max(rows, 1)).to(torch.float32).tolist()
    return found
