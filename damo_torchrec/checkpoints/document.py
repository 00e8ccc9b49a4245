"""A small JSON document that says which version of its format it has, and carries a checksum; read into dataclasses.

::

    {"format_version": 3, "sha256": "...", "manifest": {...}}
"""

import hashlib
import json
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from damo_torchrec.errors import CorruptionError, DamoError

_T = TypeVar("_T")


def dump_document(name: str, version: int, body: dict[str, Any], kind: Any) -> str:
    """The document of `body`, under `name`.

    Raises:
        DamoError: `parse_document` would refuse it as a `kind`.
    """
    try:
        parse(body, kind, name)
    except ValueError as error:
        raise DamoError(f"the {name} is not written, since it could not be read again: {error}") from error
    return json.dumps({"format_version": version, "sha256": digest_of(body), name: body}, indent=1) + "\n"


def parse_document(content: bytes, file: Path, name: str, versions: range, kind: type[_T]) -> _T:
    """The body of a document that `dump_document` made.

    Args:
        content: of `file`, which messages name.
        file: where it was read.
        name: of the body.
        versions: of the format that are known.
        kind: a dataclass, what the body is.

    Raises:
        CorruptionError: it is damaged, or of another version.
    """
    try:
        document = json.loads(content)
        version, body = document["format_version"], document[name]
        if type(version) is not int or version not in versions:
            known = " to ".join(str(v) for v in sorted({versions[0], versions[-1]}))
            raise CorruptionError(f"{file} has format version {version}; this version reads {known}")
        if document["sha256"] != digest_of(body):
            raise CorruptionError(f"{file} is damaged: its checksum does not match")
        parsed: _T = parse(body, kind, name)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptionError(f"{file} is damaged: {error}") from error
    return parsed


def digest_of(body: dict[str, Any]) -> str:
    """SHA-256 of what JSON makes of it, keys in order."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def parse(value: Any, kind: Any, where: str) -> Any:
    """What JSON has as `kind`, the declared type of a field.

    Raises:
        ValueError: it is of another type or out of range, or lacks fields, or has others.
    """
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(value, dict) and isinstance(kind, type) and is_dataclass(kind):
        kinds = get_type_hints(kind, include_extras=True)
        required = {f.name for f in fields(kind) if f.default is MISSING}
        if odd := required - value.keys() | value.keys() - kinds.keys():
            raise ValueError(f"{where} lacks these fields, or should not have them: {sorted(odd)}")
        return kind(**{name: parse(item, kinds[name], f"{where}.{name}") for name, item in value.items()})
    if isinstance(value, list) and origin is list:
        return [parse(item, args[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and origin is dict:
        return {name: parse(item, args[1], f"{where}.{name}") for name, item in value.items()}
    if origin is Annotated:
        fits = type(value) is args[0] and value in args[1]
    else:
        plain = args if isinstance(kind, UnionType) else (kind,)
        fits = type(value) in plain or (type(value) is int and float in plain)
    if not fits:
        raise ValueError(f"{where} is {value!r}")
    return value
