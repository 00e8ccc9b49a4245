"""What torch's autograd engine says of the backward pass that calls: the only place that asks its private interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from damo_torchrec.torch_at_use import torch


def current_task() -> int | None:
    """The number of the backward pass that calls this, which no other pass of the process has; None outside of one.

    A pass inside another, as of a reentrant checkpoint, has a number of its own.
    """
    number: int = torch._C._current_graph_task_id()
    return number if number >= 0 else None


def at_end_of_task(callback: Callable[[], None]) -> None:
    """Has the pass that calls this call `callback` once all of it is done, unless it fails.

    What the callback raises comes out of ``backward()``. The pass alone keeps the callback, which goes with it.
    DistributedDataParallel does its last all-reduce that way.
    """
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def will_execute(node: Any) -> bool:
    """Whether the pass that calls this comes to a node of the graph: one with ``inputs`` does not come to all."""
    executes: bool = torch._C._will_engine_execute_node(node)
    return executes
