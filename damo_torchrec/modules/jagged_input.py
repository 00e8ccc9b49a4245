"""From a KeyedJaggedTensor to what the engine reads: the one place where collections take one apart and check it.

What a KeyedJaggedTensor may come with, such as weights, a batch size for each key, or inverse indices, enters here.
(Requests to a server have their own form and their own errors: serving/requests.py.)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torchrec.modules.embedding_modules import reorder_inverse_indices
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.sparse.tensor_dict import maybe_td_to_kjt

from damo_torchrec.modules import tracing
from damo_torchrec.modules.autograd import Batch
from damo_torchrec.tensors import check_plain, plain


class Accepted(NamedTuple):
    """What a collection accepts.

    Args:
        device: where inputs may be, besides the CPU.
        memory_budget: the store's, in bytes: ids and what comes with them must fit it.
        weighted: whether each id has a weight.
        computed_weights: whether weights may have been computed by the model, which may overflow as gradients do; those
            that come with the data have to be finite.
    """

    device: torch.device
    memory_budget: int
    weighted: bool = False
    computed_weights: bool = False


def as_keyed_jagged(features: Any) -> KeyedJaggedTensor:
    """What a forward was given, a TensorDict too, as a KeyedJaggedTensor. Raises TypeError for what has no keys."""
    # Torch 2.9's Dynamo cannot trace a union of types here.
    if features is None or isinstance(features, (torch.Tensor, dict, list, tuple)):
        raise TypeError(
            f"features must be a KeyedJaggedTensor, got {type(features).__name__}: make one of keys, values and lengths"
        )
    return maybe_td_to_kjt(features, None)


# ------------------------------------------------------------------ bags


class JaggedParts(NamedTuple):
    """A KeyedJaggedTensor in its parts, not checked.

    Args:
        values: ids ``(n,)``, by key, then bag.
        lengths: one for each bag, or ``(F, B)``, as TorchRec takes them too: a row for each key.
        weights: one for each id, or None.
        keys: its features.
        size: bags of each key.
        bags: by key, if keys differ in their number of bags; `size` does not count then.
    """

    values: torch.Tensor
    lengths: torch.Tensor
    weights: torch.Tensor | None
    keys: list[str]
    size: int
    bags: list[int] | None = None


def parts_of(features: KeyedJaggedTensor) -> JaggedParts:
    """The parts of a KeyedJaggedTensor."""
    return JaggedParts(
        values=features.values(),
        lengths=features.lengths(),
        weights=features.weights_or_none(),
        keys=features.keys(),
        size=features.stride(),
        bags=features.stride_per_key() if features.variable_stride_per_key() else None,
    )


def parts_in_graph(features: Any, weighted: bool) -> tuple[Any, ...]:
    """The same where it is traced, for operators.py: ids, lengths, weights, keys, batch and sizes of its `GraphBatch`.

    `features` may be a torch.fx proxy, of which nobody can say yet whether its keys differ in their batch size.
    """
    return (
        features.values(),
        features.lengths(),
        features.weights_or_none() if weighted else None,
        features.keys(),
        features.stride(),
        features.stride_per_key() if tracing.is_fx_proxy(features) else [],
    )


def bags(parts: JaggedParts, accepted: Accepted) -> Batch:
    """Checks bags of ids, to be pooled, and brings them to the engine's form.

    Raises:
        TypeError: ids or lengths are no integers, or weights no floats.
        ValueError: a tensor has another shape, or is on another device; there are too many ids; weights are missing, or
            some of the data are not finite.
    """
    check_device("values", parts.values, accepted.device)
    ids = as_ids("values", parts.values, accepted.memory_budget)
    keys = len(parts.keys)
    lengths = as_int64("lengths", parts.lengths, matrix=(keys, parts.size) if parts.bags is None else None)
    if parts.bags is not None and any(bags < 0 for bags in parts.bags):
        raise ValueError(f"batch sizes of features must not be negative, got {parts.bags}")
    expected = keys * parts.size if parts.bags is None else sum(parts.bags)
    if lengths.numel() != expected:
        samples = f"{parts.size} samples" if parts.bags is None else f"its samples, {expected} in all"
        raise ValueError(f"lengths must be one for each of {keys} keys and {samples}, got {lengths.numel()}")
    sizes = None if parts.bags is None else torch.tensor(parts.bags, dtype=torch.int64, device="cpu")
    weights = _checked_weights(parts.weights, ids, accepted) if accepted.weighted else None
    return Batch(keys=tuple(parts.keys), ids=ids, lengths=lengths, weights=weights, size=parts.size, bags=sizes)


def expand(features: KeyedJaggedTensor, names: list[str], outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """``(B, ΣD)`` of what was looked up for each feature's own bags: `inverse_indices` say which bag a sample has.

    Args:
        features: with a batch size for each key.
        names: of the features, by output.
        outputs: ``(bags of the feature, dim)``.

    Raises:
        ValueError: there are no inverse indices, or one is out of range.
    """
    indices = inverse_indices(features, names, [len(output) for output in outputs])
    return torch.cat([output[index.to(output.device)] for output, index in zip(outputs, indices, strict=True)], dim=1)


def inverse_indices(features: KeyedJaggedTensor, names: list[str], bags_of: Sequence[int]) -> list[torch.Tensor]:
    """By output, which of its bags each sample has. Raises ValueError as `expand`."""
    indices = features.inverse_indices_or_none()
    if indices is None:
        raise ValueError(
            f"features have batch sizes of their own, {features.stride_per_key()}, but there are no "
            "inverse_indices, which say which bag each sample has"
        )
    of_outputs = list(reorder_inverse_indices(indices, names))
    for name, n, index in zip(names, bags_of, of_outputs, strict=True):
        check_plain(f"inverse_indices of feature {name!r}", index)
        if index.numel() > 0 and not 0 <= int(index.min()) <= int(index.max()) < n:
            raise ValueError(
                f"inverse_indices of feature {name!r} must be in 0..{n - 1}, "
                f"got {int(index.min())} to {int(index.max())}"
            )
    return of_outputs


def _checked_weights(weights: torch.Tensor | None, ids: torch.Tensor, accepted: Accepted) -> torch.Tensor:
    if weights is None:
        raise ValueError("the collection is weighted, but the KeyedJaggedTensor has no weights")
    check_device("weights", weights, accepted.device)
    checked = plain("weights", weights)
    if not checked.is_floating_point():
        raise TypeError(f"weights must be floating point, got {weights.dtype}")
    if checked.shape != ids.shape:
        raise ValueError(f"weights must be one for each of {ids.numel()} values, got {tuple(weights.shape)}")
    checked = checked.to(torch.float32)
    if not (accepted.computed_weights or weights.requires_grad):
        finite = torch.isfinite(checked)
        if not bool(finite.all()):
            place = int(torch.argmin(finite.to(torch.uint8)))
            raise ValueError(
                f"weights of ids must be finite, but that of id {int(ids[place])}, at place {place} of the "
                f"KeyedJaggedTensor's weights, is {float(checked[place])}"
            )
    return checked


# ------------------------------------------------------------------ sequences


def sequence_parts_in_graph(features: Any) -> tuple[Any, Any, Any]:
    """Ids, the number of each key's, and keys of a torch.fx proxy, for operators.py."""
    return features.values(), features.length_per_key(), features.keys()


