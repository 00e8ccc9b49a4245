"""What the dense part of a checkpoint may be, whoever made it. docs/format.md describes it.

torch's restricted unpickler runs no code. It says nothing of what the parts are, which reach optimizers and generators.
"""

import math
import random
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import torch

from damo_torchrec.checkpoints.document import shown
from damo_torchrec.checkpoints.pickle_rules import check_tuples

# What tensors may take beyond what is in the file, once something copies them: those that were expanded.
_MOST_EXPANDED = 256 << 20  # bytes
_WORDS = 624  # of a Mersenne Twister


def check_container(content: bytes) -> None:
    """Raises ValueError unless it is a zip file as `torch.save` writes it: nothing is compressed, or there twice.

    Nor may it have tuples whose hash is never done.
    """
    try:
        with zipfile.ZipFile(BytesIO(content)) as container:
            records = container.infolist()
            _check_records(records, len(content))
            for record in records:
                if record.filename.endswith(".pkl"):
                    check_tuples(container.read(record))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OverflowError, OSError) as error:
        raise ValueError(f"it is no zip file: {error}") from error


def _check_records(records: Sequence[zipfile.ZipInfo], size: int) -> None:
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise ValueError(f"its record {shown(record.filename)} is compressed, which torch.save never does")
    if len({record.filename for record in records}) < len(records):
        raise ValueError("it has two records of one name")
    if sum(record.file_size for record in records) > size:
        raise ValueError("its records are larger than the file")


def check_dense(dense: object, size: int) -> None:
    """Raises ValueError unless it is a dense part, that a file of `size` bytes can hold."""
    if type(dense) is not dict:
        raise ValueError(f"it holds a {type(dense).__name__}, expected a dict")
    for name, (fits, what) in _FIELDS.items():
        if name not in dense:
            if name in _REQUIRED:
                raise ValueError(f"it lacks {name}")
        elif not fits(dense[name]):
            raise ValueError(f"{name} is no {what}")
    _check_tensors(dense, size)
    try:
        _check_random_state(dense["random"])
    except ValueError as error:
        raise ValueError(f"the state of the random number generators: {error}") from error


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _has_names(value: object) -> bool:
    return isinstance(value, dict) and all(type(name) is str for name in value)


def _is_int(value: object) -> bool:
    return type(value) is int


def _is_text(value: object) -> bool:
    return type(value) is str


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(_is_text(item) for item in value)


def _is_optimizer(value: object) -> bool:
    if value is None:
        return True
    if not _has_names(value) or not isinstance(value, dict):
        return False
    groups = value.get("param_groups", [])
    return (
        isinstance(value.get("state", {}), dict)
        and isinstance(groups, list)
        and all(_has_names(group) and isinstance(group.get("params"), list) for group in groups)
    )


def _are_schedulers(value: object) -> bool:
    return isinstance(value, list) and all(_has_names(state) for state in value)


def _are_learning_rates(value: object) -> bool:
    if not isinstance(value, dict) or not _has_names(value):
        return False
    return all(
        isinstance(rates, dict) and _has_names(rates) and all(_is_rate(rate) for rate in rates.values())
        for rates in value.values()
    )


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


_FIELDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "checkpoint_id": (_is_text, "text"),
    "step": (_is_int, "int"),
    "model": (_has_names, "state dict: a dict with names as its keys"),
    "optimizer": (_is_optimizer, "state dict of an optimizer"),
    "parameter_names": (_are_texts, "list of names"),
    "learning_rates": (_are_learning_rates, "dict of dicts of numbers that are finite and not negative"),
    "schedulers": (_are_schedulers, "list of state dicts"),
    "random": (_has_names, "dict with names as its keys"),
    "extra": (_is_dict, "dict"),
    "unpicklable": (lambda value: value is None or _is_text(value), "text"),
}
_REQUIRED = ("checkpoint_id", "model", "optimizer", "random")


# ------------------------------------------------------------------ tensors


def _check_tensors(value: object, size: int) -> None:
    """Raises ValueError if a tensor anywhere in it is more than a file of `size` bytes can hold."""
    seen: set[int] = set()
    expanded = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:  # a pickle may have circles
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            expanded += _bytes_beyond_storage(item, size)
        elif isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += item
    if expanded > _MOST_EXPANDED:
        raise ValueError(f"its tensors take {expanded} bytes more than the file has, at most {_MOST_EXPANDED} may be")


