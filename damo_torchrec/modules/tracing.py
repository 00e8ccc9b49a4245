"""Whether a forward is traced, and what is left out of a trace."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def eager(function: F) -> F:
    """Has torch.compile call `function` as it is, between two graphs."""
    called: F = torch.compiler.disable(function)  # type: ignore[no-untyped-call]  # torch's
    return called


def is_traced(features: Any) -> bool:
    """Whether a forward that is given these features is to be one operator of a graph.

    With a batch size for each feature it is not: torch.compile breaks the graph then.
    """
    if is_fx_proxy(features):
        return True
    return torch.compiler.is_compiling() and not features.variable_stride_per_key()


def is_fx_proxy(features: object) -> bool:
    """Whether torch.fx traces the forward that is given these features."""
    return isinstance(features, torch.fx.Proxy)
