"""torch, imported at its first use: for modules that serving and repairing need, which do without.

``from damo_torchrec.torch_at_use import torch`` is torch to type checkers, too. Annotations there are postponed.
"""

import sys
from typing import TYPE_CHECKING, Any

from damo_torchrec import lazy, versions

if TYPE_CHECKING:
    import torch as torch
    import torchrec
    from typing_extensions import TypeIs


class _Torch:
    _imported: Any = None

    def __getattr__(self, name: str) -> Any:
        if self._imported is None:
            with versions.explained():  # which looks at what is installed: that takes milliseconds
                self._imported = lazy.module("torch")
        return getattr(self._imported, name)


if not TYPE_CHECKING:
    torch = _Torch()


def is_tensor(value: object) -> "TypeIs[torch.Tensor]":
    """Whether it is a tensor: none is, while nobody has imported torch."""
    imported = sys.modules.get("torch")
    return imported is not None and isinstance(value, imported.Tensor)


def is_keyed_jagged(value: object) -> "TypeIs[torchrec.KeyedJaggedTensor]":
    """The same of TorchRec's."""
    imported = sys.modules.get("torchrec.sparse.jagged_tensor")
    return imported is not None and isinstance(value, imported.KeyedJaggedTensor)
