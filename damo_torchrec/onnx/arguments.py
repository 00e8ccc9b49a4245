"""From the arguments of a model's forward to the inputs of a graph."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from damo_torchrec.onnx.containers import Parts, Path, take_apart

# Sizes that samples are traced with: no two dimensions of a graph should be of one size by chance.
_BATCH = 7
_IDS_PER_BAG = 2


@dataclass(frozen=True)
class JaggedInput:
    """A JaggedTensor argument: the inputs ``NAME.values``, ``NAME.lengths`` and, if weighted, ``NAME.weights``."""

    name: str
    weighted: bool

    @property
    def inputs(self) -> list[str]:
        """Names of its inputs."""
        return [f"{self.name}.{part}" for part in ("values", "lengths", *(["weights"] if self.weighted else []))]


@dataclass(frozen=True)
class FeatureInput(JaggedInput):
    """The same for a KeyedJaggedTensor."""

    keys: list[str]


@dataclass
class Arguments:
    """What a model's forward is called with.

    Args:
        features: its KeyedJaggedTensors.
        jagged: its JaggedTensors.
        tensors: names of its plain tensors.
        given: by input, what it was called with.
        samples: by input, what to trace with.
        dynamic: by input, which dimensions may have any size.
        makers: by path, what makes a leaf, a KeyedJaggedTensor for example, of inputs by name.
        parts: of each argument.
    """

    features: list[FeatureInput] = field(default_factory=list)
    jagged: list[JaggedInput] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    given: dict[str, torch.Tensor] = field(default_factory=dict)
    samples: dict[str, torch.Tensor] = field(default_factory=dict)
    dynamic: dict[str, dict[int, Any]] = field(default_factory=dict)
    makers: dict[Path, tuple[str, Callable[[Mapping[str, torch.Tensor]], Any]]] = field(default_factory=dict)
    parts: list[Parts] = field(default_factory=list)

    def build(self, tensors: Sequence[torch.Tensor]) -> tuple[list[Any], dict[str, Any]]:
        """The forward's arguments, of tensors in the order of `samples`; and these tensors and the leaves, by name."""
        inputs = dict(zip(self.samples, tensors, strict=True))
        leaves = {path: make(inputs) for path, (_, make) in self.makers.items()}
        named = {name: leaves[path] for path, (name, _) in self.makers.items()}
        return [parts.make(leaves) for parts in self.parts], inputs | named

    def shortened(self, longest: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """What was given, but for ids of bags beyond these lengths, by key."""
        inputs = dict(self.given)
        for feature in self.features:
            limits = torch.tensor([[longest.get(key, 2**62)] for key in feature.keys])
            lengths = inputs[feature.inputs[1]]
            kept = lengths.minimum(limits)
            bags = lengths.reshape(-1)
            begin = (bags.cumsum(0) - bags).repeat_interleave(bags)
            inside = torch.arange(len(begin)) - begin < kept.reshape(-1).repeat_interleave(bags)
            inputs[feature.inputs[1]] = kept
            for name in (feature.inputs[0], *feature.inputs[2:]):
                inputs[name] = inputs[name][inside]
        return inputs


def read_arguments(
    model: nn.Module,
    args: Any,
    dynamic_axes: Mapping[str, Sequence[int]] | None = None,
    names: Sequence[str] | None = None,
) -> Arguments:
    """Looks at what a model's forward is called with.

    Args:
        model: the model.
        args: a tuple of arguments, or the only one.
        dynamic_axes: by input, dimensions of any size besides the first one of each tensor.
        names: of the tensors, JaggedTensors and KeyedJaggedTensors, in their order; None: those of forward's
            parameters, and of fields where a parameter holds several.

    Raises:
        TypeError: the arguments do not fit the forward, or one is of a kind that a graph cannot take.
        ValueError: they have no sample, batch sizes that differ, or inputs of one name.
    """
    args = args if type(args) is tuple else (args,)
    found = Arguments(parts=[take_apart(arg, (name,)) for name, arg in zip(_names(model, args), args, strict=True)])
    leaves = {path: leaf for parts in found.parts for path, leaf in parts.leaves.items()}
    named = _leaf_names(list(leaves), names)
    batch = _batch_size({named[path]: leaf for path, leaf in leaves.items()})
    for path, leaf in leaves.items():
        name = named[path]
        if isinstance(leaf, torch.Tensor):
            make: Callable[..., Any] = _add_tensor(found, name, leaf, batch, (dynamic_axes or {}).get(name, ()))
        elif isinstance(leaf, KeyedJaggedTensor):
            make = _add_features(found, name, leaf)
        else:
            make = _add_jagged(found, name, leaf)
        found.makers[path] = (name, make)
    return found


def _names(model: nn.Module, args: tuple[Any, ...]) -> list[str]:
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args)
    except TypeError as error:
        raise TypeError(f"args do not fit {type(model).__name__}.forward{signature}: {error}") from error
    names: list[str] = []
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{name}_{i}" for i in range(len(value))]
        else:
            names.append(name)
    return names


