"""A small JSON document that says which version of its format it has, and carries a checksum; read into dataclasses.

::

    {"format_version": 3, "sha256": "...", "manifest": {...}}
"""

import hashlib
import json
import math
import reprlib
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from damo_torchrec.checkpoints.regular_file import read_regular
from damo_torchrec.errors import CorruptionError, DamoError

_T = TypeVar("_T")

# Metadata of a field that a document may lack, as one with a plain default; its default_factory makes it then.
MAY_LACK = {"may_lack": True}

# Far more than any document of ours has: a manifest takes some 700 bytes a table, and 130 a file.
_MOST_BYTES = 256 << 20


def _accept(_: Any) -> None:
    """Of a kind whose fields have no relations."""


def dump_document(
    name: str, version: int, body: dict[str, Any], kind: type[_T], check: Callable[[_T], None] = _accept
) -> str:
    """The document of `body`, under `name`.

    Raises:
        DamoError: `parse_document` would refuse it as a `kind`, with the same `check`.
    """
    try:
        check(parse(body, kind, name))
    except ValueError as error:
        raise DamoError(f"the {name} is not written, since it could not be read again: {error}") from error
    return json.dumps({"format_version": version, "sha256": digest_of(body), name: body}, indent=1) + "\n"


def read_document(file: Path) -> bytes:
    """The contents of a document's file.

    Raises:
        FileNotFoundError, NotADirectoryError: it is not there.
        CorruptionError: it cannot be read, is no regular file, or larger than any document.
    """
    try:
        return read_regular(file, _MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:
        raise CorruptionError(f"{file} cannot be read: {error}") from error


def parse_document(
    content: bytes,
    file: Path,
    name: str,
    versions: range,
    kind: type[_T],
    check: Callable[[_T], None] = _accept,
) -> _T:
    """The body of a document that `dump_document` made.

    Args:
        content: of `file`, which messages name.
        file: where it was read.
        name: of the body.
        versions: of the format that are known.
        kind: a dataclass, what the body is.
        check: raises ValueError for a body whose fields are each of their type and in their range, but contradict each
            other.

    Raises:
        CorruptionError: it is damaged, or of another version.
    """
    return parse_versioned(content, file, name, versions, kind, check)[1]


def parse_versioned(
    content: bytes,
    file: Path,
    name: str,
    versions: range,
    kind: type[_T],
    check: Callable[[_T], None] = _accept,
) -> tuple[int, _T]:
    """As `parse_document`, with the version."""
    try:
        document = load_json(content)
        if type(document) is not dict or document.keys() != {"format_version", "sha256", name}:
            raise ValueError(f"expected an object of format_version, sha256 and {name}")
        version, body = document["format_version"], document[name]
        if type(version) is not int or version not in versions:
            known = " to ".join(str(v) for v in sorted({versions[0], versions[-1]}))
            raise CorruptionError(f"{file} has format version {shown(version)}; this version reads {known}")
        if document["sha256"] != digest_of(body):
            raise CorruptionError(f"{file} is damaged: its checksum does not match")
        parsed: _T = parse(body, kind, name)
        check(parsed)
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{file} is damaged: {error}") from error
    return version, parsed


def load_json(content: bytes) -> Any:
    """What JSON has, where a key of an object is there once, and numbers are no NaN.

    Raises:
        ValueError, RecursionError: it is no such JSON in UTF-8.
    """

    def constant(name: str) -> float:
        if name == "NaN":
            raise ValueError("it has a NaN")
        return float(name)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        for name, value in pairs:
            if name in keys:
                raise ValueError(f"it has {shown(name)} twice")
            keys[name] = value
        return keys

    return json.loads(content.decode(), object_pairs_hook=unique, parse_constant=constant)


def shown(value: object) -> str:
    """A value in a message: on one line, and short, whatever it is."""
    return reprlib.repr(value)


def digest_of(body: dict[str, Any]) -> str:
    """SHA-256 of what JSON makes of it, keys in order."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def parse(value: Any, kind: Any, where: str) -> Any:
    """What JSON has as `kind`, the declared type of a field.

    Raises:
        ValueError: it is of another type or out of range, or lacks fields, or has others.
    """
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(kind, UnionType) and value is not None and (objects := [k for k in args if is_dataclass(k)]):
        return parse(value, objects[0], where)
    if isinstance(value, dict) and isinstance(kind, type) and is_dataclass(kind):
        kinds = get_type_hints(kind, include_extras=True)
        required = {f.name for f in fields(kind) if f.default is MISSING and not f.metadata.get("may_lack")}
        if odd := required - value.keys() | value.keys() - kinds.keys():
            raise ValueError(f"{where} lacks these fields, or should not have them: {shown(sorted(odd))}")
        return kind(**{name: parse(item, kinds[name], f"{where}.{name}") for name, item in value.items()})
    if isinstance(value, list) and origin is list:
        return [parse(item, args[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and origin is dict:
        return {_text(name): parse(item, args[1], f"{where}.{_place(name)}") for name, item in value.items()}
    if origin is Annotated:
        fits = type(value) is args[0] and value in args[1]
    else:
        plain = args if isinstance(kind, UnionType) else (kind,)
        fits = _is_one_of(value, plain)
    if not fits:
        raise ValueError(f"{where} is {shown(value)}")
    return value


def _is_one_of(value: Any, kinds: tuple[Any, ...]) -> bool:
    if type(value) is str:
        _text(value)
        return str in kinds
    if type(value) in (int, float) and float in kinds:
        try:
            return not math.isnan(float(value))
        except OverflowError:
            return False
    return type(value) in kinds


def _text(text: str) -> str:
    """The text, which UTF-8 can hold: JSON has halves of surrogate pairs as well. Raises ValueError."""
    text.encode()
    return text


def _place(name: str) -> str:
    return name if name.isprintable() and len(name) <= 64 else shown(name)
