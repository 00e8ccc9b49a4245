"""Distributions of a row's initial weights.

A row's initial weights depend on (seed, table name, id) alone, so a row is the same whenever it is first seen, on any
machine. They are drawn with Philox4x32-10 (Salmon et al. 2011).
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from damo_torchrec import _core

if TYPE_CHECKING:
    from torchrec.modules.embedding_configs import BaseEmbeddingConfig


@dataclass(frozen=True)
class Initializer:
    """Base of the initializers."""

    def to_core(self, num_embeddings: int, dim: int) -> _core.Initializer:
        """The engine's form of it, for a table of this expected size."""
        raise TypeError(f"{type(self).__name__} is not an initializer: use one of damo.init's")


@dataclass(frozen=True)
class Constant(Initializer):
    """All weights are `value`, as with `torch.nn.init.constant_`."""

    value: float = 0.0

    def to_core(self, num_embeddings: int, dim: int) -> _core.Initializer:
        """The engine's form of it."""
        return _to_core(_core.Distribution.CONSTANT, self.value, 0)


@dataclass(frozen=True)
class Uniform(Initializer):
    """Uniform in [low, high), as with `torch.nn.init.uniform_`."""

    low: float = 0.0
    high: float = 1.0

    def to_core(self, num_embeddings: int, dim: int) -> _core.Initializer:
        """The engine's form of it."""
        if self.low > self.high:
            raise ValueError(f"Uniform needs low <= high, got {self.low} and {self.high}")
        return _to_core(_core.Distribution.UNIFORM, self.low, self.high)


@dataclass(frozen=True)
class Normal(Initializer):
    """Normal with this mean and standard deviation, as with `torch.nn.init.normal_`."""

    mean: float = 0.0
    std: float = 1.0

    def to_core(self, num_embeddings: int, dim: int) -> _core.Initializer:
        """The engine's form of it."""
        _check_std(self)
        return _to_core(_core.Distribution.NORMAL, self.mean, self.std)


@dataclass(frozen=True)
class TruncatedNormal(Initializer):
    """Normal, redrawn outside of [low, high], as with `torch.nn.init.trunc_normal_`."""

    mean: float = 0.0
    std: float = 1.0
    low: float = -2.0
    high: float = 2.0

    def to_core(self, num_embeddings: int, dim: int) -> _core.Initializer:
        """The engine's form of it."""
        _check_std(self)
        if self.std == 0 or not self.low < self.high:
            raise ValueError(f"TruncatedNormal needs std > 0 and low < high, got {self}")
        low, high = (self.low - self.mean) / self.std, (self.high - self.mean) / self.std
        # Quantiles near 1 have few bits to tell them apart: the upper half is drawn as the lower one, mirrored.
        mirrored = low + high > 0
        core = _to_core(_core.Distribution.NORMAL, self.mean, -self.std if mirrored else self.std)
        core.low, core.high = (_cdf(-high), _cdf(-low)) if mirrored else (_cdf(low), _cdf(high))
        if not core.low < core.high:
            raise ValueError(f"TruncatedNormal's interval holds nothing of the distribution: {self}")
        return core


@dataclass(frozen=True)
class XavierUniform(Initializer):
    """Uniform in ±gain · √(6 / (num_embeddings + embedding_dim)), as `torch.nn.init.xavier_uniform_`.

    From Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks" (AISTATS 2010).

    `num_embeddings` is that of the table's config: the number of ids that are expected.
    """

    gain: float = 1.0

    def to_core(self, num_embeddings: int, dim: int) -> _core.Initializer:
        """The engine's form of it."""
        bound = self.gain * math.sqrt(6 / (num_embeddings + dim))
        return _to_core(_core.Distribution.UNIFORM, -bound, bound)


def from_config(config: "BaseEmbeddingConfig") -> Initializer:
    """The initializer that a TorchRec config's ``init_fn`` names.

    Raises:
        ValueError: ``init_fn`` is not one of torch.nn.init's functions that has a counterpart here, or a
            `functools.partial` of one. A Python function cannot be called for each new row.
    """
    import torch  # which a manifest, whose initializers are read here, too, does not need

    init_fn = config.init_fn
    if init_fn is None:
        return Uniform(config.get_weight_init_min(), config.get_weight_init_max())
    function: Any = init_fn
    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    if isinstance(init_fn, functools.partial):
        function, args, keywords = init_fn.func, init_fn.args, dict(init_fn.keywords)
    for name, make in _TORCH_INIT.items():
        known = getattr(torch.nn.init, name)
        if function is known:
            keywords.pop("generator", None)  # rows draw from the store's seed
            bound = inspect.signature(known).bind(None, *args, **keywords)
            bound.apply_defaults()
            return make(bound.arguments)
    raise ValueError(
        f"table {config.name!r}: init_fn {init_fn!r} is not one of torch.nn.init's "
        f"{', '.join(_TORCH_INIT)} (or a functools.partial of one); pass "
        f"table_options={{{config.name!r}: TableOptions(initializer=damo.init...)}} instead"
    )


def describe(initializer: Initializer, num_embeddings: int, dim: int) -> dict[str, float | str]:
    """The initializer as it stands in a manifest, for a table of this expected size."""
    description: dict[str, float | str] = {"name": type(initializer).__name__, **asdict(initializer)}
    if isinstance(initializer, XavierUniform):
        description["num_embeddings"] = num_embeddings
    return description


def from_description(description: Mapping[str, float | str]) -> tuple[Initializer, int]:
    """The inverse of `describe`: an initializer, and the expected size of the table, 1 where it does not count.

    Raises:
        ValueError: this version does not know it.
    """
    arguments = dict(description)
    kind = _KINDS.get(str(arguments.pop("name", None)))
    num_embeddings = arguments.pop("num_embeddings", 1)
    try:
        if kind is None:
            raise TypeError("no initializer has this name")
        return kind(**arguments), int(num_embeddings)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"the initializer {dict(description)} is not known here: {error}") from error


_KINDS: dict[str, Callable[..., Initializer]] = {
    kind.__name__: kind for kind in (Constant, Uniform, Normal, TruncatedNormal, XavierUniform)
}

# By the name of the function in torch.nn.init.
_TORCH_INIT: dict[str, Callable[[dict[str, Any]], Initializer]] = {
    "uniform_": lambda a: Uniform(a["a"], a["b"]),
    "normal_": lambda a: Normal(a["mean"], a["std"]),
    "trunc_normal_": lambda a: TruncatedNormal(a["mean"], a["std"], a["a"], a["b"]),
    "constant_": lambda a: Constant(a["val"]),
    "zeros_": lambda _: Constant(0.0),
    "ones_": lambda _: Constant(1.0),
    "xavier_uniform_": lambda a: XavierUniform(a["gain"]),
}


_LARGEST = float(np.finfo(np.float32).max)


def _cdf(z: float) -> float:
    """The standard normal distribution function, exact in the lower tail, too."""
    return math.erfc(-z / math.sqrt(2)) / 2


def _check_std(initializer: Normal | TruncatedNormal) -> None:
    if initializer.std < 0:
        raise ValueError(f"std must not be negative, got {initializer}")


def _to_core(distribution: _core.Distribution, a: float, b: float) -> _core.Initializer:
    if not all(abs(number) <= _LARGEST for number in (a, b, b - a)):
        raise ValueError(f"an initializer's numbers must be finite in float32, got {a} and {b}")
    core = _core.Initializer()
    core.distribution, core.a, core.b = distribution, a, b
    return core
