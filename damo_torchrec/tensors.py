"""From a tensor to an address: the one way by which tensors reach the engine, which reads and writes plain memory."""

from __future__ import annotations

from damo_torchrec.torch_at_use import torch


def plain(what: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's values as the engine reads them: on the CPU, side by side; the tensor itself if it is so.

    What torch computes lazily, such as the sign of ``x.conj().imag``, is computed.

    Args:
        what: the tensor is called, for messages.
        tensor: on any device that has values.

    Raises:
        TypeError: it has no values of its own: it is sparse, nested, fake, or in the middle of torch.func.vmap or grad.
        ValueError: it is on the meta device, or its memory was taken away (``untyped_storage().resize_(0)``).
    """
    return _on_cpu(what, tensor).contiguous()


def plain_rows(what: str, tensor: torch.Tensor) -> torch.Tensor:
    """The same of a tensor of one dimension or two, but rows of a matrix may lie apart."""
    values = _on_cpu(what, tensor)
    if values.stride(-1) != 1 or (values.dim() == 2 and values.shape[0] > 1 and values.stride(0) < values.shape[1]):
        return values.contiguous()
    return values


def address(tensor: torch.Tensor) -> int:
    """Where a tensor's values are. The caller keeps the tensor for as long as they are used.

    Args:
        tensor: that `plain` returned, or that was made for results.

    Raises:
        TypeError: its values are not in the memory of this process, or not as they are there: a result may be a fake
            tensor, too.
        ValueError: its memory was taken away.
    """
    check_plain("a tensor for the engine", tensor)
    if not tensor.is_cpu or tensor.is_neg() or tensor.is_conj():
        raise TypeError(f"a tensor for the engine must have its values in memory, got one on {tensor.device}")
    return tensor.data_ptr()


def check_plain(what: str, tensor: torch.Tensor) -> None:
    """Raises as `plain` for a tensor that has no values of its own; copies nothing."""
    if (reason := _not_plain(tensor)) is not None:
        raise TypeError(f"{what} must be a dense tensor with values of its own, got {reason}")
    if tensor.is_meta:
        raise ValueError(f"{what} must have values, got a tensor on the meta device")
    if tensor.numel() > 0 and not tensor._is_zerotensor():
        steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        needed = (tensor.storage_offset() + steps + 1) * tensor.element_size()
        if (found := tensor.untyped_storage().nbytes()) < needed:
            raise ValueError(
                f"{what} must have its values in memory: the shape {tuple(tensor.shape)} needs {needed} bytes, but "
                f"{found} are there, the others were taken away"
            )


def _on_cpu(what: str, tensor: torch.Tensor) -> torch.Tensor:
    check_plain(what, tensor)
    if type(tensor) is not torch.Tensor:  # whose class may have its own idea of what comes next
        with torch._C.DisableTorchFunctionSubclass():
            tensor = tensor.as_subclass(torch.Tensor)
    if tensor._is_zerotensor():  # of torch's, without memory
        tensor = tensor.clone()
    return tensor.cpu().resolve_conj().resolve_neg()


def _not_plain(tensor: torch.Tensor) -> str | None:
    """Why a tensor holds no values itself; None if it does."""
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
        return "any of a FakeTensorMode, which has no values"
    kind = type(tensor)
    if kind is not torch.Tensor and kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return f"a {kind.__name__}"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "one in the middle of torch.func (vmap, grad, jvp or functionalize)"
    if tensor.is_nested:
        return "a nested one"
    if tensor.layout is not torch.strided:
        return f"one of the layout {tensor.layout}"
    return None
