"""Optimizer state of rows, by the names that its optimizer has for its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from damo_torchrec import _core
from damo_torchrec.arrays import as_numbers
from damo_torchrec.store.open_table import Layout
from damo_torchrec.tensors import address
from damo_torchrec.torch_at_use import torch


def read_state(engine: _core.Store, layout: Layout, ids: torch.Tensor) -> torch.Tensor:
    """All state of rows, float32 ``(n, state_size)``; of ids without one that of a new row."""
    state = torch.empty(len(ids), layout.state_size, dtype=torch.float32, device="cpu")
    engine.describe(layout.index, address(ids), len(ids), state=address(state), headers=0, contains=0)
    return state


def check_state(table: str, layout: Layout, n: int, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The state as tensors. Raises as `Table.set_state`."""
    parts = {part.name: part for part in layout.state}
    given = {name: as_numbers(values, f"state[{name!r}]") for name, values in state.items()}
    for name, values in given.items():
        if name not in parts:
            raise ValueError(f"table {table!r}: the optimizer's state is {list(parts)}, got {name!r}")
        shape = (n,) if parts[name].rowwise else (n, layout.dim)
        if tuple(values.shape) != shape:
            raise ValueError(f"table {table!r}: {name} must have the shape {shape}, got {tuple(values.shape)}")
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"table {table!r}: {name} must be finite")
        if parts[name].squares and bool((values < 0).any()):
            raise ValueError(f"table {table!r}: {name} is made of squares, it must not be negative")
    return given
