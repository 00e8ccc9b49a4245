"""What a table knows of rows besides their numbers."""

from __future__ import annotations

from dataclasses import dataclass

from damo_torchrec.torch_at_use import torch


@dataclass(frozen=True)
class RowMetadata:
    """What `Table.metadata` returns, by id.

    Args:
        exists: bool ``(n,)``: whether the id has a row. The others are 0 where it has none.
        updates: int64 ``(n,)``: how many updates the row has had since it was made or set; at most 2^32 - 1.
        last_step: int64 ``(n,)``: the table's `iter` at the last of them, or when the row was set; of an id that has
            no row, when it was last seen, where `TableOptions.admit` counts that.
        sightings: int64 ``(n,)``: how often an id that has no row was seen.
    """

    exists: torch.Tensor
    updates: torch.Tensor
    last_step: torch.Tensor
    sightings: torch.Tensor
