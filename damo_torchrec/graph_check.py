"""What a graph may hold, before a session opens it: no data in files that are not its own, no unknown operators."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message

from damo_torchrec.errors import CorruptionError

DOMAIN = "damo_torchrec"  # of the functions that an exported graph with rows has
_STANDARD = {"", "ai.onnx"}
# What ONNX Runtime makes of standard operators, where it has saved a graph.
_OF_RUNTIME = {"com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}


def check_dense_graph(content: bytes, file: Path) -> Any:
    """Checks a graph that has everything in itself, and standard operators alone; returns it as `parse_graph`.

    Args:
        content: of `file`, which messages name.
        file: where it was read.

    Raises:
        CorruptionError: it is no graph, has tensors in other files, or operators of other domains.
    """
    model = parse_graph(content, file)
    _check_domains(model, file, _STANDARD)
    for tensor in _tensors(model):
        raise CorruptionError(f"{file} is refused: {tensor.name!r} has its values in another file")
    return model


def check_exported_graph(file: Path) -> None:
    """Checks a graph whose larger tensors may be in files beside it, as `data_file` finds them.

    Raises:
        CorruptionError: it is no graph, has tensors elsewhere, or operators of unknown domains.
        OSError: it cannot be read.
    """
    model = parse_graph(file.read_bytes(), file)
    _check_domains(model, file, _STANDARD | _OF_RUNTIME | {DOMAIN})
    for tensor in _tensors(model):
        try:
            _check_external(tensor, file)
        except (ValueError, OSError) as error:
            raise CorruptionError(f"{file} is refused: tensor {tensor.name!r} {error}") from error


def external_files(content: bytes, file: Path) -> set[str]:
    """Where a graph says that values of its tensors are. Raises CorruptionError if it is no graph."""
    entries = (entry for tensor in _tensors(parse_graph(content, file)) for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def parse_graph(content: bytes, file: Path) -> Any:
    """A graph as an ``onnx.ModelProto``, without data in other files. Raises CorruptionError if it is none."""
    try:
        return onnx.ModelProto.FromString(content)
    except (DecodeError, RecursionError) as error:
        raise CorruptionError(f"{file} is no graph that ONNX Runtime can run: {error}") from error


def _messages(message: Message) -> Iterator[Message]:
    """A message and all below it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if isinstance(value, Message) else value:
                yield from _messages(item)


def _check_domains(model: Any, file: Path, known: set[str]) -> None:
    """Raises CorruptionError unless each operator is of a known domain, or a function of the graph's own."""
    own = {(function.domain, function.name) for function in model.functions}
    for node in _messages(model):
        if isinstance(node, onnx.NodeProto) and node.domain not in known and (node.domain, node.op_type) not in own:
            raise CorruptionError(f"{file} is refused: {node.op_type!r} of {node.domain!r} is not an expected operator")


def _tensors(model: Any) -> Iterator[Any]:
    """Tensors whose values are elsewhere, wherever they are: in subgraphs, attributes, functions."""
    for tensor in _messages(model):
        if isinstance(tensor, onnx.TensorProto) and (
            tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL
        ):
            yield tensor


def data_file(file: Path, name: str) -> Path:
    """The regular file that a graph calls `name`: in the graph's directory or below.

    A link may lead to another place there, as Kubernetes mounts volumes, or into the directory that the graph's own
    link leads to, as Hugging Face's cache keeps files.

    Args:
        file: the graph.
        name: as in the graph.

    Raises:
        ValueError: it is elsewhere, or no file.
        OSError: it is not there, or cannot be looked at.
    """
    location = PurePosixPath(name)
    if location.is_absolute() or ".." in location.parts or not location.parts or "\\" in name:
        raise ValueError(f"is in {name!r:.200}, outside of the graph's directory")
    path = file.parent / location
    real = Path(os.path.realpath(path, strict=True))
    if real != Path(os.path.realpath(file.parent)) / location:
        roots = [os.path.realpath(file.parent), os.path.dirname(os.path.realpath(file))]
        if not any(real.is_relative_to(root) for root in roots):
            raise ValueError(f"is in {path}, which is a link out of the graph's directory, to {real}")
    if not stat.S_ISREG(os.lstat(real).st_mode):
        raise ValueError(f"is in {path}, which is no file")
    return real


def _check_external(tensor: Any, file: Path) -> None:
    """Raises ValueError or OSError unless a tensor's values are all in a file of the graph's."""
    entries = [(entry.key, entry.value) for entry in tensor.external_data]
    where = dict(entries)
    if len(where) < len(entries) or where.keys() - {"location", "offset", "length", "checksum"}:
        raise ValueError(f"is said to be at {entries!s:.200}")
    path = data_file(file, where.get("location", ""))
    size = os.lstat(path).st_size
    offset, length = (_count(key, where[key]) if key in where else None for key in ("offset", "length"))
    if (offset or 0) + (length or 0) > size:
        raise ValueError(f"is beyond the {size} bytes of {path}: at {offset}, {length} bytes")


def _count(key: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"has the {key} {text!r:.80}")
    return int(text)
