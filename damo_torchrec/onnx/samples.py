"""Whether a model's answer for a sample depends on the other samples that are asked with it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from damo_torchrec.lookup_plan import LookupOutput
from damo_torchrec.onnx.arguments import Arguments
from damo_torchrec.onnx.trace_model import Traced
from damo_torchrec.onnx.trial import difference

_log = logging.getLogger(__name__)

# A batch is asked as a whole, and in two parts. A part of one sample may lose a dimension, by squeeze().
_SAMPLES, _CUT = 5, 2
_TOLERANCE = 1e-4  # of batches of other sizes, whose sums torch adds in another order
Inputs = dict[str, torch.Tensor]
Bag = Sequence[torch.Tensor]  # values and, if there are, weights of a sample


def is_by_sample(traced: Traced, arguments: Arguments) -> bool | None:
    """Whether a model answers the samples of a batch as it answers parts of the batch. None if it cannot be found out.

    It is asked with rows and samples that are made up: of other ids, numbers and lengths than it was called with, or
    of the same ones where it takes no others.
    """
    reason: object = None
    for changes in (Changes(lengths=True, values=True), Changes(values=True), Changes()):
        batch = Batch(arguments, changes, _SAMPLES)
        try:
            whole, first, second = (
                traced.run(batch.inputs(*span), any_rows)[0] for span in ((0, _SAMPLES), (0, _CUT), (_CUT, _SAMPLES))
            )
        except Exception as error:  # of whatever kind: it is the model's own code
            reason = error
            continue
        return all(_same(*outputs) for outputs in zip(whole, first, second, strict=True))
    _log.warning("whether the model compares samples is not known: it does not run with %d: %s", _SAMPLES, reason)
    return None


def any_rows(output: LookupOutput, ids: torch.Tensor) -> torch.Tensor:
    """Rows, float32 ``(n, dim)``, that differ from id to id and from table to table, whatever is stored."""
    phase = sum(map(ord, output.table)) % 100
    numbers = torch.arange(1, output.dim + 1, dtype=torch.float64)
    return (ids.remainder(9973).double().unsqueeze(1) * 0.37 + numbers * phase).sin().float()


def _same(whole: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> bool:
    if whole.dim() == 0 or not whole.shape[1:] == first.shape[1:] == second.shape[1:]:
        return False
    joined = torch.cat([first, second])
    if joined.shape != whole.shape:
        return False
    if whole.dtype is torch.bfloat16:
        whole, joined = whole.float(), joined.float()
    return difference(whole.numpy(), joined.numpy(), _TOLERANCE) is None


@dataclass(frozen=True)
class Changes:
    """What of samples is made up; the rest is as the model was called with."""

    lengths: bool = False
    values: bool = False


class Batch:
    """Samples like those that a model was called with."""

    def __init__(self, arguments: Arguments, changes: Changes, size: int) -> None:
        self._size = size
        self._arguments = arguments
        self._random = torch.Generator().manual_seed(0)
        self._changes = changes
        given = arguments.given
        samples = torch.arange(size)
        self._tensors = {
            name: self._changed(given[name][samples % len(given[name])]) if self._has_samples(name) else given[name]
            for name in arguments.tensors
        }
        self._bags: dict[str, list[list[Bag]]] = {}  # by jagged tensor, key and sample
        for jagged in (*arguments.features, *arguments.jagged):
            values, lengths, *weights = (given[name] for name in jagged.inputs)
            by_key = lengths.reshape(-1, lengths.shape[-1])
            sizes = by_key.reshape(-1).tolist()
            bags = list(zip(*(torch.split(part, sizes) for part in (values, *weights)), strict=True))
            batch = by_key.shape[1]
            self._bags[jagged.name] = [
                self._samples_of(bags[key * batch : (key + 1) * batch]) for key in range(len(by_key))
            ]

    def inputs(self, first: int, end: int) -> Inputs:
        """Those of some of the samples."""
        found = {n: tensor[first:end] if self._has_samples(n) else tensor for n, tensor in self._tensors.items()}
        for jagged in (*self._arguments.features, *self._arguments.jagged):
            by_key = self._bags[jagged.name]
            bags = [bag for of_key in by_key for bag in of_key[first:end]]
            values, lengths, *weights = jagged.inputs
            for name, parts in zip([values, *weights], zip(*bags, strict=True), strict=True):
                found[name] = torch.cat(parts)
            shape = [len(by_key), end - first][-self._arguments.given[lengths].dim() :]
            found[lengths] = torch.tensor([len(bag[0]) for bag in bags]).reshape(shape)
        return {name: found[name] for name in self._arguments.samples}

    def _has_samples(self, name: str) -> bool:
        return 0 in self._arguments.dynamic[name]

    def _samples_of(self, bags: Sequence[Bag]) -> list[Bag]:
        source = next((bag for bag in bags if len(bag[0])), bags[0])
        samples = []
        for i in range(self._size):
            bag = bags[i % len(bags)]
            if self._changes.lengths and len(source[0]):
                items = torch.randint(0, len(source[0]), [1 + i % 3], generator=self._random)
                bag = [part[items] for part in source]
            samples.append(tuple(self._changed(part) for part in bag))
        return list(samples)

    def _changed(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self._changes.values or tensor.dtype is torch.bool:
            return tensor
        if tensor.dtype.is_floating_point:
            scale, offset = (torch.rand(tensor.shape, generator=self._random) for _ in range(2))
            return (tensor * (scale + 0.5) + offset).to(tensor.dtype)
        return tensor + torch.randint(0, 50, tensor.shape, generator=self._random).to(tensor.dtype)
