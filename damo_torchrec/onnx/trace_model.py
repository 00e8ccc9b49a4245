"""From a model to a graph in which each lookup is one node.

The model is copied with a stand-in for each collection of this package: a copy of its dense part alone, that torch.onnx
can export.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from damo_torchrec.modules.collection import Collection
from damo_torchrec.onnx.arguments import Arguments
from damo_torchrec.onnx.names import check_outputs, name_dimensions, name_inputs, name_outputs, strip_prefix
from damo_torchrec.onnx.stand_ins import LookupCall, Rows, Tracer, stand_in_for
from damo_torchrec.onnx.translations import UntranslatableError, translations
from damo_torchrec.onnx.vocabulary import OPSET

_log = logging.getLogger(__name__)

_MODEL = "model"  # what the wrapper calls the model: the prefix of its parameters' names
_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Traced:
    """A model's dense part.

    Args:
        proto: as a graph, in which each lookup is one node.
        calls: its lookups.
        outputs: names of the graph's outputs.
        run: runs the copy that was traced, of inputs by name and with these rows: its outputs, in order, and for each
            lookup what it was given.
        sizes: the dimensions that may have any size, each with those sizes that the graph was made for.
    """

    proto: onnx.ModelProto
    calls: list[LookupCall]
    outputs: list[str]
    run: Callable[[Mapping[str, torch.Tensor], Rows], tuple[list[torch.Tensor], list[list[torch.Tensor]]]]
    sizes: Sequence[Size]


@dataclass(frozen=True)
class Size:
    """A dimension, or several that have one size.

    Args:
        axes: as pairs of an input's name and a dimension of it.
        least: that the graph was made for.
        most: likewise; None: no limit.
    """

    axes: Sequence[tuple[str, int]]
    least: int
    most: int | None


def trace_model(model: nn.Module, arguments: Arguments, output_names: Sequence[str] | None = None) -> Traced:
    """Exports the dense part of a model in eval mode. Parameters keep the names that they have in its state dict.

    Raises:
        ValueError: the model has no collection of this package, or one on the meta device; `output_names` are not as
            many as outputs; outputs are called as inputs or other outputs are.
        RuntimeError: torch.onnx cannot export the dense part; says why.
    """
    tracer = Tracer()
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
            cause = _cause(error)
            raise RuntimeError(f"torch.onnx cannot export the dense part of {type(model).__name__}: {cause}") from error
    assert program is not None
    assert program.exported_program is not None
    proto = program.model_proto
    names = list(output_names) if output_names is not None else tracer.outputs
    if len(names) != len(tracer.outputs):
        raise ValueError(f"output_names must name {len(tracer.outputs)} outputs, got {names}")
    check_outputs(names, arguments.samples)
    name_inputs(proto, arguments.samples)
    strip_prefix(proto, f"{_MODEL}.", names)
    name_outputs(proto, names)
    name_dimensions(proto, arguments)
    return Traced(proto, tracer.calls, names, wrapper.run, _sizes(program.exported_program, arguments))


def _cause(error: BaseException) -> BaseException:
    """What this package says of it, or torch.onnx."""
    own: BaseException | None = error
    while own is not None and not isinstance(own, UntranslatableError):
        own = own.__cause__
    return own or error.__cause__ or error


def _sizes(program: torch.export.ExportedProgram, arguments: Arguments) -> list[Size]:
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    axes: dict[Any, list[tuple[str, int]]] = {}  # by torch's symbol
    for name, placeholder in zip(arguments.samples, program.graph_signature.user_inputs, strict=True):
        shape = placeholders[str(placeholder)].meta["val"].shape
        for axis in arguments.dynamic[name]:
            axes.setdefault(shape[axis].node.expr, []).append((name, axis))
    ranges = {symbol: program.range_constraints.get(symbol) for symbol in axes}
    return [
        Size(axes[symbol], int(found.lower), int(found.upper) if found.upper < _NO_LIMIT else None)
        for symbol, found in ranges.items()
        if found is not None
    ]


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
        arguments, inputs = self._arguments.build(tensors)
        self._tracer.begin(inputs)
        outputs = list(_outputs(self.get_submodule(_MODEL)(*arguments), "output"))
        self._tracer.outputs = [name for name, _ in outputs]
        return tuple(output for _, output in outputs)

    def run(
        self, inputs: Mapping[str, torch.Tensor], rows: Rows
    ) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """As `Traced.run`."""
        self._tracer.rows = rows
        try:
            with quiet(), torch.no_grad():
                outputs = self(tuple(inputs[name] for name in self._arguments.samples))
        finally:
            self._tracer.rows = None
        return list(outputs), self._tracer.found


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
    elif value is None:
        _log.info("the model returns None as %s: its graph has no such output", name)
    else:
        raise TypeError(
            f"the model returns a {type(value).__name__}: a graph gives tensors, and lists and dicts of them"
        )


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
