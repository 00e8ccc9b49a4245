"""From a model to a graph in which each lookup is one node.

The model is copied with a stand-in for each collection of this package: a copy of its dense part alone, that torch.onnx
can export.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from damo_torchrec.modules.collection import Collection
from damo_torchrec.onnx.arguments import Arguments
from damo_torchrec.onnx.stand_ins import LookupCall, Tracer, stand_in_for
from damo_torchrec.onnx.translations import translations
from damo_torchrec.onnx.vocabulary import OPSET

_MODEL = "model"  # what the wrapper calls the model: the prefix of its parameters' names


def trace_model(
    model: nn.Module, arguments: Arguments, output_names: Sequence[str] | None = None
) -> tuple[onnx.ModelProto, list[LookupCall]]:
    """Exports the dense part of a model in eval mode. Parameters keep the names that they have in its state dict.

    Raises:
        ValueError: the model has no collection of this package, or one on the meta device; `output_names` are not as
            many as outputs.
        RuntimeError: torch.onnx cannot export the dense part; says why.
    """
    tracer = Tracer(arguments)
    wrapper = _Wrapper(_copy(model, tracer), arguments, tracer).eval()
    for parameter in wrapper.parameters():
        parameter.requires_grad_(False)
    with quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                wrapper,
                (tuple(arguments.samples.values()),),
                dynamo=True,
                verbose=False,
                input_names=list(arguments.samples),
                dynamic_shapes=(tuple(arguments.dynamic.values()),),
                opset_version=OPSET,
                custom_translation_table=translations(),
            )
        except Exception as error:
            cause = error.__cause__ or error
            raise RuntimeError(f"torch.onnx cannot export the dense part of {type(model).__name__}: {cause}") from error
    assert program is not None
    proto = program.model_proto
    _strip_prefix(proto, f"{_MODEL}.")
    names = list(output_names) if output_names is not None else tracer.output_names
    if len(names) != len(tracer.output_names):
        raise ValueError(f"output_names must name {len(tracer.output_names)} outputs, got {names}")
    _name_outputs(proto, names)
    _name_dimensions(proto, arguments)
    return proto, tracer.calls


def _copy(model: nn.Module, tracer: Tracer) -> nn.Module:
    stand_ins: dict[int, nn.Module] = {}
    for path, module in model.named_modules():
        if isinstance(module, Collection):
            stand_ins[id(module)] = stand_in_for(module, path, tracer)
    if not stand_ins:
        raise ValueError("the model has no collection of this package: damo.swap puts them in TorchRec's place")
    if id(model) in stand_ins:
        return stand_ins[id(model)]
    try:
        return copy.deepcopy(model, dict[int, Any](stand_ins)).to("cpu")
    except Exception as error:  # of whatever kind: it is the model's own code that copies
        raise ValueError(f"the dense part of {type(model).__name__} cannot be copied: {error}") from error


class _Wrapper(nn.Module):
    """A model whose forward takes and gives tensors alone."""

    def __init__(self, model: nn.Module, arguments: Arguments, tracer: Tracer) -> None:
        super().__init__()
        self.add_module(_MODEL, model)
        self._arguments = arguments
        self._tracer = tracer

    # One argument: torch 2.9 cannot say of several, ``*tensors``, what it assumes of their sizes.
    def forward(self, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        arguments = self._arguments.build(tensors)
        self._tracer.begin(arguments)
        named = dict(_outputs(self.get_submodule(_MODEL)(*arguments), "output"))
        self._tracer.output_names = list(named)
        return tuple(named.values())


def _outputs(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in what a model returns, with names."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, KeyedTensor):
        yield name, value.values()
    elif isinstance(value, JaggedTensor):
        yield f"{name}.values", value.values()
        yield f"{name}.lengths", value.lengths()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _outputs(item, str(key) if name == "output" else f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _outputs(item, f"{name}_{i}")
    elif value is not None:
        raise TypeError(
            f"the model returns a {type(value).__name__}: a graph gives tensors, and lists and dicts of them"
        )


# ------------------------------------------------------------------ names


def _strip_prefix(proto: onnx.ModelProto, prefix: str) -> None:
    renamed = {i.name: i.name.removeprefix(prefix) for i in proto.graph.initializer if i.name.startswith(prefix)}
    _rename(proto, renamed)


def _rename(proto: onnx.ModelProto, renamed: dict[str, str]) -> None:
    for initializer in proto.graph.initializer:
        initializer.name = renamed.get(initializer.name, initializer.name)
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    del proto.graph.value_info[:]


def _name_outputs(proto: onnx.ModelProto, names: list[str]) -> None:
    """An output that is an input, or another output, is copied."""
    taken = {value.name for value in (*proto.graph.input, *proto.graph.initializer)}
    renamed: dict[str, str] = {}
    copies = []
    for output, name in zip(proto.graph.output, names, strict=True):
        if output.name in taken or output.name in renamed:
            copies.append((output.name, name))
        else:
            renamed[output.name] = name
        output.name = name
    _rename(proto, renamed)
    for source, name in copies:
        proto.graph.node.append(onnx.helper.make_node("Identity", [renamed.get(source, source)], [name]))


def _name_dimensions(proto: onnx.ModelProto, arguments: Arguments) -> None:
    """Calls sizes what they are instead of torch's ``s37``."""
    shapes = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.input}
    renamed: dict[str, str] = {}
    for feature in arguments.features:
        values, lengths, *_ = feature.inputs
        renamed.setdefault(shapes[lengths][1].dim_param, "batch")
        renamed.setdefault(shapes[values][0].dim_param, f"{feature.name}.ids")
    for name in arguments.tensors:
        for axis in arguments.dynamic[name]:
            renamed.setdefault(shapes[name][axis].dim_param, "batch" if axis == 0 else f"{name}.{axis}")
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in renamed:
                dim.dim_param = renamed[dim.dim_param]


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what torch.onnx says of itself: of packages that it could use, and of its own deprecated calls."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx._symbolic_trace", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
