"""Whether a graph is as free in its sizes as its model is.

torch traces a forward with one batch. What the forward decides by the size of that batch is decided for good.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from damo_torchrec.onnx.arguments import Arguments
from damo_torchrec.onnx.samples import Batch, Changes, Inputs, any_rows
from damo_torchrec.onnx.trace_model import Size, Traced

# Batches that each graph is tried with, besides the one that the model was called with.
_BATCHES = (1, 2, 3, 7)
# torch may take 0 and 1 for special: its own limits are no decision of the model's.
_LEAST = 2
_MOST_TRIED = 2**16


def check_sizes(traced: Traced, arguments: Arguments) -> None:
    """Raises ValueError where a graph has sizes that it was not made for, and its model takes them."""
    for size in traced.sizes:
        beyond = size.least - 1 if size.least > _LEAST else None if size.most is None else size.most + 1
        if beyond is not None and _takes(traced, arguments, size, beyond):
            name, axis = size.axes[0]
            limit = f"at least {size.least}" if beyond < size.least else f"at most {size.most}"
            raise ValueError(
                f"the model's forward decides something by the size of dimension {axis} of {name!r}, which must be "
                f"free: its graph would answer as the model does only where that is {limit}. Have it compute the same "
                "for every size, or leave that branch out of what is exported"
            )


def batches_like(arguments: Arguments, longest: Mapping[str, int]) -> Iterator[tuple[int, Inputs]]:
    """Small batches of samples that a model was called with, with their sizes.

    Args:
        arguments: the samples.
        longest: as of `Arguments.shortened`.
    """
    shortened = replace(arguments, given=arguments.shortened(longest))
    for size in _BATCHES:
        yield size, Batch(shortened, Changes(), size).inputs(0, size)


def _takes(traced: Traced, arguments: Arguments, size: Size, length: int) -> bool:
    jagged = [*arguments.features, *arguments.jagged]
    if length > _MOST_TRIED or {part.inputs[0] for part in jagged} & {name for name, _ in size.axes}:
        return True  # a number of ids is no size that can be had of batches
    if {part.inputs[1] for part in jagged} & {name for name, _ in size.axes} or all(a == 0 for _, a in size.axes):
        inputs = Batch(arguments, Changes(), length).inputs(0, length)
    else:
        inputs = dict(arguments.given)
        for name, axis in size.axes:
            of_axis = torch.arange(length) % inputs[name].shape[axis]
            inputs[name] = inputs[name].index_select(axis, of_axis)
    try:
        traced.run(inputs, any_rows)
    except Exception:  # of whatever kind: it is the model's own code, and its own limit
        return False
    return True