def _bytes_beyond_storage(tensor: torch.Tensor, size: int) -> int:
    if tensor.is_nested:
        raise ValueError("it has a nested tensor")
    if tensor.layout is not torch.strided:
        return 0
    stored = tensor.untyped_storage().nbytes()
    if stored > size:
        raise ValueError(f"a tensor of the shape {tuple(tensor.shape)} has {stored} bytes, the file {size}")
    return max(0, tensor.numel() * tensor.element_size() - stored)


# ------------------------------------------------------------------ generators


def _check_random_state(state: Mapping[str, Any]) -> None:
    """Raises ValueError unless the generators can take it: NumPy's and Python's do not look."""
    if odd := {"torch", "cuda", "python", "numpy"} ^ state.keys():
        raise ValueError(f"it lacks these, or should not have them: {shown(sorted(odd))}")
    _check_torch("cpu", state["torch"])
    if not isinstance(state["cuda"], list):
        raise ValueError("that of CUDA is no list")
    for device in state["cuda"]:
        _check_torch("cuda", device)
    _check_python(state["python"])
    _check_numpy(state["numpy"])


def _check_torch(device: str, state: object) -> None:
    """Tries it with a generator of its own, where there is such a device."""
    if not (
        isinstance(state, torch.Tensor)
        and state.dtype is torch.uint8
        and state.layout is torch.strided
        and state.device.type == "cpu"
        and state.dim() == 1
    ):
        raise ValueError(f"torch's of {device} is no tensor of bytes")
    if device == "cpu" or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
        try:
            torch.Generator(device).set_state(state)
        except RuntimeError as error:
            raise ValueError(f"torch refuses that of {device}: {error}") from error
    if device == "cpu" and not _follows(state):
        raise ValueError("torch's of cpu has positions that do not go together")


def _follows(state: torch.Tensor) -> bool:
    """Whether the words left and the next one of torch's Mersenne Twister are within its state, which torch reads.

    Its legacy layout: the seed, int32 left and seeded, and the next word, each number in eight bytes.
    """
    left, _ = state[8:16].view(torch.int32).tolist()
    (following,) = state[16:24].view(torch.int64).tolist()
    return bool(left == 1 or left + following == _WORDS + 1)


def _check_python(state: object) -> None:
    if not isinstance(state, list | tuple) or len(state) != 3:
        raise ValueError("Python's is no list of three")
    version, words, gauss = state
    if type(version) is not int or version != random.getstate()[0]:
        raise ValueError(f"Python's has the version {shown(version)}")
    if not isinstance(words, list | tuple) or len(words) != _WORDS + 1:
        raise ValueError(f"Python's is not of {_WORDS} words and a position")
    if not all(type(word) is int and 0 <= word < 2**32 for word in words) or not words[-1] <= _WORDS:
        raise ValueError("Python's has a word or a position out of range")
    if gauss is not None and not _is_finite(gauss):
        raise ValueError("Python's next normal number is none")


def _check_numpy(state: object) -> None:
    if not isinstance(state, list | tuple) or len(state) != 5:
        raise ValueError("NumPy's is no list of five")
    kind, keys, position, has_gauss, cached = state
    if type(kind) is not str or kind != "MT19937":
        raise ValueError(f"NumPy's generator is {shown(kind)}")
    if not (
        isinstance(keys, torch.Tensor)
        and keys.dtype is torch.int64
        and keys.layout is torch.strided
        and keys.device.type == "cpu"
        and keys.shape == (_WORDS,)
        and bool(((keys >= 0) & (keys < 2**32)).all())
    ):
        raise ValueError(f"NumPy's keys are no int64 tensor of {_WORDS} words of 32 bits")
    if type(position) is not int or not 0 <= position <= _WORDS:
        raise ValueError(f"NumPy's position is {shown(position)}, expected 0 to {_WORDS}")
    if type(has_gauss) is not int or has_gauss not in (0, 1) or not _is_finite(cached):
        raise ValueError("NumPy's next normal number is none")


def _is_finite(value: object) -> bool:
    return type(value) is float and math.isfinite(value)
