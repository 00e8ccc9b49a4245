"""Optimizer classes for update rules that torch.optim and torchrec.optim do not have."""

from damo_torchrec.optim.classes import FTRL, Lion

__all__ = ["FTRL", "Lion"]