def _leaf_names(paths: Sequence[Path], names: Sequence[str] | None) -> dict[Path, str]:
    """Fields by their own names, or with their argument's before them where two would have one."""
    if names is not None and len(names) != len(paths):
        raise ValueError(f"input_names must name {len(paths)} arguments, got {list(names)}")
    chosen = list(names) if names is not None else [".".join(path[1:] or path) for path in paths]
    if names is None and len(set(chosen)) < len(chosen):
        chosen = [".".join(path) for path in paths]
    if twice := sorted({name for name in chosen if chosen.count(name) > 1}):
        raise ValueError(f"inputs must have names of their own, got {twice} twice")
    return dict(zip(paths, chosen, strict=True))


def _batch_size(leaves: Mapping[str, Any]) -> int:
    """The number of samples: of jagged tensors, or else of the first tensor."""
    sizes: dict[str, int] = {}
    for name, leaf in leaves.items():
        if isinstance(leaf, KeyedJaggedTensor):
            if leaf.variable_stride_per_key():
                raise ValueError(f"argument {name!r} has a batch size for each key, which cannot be exported")
            sizes[name] = leaf.stride()
        elif isinstance(leaf, JaggedTensor):
            sizes[name] = leaf.lengths().numel()
    if not sizes:
        sizes = {n: a.shape[0] for n, a in leaves.items() if isinstance(a, torch.Tensor) and a.dim()}
        sizes = dict(list(sizes.items())[:1])
    if len(set(sizes.values())) > 1:
        raise ValueError(f"args must have one batch size, got {sizes}")
    if not sizes or min(sizes.values()) == 0:
        raise ValueError("args must have at least one sample to trace the model with")
    return next(iter(sizes.values()))


def _add(found: Arguments, name: str, given: torch.Tensor, sample: torch.Tensor, dynamic: Sequence[int]) -> None:
    if name in found.samples or not name:
        raise ValueError(f"inputs must have names of their own, got {name!r}{' twice' if name else ''}")
    found.given[name] = given.detach().to("cpu")
    found.samples[name] = sample
    found.dynamic[name] = dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC)


def _add_features(found: Arguments, name: str, features: KeyedJaggedTensor) -> Callable[..., KeyedJaggedTensor]:
    keys = list(features.keys())
    feature = FeatureInput(name, features.weights_or_none() is not None, keys)
    found.features.append(feature)
    ids = len(keys) * _BATCH * _IDS_PER_BAG
    given = [features.values().to(torch.int64), features.lengths().to(torch.int64).reshape(len(keys), -1)]
    samples = [
        torch.zeros(ids, dtype=torch.int64),
        torch.full((len(keys), _BATCH), _IDS_PER_BAG, dtype=torch.int64),
        torch.ones(ids, dtype=torch.float32),
    ]
    if feature.weighted:
        given.append(features.weights().to(torch.float32))
    for part, of_args, sample, axis in zip(feature.inputs, given, samples, (0, 1, 0), strict=False):
        _add(found, part, of_args, sample, [axis])

    def make(inputs: Mapping[str, torch.Tensor]) -> KeyedJaggedTensor:
        values, lengths, *weights = (inputs[part] for part in feature.inputs)
        return KeyedJaggedTensor(
            keys=keys,
            values=values,
            lengths=lengths.reshape(-1),
            weights=weights[0] if weights else None,
            stride=lengths.shape[1],
        )

    return make


def _add_jagged(found: Arguments, name: str, jagged: JaggedTensor) -> Callable[..., JaggedTensor]:
    of_args = jagged.weights_or_none()
    part = JaggedInput(name, of_args is not None)
    found.jagged.append(part)
    given = [jagged.values(), jagged.lengths().to(torch.int64), *([] if of_args is None else [of_args])]
    items = _BATCH * _IDS_PER_BAG
    samples = [tensor.detach().to("cpu").new_ones(items, *tensor.shape[1:]) for tensor in given]
    samples[0].zero_()
    samples[1] = torch.full((_BATCH,), _IDS_PER_BAG, dtype=torch.int64)
    for input_name, tensor, sample in zip(part.inputs, given, samples, strict=True):
        _add(found, input_name, tensor, sample, [0])

    def make(inputs: Mapping[str, torch.Tensor]) -> JaggedTensor:
        values, lengths, *weights = (inputs[input_name] for input_name in part.inputs)
        return JaggedTensor(values=values, lengths=lengths, weights=weights[0] if weights else None)

    return make


def _add_tensor(
    found: Arguments, name: str, tensor: torch.Tensor, batch: int, axes: Sequence[int]
) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
    found.tensors.append(name)
    sample = tensor.detach().to("cpu")
    dynamic = list(axes)
    if sample.dim() > 0 and sample.shape[0] == batch:
        sample = sample[:1].expand(_BATCH, *sample.shape[1:]).contiguous()
        dynamic.append(0)
    _add(found, name, tensor, sample, dynamic)
    return lambda inputs: inputs[name]
