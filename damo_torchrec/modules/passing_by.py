"""Calls of torch's and TorchRec's that look for embeddings among parameters or by class, and would pass rows by.

Rows are no parameters, and their collections are none of TorchRec's classes: such a call would leave them as they are
without a word. It asks each module of a model for its modules, or for its ``qconfig``; who asks is read off the stack.
"""

import inspect
import warnings
from collections.abc import Collection, Iterator
from types import FrameType
from typing import Any

from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollectionInterface, EmbeddingCollectionInterface

_APPLIES_OPTIMIZER = ("apply_optimizer_in_backward", "_apply_optimizer_in_backward")
_NOT_QUANTIZED = (
    "{}: its rows are in a store, and are not quantized: torch and TorchRec would leave them out without a word. "
    "damo_torchrec.onnx.export and serving.export write a model with its rows, of 8 bits with dtype='int8'"
)


def requires_grad_of_all() -> bool | None:
    """What ``requires_grad_`` of a module is setting for all that is below it, if that is who asks."""
    for frame in _callers():
        if frame.f_code is nn.Module.requires_grad_.__code__:
            return bool(frame.f_locals["requires_grad"])
    return None


def check_who_walks(collection: str) -> None:
    """Raises ValueError if it is for a call that cannot do to rows what it does to weights.

    Args:
        collection: the name of its class.
    """
    for frame in _callers():
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if function in _APPLIES_OPTIMIZER and module.endswith(".apply_optimizer_in_backward"):
            raise ValueError(_with_the_optimizer(collection, frame.f_locals))
        if function == "quantize_inference_model" and module.startswith("torchrec."):
            raise ValueError(_NOT_QUANTIZED.format(collection))


def check_qconfig(collection: str, qconfig: object) -> None:
    """Raises ValueError if a collection is to be quantized, or is passed by where TorchRec's are.

    Quantization of the dense part alone, which sets None here, may go on.
    """
    if qconfig is not None or any(_quantizes_embeddings(frame) for frame in _callers()):
        raise ValueError(_NOT_QUANTIZED.format(collection))


def warn_of_frozen(tables: Collection[str]) -> None:
    """Says which tables of a collection stay frozen where it is thawed."""
    if tables:
        warnings.warn(
            f"the rows of {sorted(tables)} stay as they are: TableOptions(trainable=False) holds for good, and so does "
            "what swap found frozen beside others that were not",
            stacklevel=4,
        )


def _callers() -> Iterator[FrameType]:
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _with_the_optimizer(collection: str, arguments: dict[str, Any]) -> str:
    kind, kwargs = arguments.get("optimizer_class"), arguments.get("optimizer_kwargs")
    given = (
        f"optimizer_type={kind.__module__}.{kind.__qualname__}, optimizer_kwargs={kwargs}"
        if isinstance(kind, type)
        else "optimizer_type=..., optimizer_kwargs=..."
    )
    return (
        f"apply_optimizer_in_backward does not reach the rows of {collection}, which have an optimizer in their "
        f"backward: call it before swap, which takes it over, or give swap, or the collection, {given}. For the dense "
        "part alone, give it a list: list(model.parameters())"
    )


def _quantizes_embeddings(frame: FrameType) -> bool:
    """Whether it is torch's `propagate_qconfig_`, asked to quantize a class of TorchRec's."""
    if frame.f_code.co_name != "propagate_qconfig_":
        return False
    named = frame.f_locals.get("qconfig_dict") or {}
    return any(
        isinstance(name, type) and issubclass(name, EmbeddingBagCollectionInterface | EmbeddingCollectionInterface)
        for name in named
    )
