"""Gradients of a collection that wait, by `EmbeddingStore.accumulate`, to make one update together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from damo_torchrec import _core


@dataclass(frozen=True)
class Part:
    """One backward call's gradient, and all that its lookup points into."""

    lookup: _core.Lookup
    generation: int
    tensors: tuple[torch.Tensor | None, ...]
    grad: torch.Tensor
    versions: tuple[int, ...] = ()

    def waiting(self) -> Part:
        """As it is kept for a later call: autograd may go on to use the gradient's memory."""
        return replace(self, grad=self.grad.clone(), versions=self._versions())

    def check_unchanged(self) -> None:
        """Raises RuntimeError, as autograd does, if the batch was changed in place while its gradient waited."""
        if self.versions and self.versions != self._versions():
            raise RuntimeError("ids, lengths or weights were changed in place while accumulate(n) waits to use them")

    def _versions(self) -> tuple[int, ...]:
        return tuple(tensor._version for tensor in self.tensors if tensor is not None)  # torch's


class Accumulation:
    """The gradients of one collection that wait. Not thread-safe: the session's mutex guards it."""

    def __init__(self) -> None:
        self._parts: list[Part] = []

    def __len__(self) -> int:
        return len(self._parts)

    def clear(self) -> None:
        """Drops them."""
        self._parts = []

    def take(self, part: Part, calls_per_update: int) -> list[Part]:
        """The gradients to update with, the newest last, or none: then this one waits, too.

        Raises:
            RuntimeError: a batch was changed in place while its gradient waited. None waits any more, as half of an
                accumulation cannot be made whole.
        """
        parts = [*self._parts, part]
        if len(parts) < calls_per_update:
            self._parts = [*self._parts, part.waiting()]
            return []
        self._parts = []
        for earlier in parts[:-1]:
            earlier.check_unchanged()
        return parts