def ids_per_key(features: KeyedJaggedTensor) -> list[int]:
    """How many ids each key has. Raises ValueError if lengths are negative or not one for each key and sample.

    Raises TypeError, too, if they are no integers.
    """
    matrix = None if features.variable_stride_per_key() else (len(features.keys()), features.stride())
    lengths = as_int64("lengths", features.lengths(), matrix)
    if lengths.numel() != sum(features.stride_per_key()):
        raise ValueError(f"lengths must be one for each key and sample, got {lengths.numel()}")
    if bool((lengths < 0).any()):
        raise ValueError(f"lengths must not be negative, got {int(lengths.min())}")
    return features.length_per_key()


def sequences(values: torch.Tensor, ids_of_keys: list[int], keys: list[str], accepted: Accepted) -> Batch:
    """Checks ids, of which each is to get its row, and brings them to the engine's form: each is a bag of its own.

    Args:
        values: ids ``(n,)``, by key.
        ids_of_keys: how many each key has.
        keys: their names.
        accepted: what the collection accepts.

    Raises:
        TypeError: ids are no integers.
        ValueError: there are more or fewer ids than the keys have, or too many; or they are on another device.
    """
    check_device("values", values, accepted.device)
    ids = as_ids("values", values, accepted.memory_budget)
    sizes = torch.tensor(ids_of_keys, dtype=torch.int64, device="cpu")
    if int(sizes.sum()) != ids.numel() or bool((sizes < 0).any()):
        raise ValueError(f"lengths must sum to the number of values, {ids.numel()}, got {int(sizes.sum())}")
    ones = torch.ones(ids.numel(), dtype=torch.int64, device="cpu")
    return Batch(keys=tuple(keys), ids=ids, lengths=ones, weights=None, size=0, bags=sizes)


def by_key(features: KeyedJaggedTensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Each key's ids and lengths. KeyedJaggedTensor.to_dict does that, but not for a batch without samples."""
    keys = features.keys()
    ids = torch.split(features.values(), features.length_per_key())
    lengths = torch.split(features.lengths().reshape(-1), features.stride_per_key())
    return dict(zip(keys, ids, strict=True)), dict(zip(keys, lengths, strict=True))


# ------------------------------------------------------------------ tensors


def as_ids(what: str, ids: torch.Tensor, memory_budget: int) -> torch.Tensor:
    """`as_int64`, but refuses more ids than could be looked up at once before it copies them."""
    if ids.numel() > memory_budget // 8:
        enough = -(-8 * ids.numel() // 2**20)
        raise ValueError(
            f"{ids.numel()} ids at once are more than memory_budget ({memory_budget} bytes) allows: "
            f'it should be at least "{enough}MiB"'
        )
    return as_int64(what, ids)


def as_int64(what: str, tensor: torch.Tensor, matrix: tuple[int, int] | None = None) -> torch.Tensor:
    """The engine's form of ids or lengths, of one dimension, on the CPU.

    Args:
        what: they are called, for messages.
        tensor: of one dimension, or of the shape `matrix`, which is read row by row.
        matrix: a shape that they may have besides; None: they may not.

    Raises:
        TypeError: they are no integers, or hold no values.
        ValueError: they have another shape.
    """
    values = plain(what, tensor)
    if values.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{what} must be int64 or int32, got {values.dtype}")
    if values.dim() != 1 and values.shape != matrix:
        allowed = "one dimension" if matrix is None else f"one dimension or the shape {matrix}"
        raise ValueError(f"{what} must have {allowed}, got the shape {tuple(values.shape)}")
    return values.to(torch.int64).view(-1)


def check_device(what: str, tensor: torch.Tensor, device: torch.device) -> None:
    """Raises ValueError if a tensor is neither on the CPU nor on the collection's device."""
    if tensor.device.type not in ("cpu", device.type):
        raise ValueError(f"{what} must be on the {device.type}, got {tensor.device}")
