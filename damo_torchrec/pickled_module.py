"""A model's structure as a pickle, for `load_model` without a model. Weights are in the state dict, rows in the store.

Reading a pickle runs what its author put in: `load_model` does it only if it is told to.
"""

import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from damo_torchrec.modules import Collection


def _parameter(shape: torch.Size, dtype: torch.dtype, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=requires_grad)


def _collection(kind: type[Collection], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Collection:
    return kind(*arguments, **keywords)


class _Pickler(pickle.Pickler):
    """Keeps of a parameter what it is like, and of a collection how it was made, without its store."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, nn.Parameter):
            return _parameter, (value.shape, value.dtype, value.requires_grad)
        if isinstance(value, Collection):
            arguments, keywords = value.made_with
            return _collection, (
                type(value),
                arguments,
                {name: argument for name, argument in keywords.items() if name != "store"},
            )
        return NotImplemented


def dump(model: nn.Module) -> bytes:
    """Raises whatever pickle does of what cannot be pickled."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=4).dump(model)
    return buffer.getvalue()


# Modules that earlier releases had, and where what a pickle may name of them is now.
_MOVED = {
    "damo_torchrec.fused_optimizer": "damo_torchrec.modules.fused_optimizer",
    **dict.fromkeys(
        (
            "damo_torchrec.checkpoint",
            "damo_torchrec.checkpoint_manager",
            "damo_torchrec.default_store",
            "damo_torchrec.delta",
            "damo_torchrec.prefetch",
            "damo_torchrec.store",
            "damo_torchrec.swap",
            "damo_torchrec.table",
        ),
        "damo_torchrec",
    ),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, name: str) -> Any:
        return super().find_class(_MOVED.get(module_name, module_name), name)


def load(contents: bytes) -> nn.Module:
    """The model, with parameters of any value, and its collections over `default_store()`. Runs the pickle's code."""
    model = _Unpickler(io.BytesIO(contents)).load()
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a pickled torch.nn.Module, got {type(model).__name__}")
    return model
