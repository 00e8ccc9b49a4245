"""Counts the bytes that a rank sends to others: a hook around torch.distributed's collectives."""

from collections.abc import Callable
from typing import Any

from torch import distributed


class Traffic:
    """Counts while it is entered: `sent`, bytes of this rank that others get."""

    def __init__(self) -> None:
        self.sent = 0
        self._originals: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> "Traffic":
        for name, bytes_of in _BYTES.items():
            self._originals[name] = original = getattr(distributed, name)
            setattr(distributed, name, self._counting(original, bytes_of))
        return self

    def __exit__(self, *_: object) -> None:
        for name, original in self._originals.items():
            setattr(distributed, name, original)

    def _counting(self, original: Callable[..., Any], bytes_of: Callable[..., float]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.sent += round(bytes_of(*args, **kwargs))
            return original(*args, **kwargs)

        return counted


def _others() -> int:
    return distributed.get_world_size() - 1


def _all_to_all_single(output: Any, input: Any, output_splits: Any = None, input_splits: Any = None, **_: Any) -> float:
    own = distributed.get_rank()
    if not input_splits:
        return input.nbytes * _others() / (_others() + 1)
    rows = sum(n for rank, n in enumerate(input_splits) if rank != own)
    return rows * input[:1].nbytes if input.numel() else 0


# What a ring sends, which is the least: gloo may send more.
_BYTES: dict[str, Callable[..., float]] = {
    "all_to_all_single": lambda output, input, output_split_sizes=None, input_split_sizes=None, **_: _all_to_all_single(
        output, input, output_split_sizes, input_split_sizes
    ),
    "all_reduce": lambda tensor, *_, **__: 2 * tensor.nbytes * _others() / (_others() + 1),
    "reduce_scatter_tensor": lambda output, input, *_, **__: output.nbytes * _others(),
    "all_gather_into_tensor": lambda output, input, *_, **__: input.nbytes * _others(),
}
