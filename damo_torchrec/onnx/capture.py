"""From a model to a graph in which each lookup is one node.

The model is copied with a stand-in for each collection of this package: a copy of its dense part alone, that torch.onnx
can export. What a stand-in was asked for in the export is a `LookupCall`; the node carries its number.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from damo_torchrec.modules import Embedding, EmbeddingBagCollection
from damo_torchrec.modules.collection import Collection
from damo_torchrec.modules.definitions import pooling_of
from damo_torchrec.onnx.arguments import Arguments
from damo_torchrec.onnx.translations import translations
from damo_torchrec.onnx.vocabulary import DOMAIN, OPSET, VERSION

NODE = "Lookup"
NUMBER = "number"
_MODEL = "model"  # what the wrapper calls the model: the prefix of its parameters' names


@dataclass(frozen=True)
class LookupOutput:
    """One output of a collection: the bags of a key, from a table.

    Args:
        key: its number in the KeyedJaggedTensor.
        feature: its name.
        table: the table's name.
        dim: of the table's rows.
        mean: whether bags are means; else sums.
        unseen: what ids without a row read as in eval mode: ``"zeros"`` or ``"initial"``.
    """

    key: int
    feature: str
    table: str
    dim: int
    mean: bool
    unseen: str


@dataclass(frozen=True)
class LookupCall:
    """A call of a collection in a graph.

    Args:
        kind: the collection's class.
        path: where it is in the model.
        source: the name of the argument that it is given, or None if the model made it out of arguments.
        num_keys: of its input.
        weighted: whether ids have weights.
        outputs: what it is to give.
        padding: an id that reads zeros whatever its row; None for none.
    """

    kind: str
    path: str
    source: str | None
    num_keys: int
    weighted: bool
    outputs: list[LookupOutput]
    padding: int | None = None


def capture(
    model: nn.Module, arguments: Arguments, output_names: Sequence[str] | None = None
) -> tuple[onnx.ModelProto, list[LookupCall]]:
    """Exports the dense part of a model in eval mode. Parameters keep the names that they have in its state dict.

    Raises:
        ValueError: the model has no collection of this package, or one on the meta device; `output_names` are not as
            many as outputs.
        RuntimeError: torch.onnx cannot export the dense part; says why.
    """
    tracer = _Tracer(arguments)
    wrapper = _Wrapper(_copy(model, tracer), arguments, tracer).eval()
    for parameter in wrapper.parameters():
        parameter.requires_grad_(False)
    with quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                wrapper,
                tuple(arguments.samples.values()),
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


def _copy(model: nn.Module, tracer: _Tracer) -> nn.Module:
    stand_ins: dict[int, Any] = {}
    for path, module in model.named_modules():
        if isinstance(module, Collection):
            stand_ins[id(module)] = _stand_in(module, path, tracer)
    if not stand_ins:
        raise ValueError("the model has no collection of this package: damo.swap puts them in TorchRec's place")
    if id(model) in stand_ins:
        return stand_ins[id(model)]  # type: ignore[no-any-return]
    try:
        return copy.deepcopy(model, stand_ins).to("cpu")
    except Exception as error:  # of whatever kind: it is the model's own code that copies
        raise ValueError(f"the dense part of {type(model).__name__} cannot be copied: {error}") from error


class _Tracer:
    """What the stand-ins were asked for."""

    def __init__(self, arguments: Arguments) -> None:
        self.calls: list[LookupCall] = []
        self.output_names: list[str] = []
        self._given: dict[int, str] = {}
        self._names = [f.name for f in arguments.features]
        self._tensors = arguments.tensors

    def begin(self, arguments: list[Any]) -> None:
        self._features = [a for a in arguments if isinstance(a, KeyedJaggedTensor)]
        self._plain = [a for a in arguments if isinstance(a, torch.Tensor)]

    def source(self, features: Any) -> str | None:
        for name, given in zip([*self._names, *self._tensors], [*self._features, *self._plain], strict=True):
            if features is given:
                return name
        return None

    def add(self, call: LookupCall) -> dict[str, Any]:
        self.calls.append(call)
        return {NUMBER: len(self.calls) - 1}


class _Wrapper(nn.Module):
    """A model whose forward takes and gives tensors alone."""

    def __init__(self, model: nn.Module, arguments: Arguments, tracer: _Tracer) -> None:
        super().__init__()
        self.add_module(_MODEL, model)
        self._arguments = arguments
        self._tracer = tracer

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
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


# ------------------------------------------------------------------ stand-ins


class _StandIn(nn.Module):
    """What a copy of a model has in place of a collection."""

    def __init__(self, collection: Collection, path: str, tracer: _Tracer) -> None:
        super().__init__()
        # Not as a submodule: only for what the model asks it besides.
        self.__dict__["_collection"] = collection
        self._path = path
        self._tracer = tracer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_collection"], name)

    def _call(self, features: Any, keys: list[str], weighted: bool = False, padding: int | None = None) -> LookupCall:
        collection = self.__dict__["_collection"]
        outputs = [
            LookupOutput(
                key=_position(keys, feature),
                feature=feature,
                table=config.name,
                dim=config.embedding_dim,
                mean=pooling_of(config).name == "MEAN",
                unseen=unseen,
            )
            for config, unseen in zip(collection._configs, collection._unseen_in_eval, strict=True)
            for feature in config.feature_names
        ]
        kind = next(c.__name__ for c in type(collection).__mro__ if c.__module__.startswith("damo_torchrec.modules"))
        return LookupCall(kind, self._path, self._tracer.source(features), len(keys), weighted, outputs, padding)


class _Bags(_StandIn):
    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        collection = self.__dict__["_collection"]
        call = self._call(features, features.keys(), collection._is_weighted)
        lengths = _lengths(features)
        inputs = [features.values(), lengths]
        if call.weighted:
            if features.weights_or_none() is None:
                raise ValueError(f"{self._path} is weighted, but the KeyedJaggedTensor in args has no weights")
            inputs.append(features.weights())
        values = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{NODE}",
            inputs,
            attrs=self._tracer.add(call),
            dtype=torch.float32,
            shape=[lengths.shape[1], sum(output.dim for output in call.outputs)],
            version=VERSION,
        )
        return KeyedTensor(keys=collection._embedding_names, length_per_key=collection._dims, values=values)


class _Sequences(_StandIn):
    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        collection = self.__dict__["_collection"]
        call = self._call(features, features.keys())
        lengths, values = _lengths(features), features.values()
        sizes: list[Any] = [values.shape[0]]
        if len(features.keys()) > 1:
            sizes = lengths.sum(1).tolist()
            for size in sizes:
                torch._check_is_size(size)  # type: ignore[no-untyped-call]  # torch's
            torch._check(sum(sizes) == values.shape[0])  # type: ignore[no-untyped-call]  # torch's
        rows = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{NODE}",
            [values, lengths],
            attrs=self._tracer.add(call),
            dtypes=[torch.float32] * len(call.outputs),
            shapes=[[sizes[output.key], output.dim] for output in call.outputs],
            version=VERSION,
        )
        ids = torch.split(values, sizes) if collection._need_indices else None
        return {
            name: JaggedTensor(
                values=of_feature,
                lengths=lengths[output.key],
                weights=ids[output.key] if ids is not None else None,
            )
            for name, output, of_feature in zip(collection._output_names(), call.outputs, rows, strict=True)
        }


class _Rows(_StandIn):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        collection = self.__dict__["_collection"]
        call = self._call(ids, collection.feature_names(), padding=collection.padding_idx)
        rows = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{NODE}",
            [ids.to(torch.int64)],
            attrs=self._tracer.add(call),
            dtype=torch.float32,
            shape=[*ids.shape, collection.dim],
            version=VERSION,
        )
        if call.padding is None:
            return rows
        return rows * (ids != call.padding).unsqueeze(-1).to(rows.dtype)


def _stand_in(collection: Collection, path: str, tracer: _Tracer) -> _StandIn:
    if collection.device.type == "meta":
        raise ValueError(f"{path} is on the meta device: it has no rows to export")
    if isinstance(collection, EmbeddingBagCollection):
        return _Bags(collection, path, tracer)
    return (_Rows if isinstance(collection, Embedding) else _Sequences)(collection, path, tracer)


def _lengths(features: KeyedJaggedTensor) -> torch.Tensor:
    """``(F, B)``."""
    return features.lengths().view(len(features.keys()), -1).to(torch.int64)


def _position(keys: list[str], feature: str) -> int:
    if feature not in keys:
        raise KeyError(f"no feature {feature!r} in the input, whose keys are {keys}")
    return keys.index(feature)


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
