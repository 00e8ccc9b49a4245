"""From the arguments of a model's forward to the inputs of a graph."""

import functools
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

# Sizes that samples are traced with: no two dimensions of a graph should be of one size by chance.
_BATCH = 7
_IDS_PER_BAG = 2


@dataclass(frozen=True)
class FeatureInput:
    """A KeyedJaggedTensor argument: the inputs ``NAME.values``, ``NAME.lengths`` and, if weighted, ``NAME.weights``."""

    name: str
    keys: list[str]
    weighted: bool

    @property
    def inputs(self) -> list[str]:
        """Names of its inputs."""
        return [f"{self.name}.{part}" for part in ("values", "lengths", *(["weights"] if self.weighted else []))]


@dataclass
class Arguments:
    """What a model's forward is called with.

    Args:
        features: its KeyedJaggedTensors.
        tensors: names of its plain tensors.
        samples: by input, what to trace with.
        dynamic: by input, which dimensions may have any size.
        build: the forward's arguments, of tensors in the order of `samples`.
    """

    features: list[FeatureInput] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    samples: dict[str, torch.Tensor] = field(default_factory=dict)
    dynamic: dict[str, dict[int, Any]] = field(default_factory=dict)
    build: Callable[[Sequence[torch.Tensor]], list[Any]] = list


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
        names: of the arguments that are tensors or KeyedJaggedTensors; those of forward's parameters if None.

    Raises:
        TypeError: the arguments do not fit the forward, or one is of a kind that a graph cannot take.
        ValueError: they have no sample, or batch sizes that differ.
    """
    args = args if isinstance(args, tuple) else (args,)
    named = _names(model, args)
    if names is not None:
        of_inputs = [i for i, arg in enumerate(args) if isinstance(arg, KeyedJaggedTensor | torch.Tensor)]
        if len(names) != len(of_inputs):
            raise ValueError(f"input_names must name {len(of_inputs)} arguments, got {list(names)}")
        for i, name in zip(of_inputs, names, strict=True):
            named[i] = name
    for name, arg in zip(named, args, strict=True):
        if not (arg is None or isinstance(arg, KeyedJaggedTensor | torch.Tensor | bool | int | float | str)):
            raise TypeError(
                f"argument {name!r} must be a KeyedJaggedTensor, a tensor or a constant, got {type(arg).__name__}"
            )
    batch = _batch_size(named, args)
    found = Arguments()
    makers: list[Callable[[Sequence[torch.Tensor]], Any]] = []
    for name, arg in zip(named, args, strict=True):
        first = len(found.samples)
        if isinstance(arg, KeyedJaggedTensor):
            feature = FeatureInput(name, list(arg.keys()), arg.weights_or_none() is not None)
            makers.append(_add_features(found, feature, first))
        elif isinstance(arg, torch.Tensor):
            _add_tensor(found, name, arg, batch, (dynamic_axes or {}).get(name, ()))
            makers.append(operator.itemgetter(first))
        else:
            makers.append(functools.partial(_constant, arg))
    found.build = lambda flat: [make(flat) for make in makers]
    return found


def _constant(value: Any, _: Sequence[torch.Tensor]) -> Any:
    return value


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


def _batch_size(names: list[str], args: tuple[Any, ...]) -> int:
    """The number of samples: of the KeyedJaggedTensors, or else of the first tensor."""
    sizes: dict[str, int] = {}
    for name, arg in zip(names, args, strict=True):
        if isinstance(arg, KeyedJaggedTensor):
            if arg.variable_stride_per_key():
                raise ValueError(f"argument {name!r} has a batch size for each key, which cannot be exported")
            sizes[name] = arg.stride()
    if not sizes:
        sizes = {n: a.shape[0] for n, a in zip(names, args, strict=True) if isinstance(a, torch.Tensor) and a.dim()}
        sizes = dict(list(sizes.items())[:1])
    if len(set(sizes.values())) > 1:
        raise ValueError(f"args must have one batch size, got {sizes}")
    if not sizes or min(sizes.values()) == 0:
        raise ValueError("args must have at least one sample to trace the model with")
    return next(iter(sizes.values()))


def _add_features(
    found: Arguments, feature: FeatureInput, first: int
) -> Callable[[Sequence[torch.Tensor]], KeyedJaggedTensor]:
    found.features.append(feature)
    keys = len(feature.keys)
    ids = keys * _BATCH * _IDS_PER_BAG
    samples = [
        torch.zeros(ids, dtype=torch.int64),
        torch.full((keys, _BATCH), _IDS_PER_BAG, dtype=torch.int64),
        torch.ones(ids, dtype=torch.float32),
    ]
    axes = [0, 1, 0]
    for name, sample, axis in zip(feature.inputs, samples, axes, strict=False):
        found.samples[name] = sample
        found.dynamic[name] = {axis: torch.export.Dim.DYNAMIC}

    def make(flat: Sequence[torch.Tensor]) -> KeyedJaggedTensor:
        values, lengths = flat[first], flat[first + 1]
        return KeyedJaggedTensor(
            keys=feature.keys,
            values=values,
            lengths=lengths.reshape(-1),
            weights=flat[first + 2] if feature.weighted else None,
            stride=lengths.shape[1],
        )

    return make


def _add_tensor(found: Arguments, name: str, tensor: torch.Tensor, batch: int, axes: Sequence[int]) -> None:
    found.tensors.append(name)
    sample = tensor.detach().to("cpu")
    dynamic = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
    if sample.dim() > 0 and sample.shape[0] == batch:
        sample = sample[:1].expand(_BATCH, *sample.shape[1:]).contiguous()
        dynamic[0] = torch.export.Dim.DYNAMIC
    found.samples[name] = sample
    found.dynamic[name] = dynamic
