"""Ids of strings: `hash_strings`, by a hash that other languages and databases have, too.

The id of a string is the XXH64 of its UTF-8 bytes, as specified by xxHash (https://github.com/Cyan4973/xxHash, "XXH64
algorithm description"), with `salt` as its seed, taken as a signed integer in two's complement. docs/strings.md has the
same in JavaScript, Go, Java and SQL, and how seldom two strings get one id.

Needs ``pip install 'damo-torchrec[strings]'``; Arrow's arrays need ``'damo-torchrec[arrow]'`` besides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_SALT = 2**64 - 1


def hash_strings(strings: Any, salt: int = 0) -> npt.NDArray[np.int64]:
    """Ids of strings or bytes: a string has that of its UTF-8 bytes.

    Args:
        strings: a list or tuple of str or bytes; a NumPy array of str, bytes or objects that are these, of any shape;
            what NumPy makes one of, such as pandas' Series; or an Arrow array, chunked or not, of strings or binary,
            dictionary-encoded or not. NumPy itself drops NUL characters at the end of its fixed-width ``U`` and ``S``.
        salt: XXH64's seed, in 0..2^64 - 1. Another one gives other ids. 0 is what ClickHouse and Trino have, 42
            Spark.

    Returns:
        int64, of the array's shape; ``(n,)`` for the rest.

    Raises:
        TypeError: they are no strings or bytes, or one string alone; `salt` is no int.
        ValueError: one is null, or holds half of a surrogate pair, which UTF-8 cannot; `salt` is out of range.
        ImportError: the package ``xxhash`` is missing.
    """
    check_salt(salt)
    if _is_arrow(strings):
        return _of_arrow(strings, salt)
    if isinstance(strings, str | bytes):
        raise TypeError(f"strings must be a list or an array of strings, got one: {strings!r:.40}")
    if not isinstance(strings, list | tuple):
        if not hasattr(strings, "__array__"):
            raise TypeError(f"strings must be a list or an array of strings, got {type(strings).__name__}")
        if np.ma.is_masked(strings):  # NumPy drops the mask
            raise ValueError(_NULL.format(np.flatnonzero(np.ma.getmaskarray(strings))[0]))
        array = np.asarray(strings)
        if array.dtype.kind not in "USOT":
            raise TypeError(f"strings must be str or bytes, got an array of {array.dtype}")
        return _of_list(array.ravel().tolist(), salt).reshape(array.shape)
    return _of_list(strings, salt)


def check_salt(salt: object) -> None:
    """Raises TypeError or ValueError for what is no salt."""
    if isinstance(salt, bool) or not isinstance(salt, int):
        raise TypeError(f"salt must be an int, got {salt!r}")
    if not 0 <= salt <= MOST_SALT:
        raise ValueError(f"salt must be in 0..2^64 - 1, got {salt}")


def _of_list(strings: list[Any] | tuple[Any, ...], salt: int) -> npt.NDArray[np.int64]:
    kinds = set(map(type, strings))
    if kinds <= {bytes}:
        return _hashed(strings, len(strings), salt)
    if not all(issubclass(kind, str | bytes) for kind in kinds):
        place = next(i for i, string in enumerate(strings) if not isinstance(string, str | bytes))
        if _is_null(strings[place]):
            raise ValueError(_NULL.format(place))
        raise TypeError(f"strings must be str or bytes, got {type(strings[place]).__name__} at position {place}")
    encoded: Iterable[bytes] = (string.encode() if isinstance(string, str) else string for string in strings)
    if kinds == {str}:
        encoded = map(str.encode, strings)
    try:
        return _hashed(encoded, len(strings), salt)
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.object!r:.40} has no UTF-8: {error.reason}") from None


def _is_null(value: object) -> bool:
    """Whether it stands for nothing: None, NaN, or pandas' NA, of which no comparison is true or false, and NaT."""
    names = ("NAType", "NaTType")
    return value is None or (isinstance(value, float) and value != value) or type(value).__name__ in names


def _of_arrow(strings: Any, salt: int) -> npt.NDArray[np.int64]:
    import pyarrow as pa

    dictionary = pa.types.is_dictionary(strings.type)
    of = strings.type.value_type if dictionary else strings.type
    if not any(is_one(of) for is_one in _string_types(pa.types)):
        raise TypeError(f"strings must be str or bytes, got an Arrow array of {strings.type}")
    if strings.null_count:
        raise ValueError(_NULL.format(strings.is_null().index(True).as_py()))
    if isinstance(strings, pa.ChunkedArray):
        parts = [_of_arrow(chunk, salt) for chunk in strings.chunks]
        together: npt.NDArray[np.int64] = np.concatenate([np.empty(0, np.int64), *parts])
        return together
    if dictionary and strings.dictionary.null_count == 0:
        of_entries: npt.NDArray[np.int64] = _of_arrow(strings.dictionary, salt)[strings.indices.to_numpy()]
        return of_entries
    if dictionary:
        return _of_arrow(strings.dictionary_decode(), salt)
    in_bytes = strings if pa.types.is_fixed_size_binary(of) else strings.cast(pa.large_binary())
    return _hashed(in_bytes.to_numpy(zero_copy_only=False), len(strings), salt)


def _string_types(types: Any) -> list[Callable[[Any], bool]]:
    """What tells Arrow's types of strings and binary; views came with pyarrow 16."""
    kinds = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "fixed_size_binary")
    return [getattr(types, f"is_{kind}") for kind in kinds if hasattr(types, f"is_{kind}")]


_NULL = "strings must not be null, got null at position {}: leave it out, or say what string stands for it"


def _hashed(strings: Iterable[bytes], count: int, salt: int) -> npt.NDArray[np.int64]:
    try:
        from xxhash import xxh64_intdigest
    except ImportError as error:
        raise ImportError(f"ids of strings need pip install 'damo-torchrec[strings]': {error}") from error
    return np.fromiter(map(xxh64_intdigest, strings, repeat(salt)), np.uint64, count).view(np.int64)


def _is_arrow(value: object) -> bool:
    """Whether it is an array of pyarrow: none is, while nobody has imported that."""
    pa = sys.modules.get("pyarrow")
    return pa is not None and isinstance(value, pa.Array | pa.ChunkedArray)
