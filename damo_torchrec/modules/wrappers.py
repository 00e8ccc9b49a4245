"""What is put around a whole model, and is no part of it."""

from torch import nn
from torchrec.distributed.model_parallel import get_unwrapped_module


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in `torch.compile`'s, DistributedModelParallel's, DDP's and FSDP's modules, or the model itself."""
    inner: nn.Module = get_unwrapped_module(getattr(model, "_orig_mod", model))
    return model if inner is model else unwrapped(inner)
