"""Optimizer classes for update rules that torch.optim and torchrec.optim do not have."""

from typing import TYPE_CHECKING

from damo_torchrec import lazy

if TYPE_CHECKING:
    from damo_torchrec.optim.classes import FTRL as FTRL
    from damo_torchrec.optim.classes import Lion as Lion

__all__ = ["FTRL", "Lion"]
_get, __dir__ = lazy.attributes(__name__, {"FTRL": "classes", "Lion": "classes"})

if not TYPE_CHECKING:  # else a misspelt name would be of any type
    __getattr__ = _get
