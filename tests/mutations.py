"""What hypothesis makes of files: some bytes changed, or a value somewhere in a JSON document."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**32, 2**63, 2**64, 10**30, -(2**63), 0.5, float("inf"), float("nan")),
    *("", "x", "..", "../x", "/etc/passwd", "a\0b", "\ud800", "0" * 32, "n" * 300, [], {}, [[]], [1], {"a": 1}),
    *("zeros", "initial", "SUM", "MEAN", "EmbeddingBagCollection", "EmbeddingCollection", "Embedding"),
]

Json = Any
Edit = tuple[float, str, int]


def edits(most: int = 3) -> st.SearchStrategy[list[Edit]]:
    """Where, as a part of the length; what; and with which byte, or how often."""
    kinds = st.sampled_from(["set", "insert", "delete", "cut", "repeat"])
    return st.lists(st.tuples(st.floats(0, 1), kinds, st.integers(0, 255)), min_size=1, max_size=most)


def edited(content: bytes, what: list[Edit]) -> bytes:
    for where, kind, value in what:
        at = min(int(where * len(content)), max(len(content) - 1, 0))
        before, here, after = content[:at], content[at : at + 1], content[at + 1 :]
        content = {
            "set": before + bytes([value]) + after,
            "insert": before + bytes([value]) + here + after,
            "delete": before + after,
            "cut": before,
            "repeat": before + here * value + after,
        }[kind]
    return content


def changed_json(document: Json) -> st.SearchStrategy[Json]:
    """The document with one or two of its values replaced by odd ones, left out, or given twice."""
    places = list(_places(document))
    change = st.tuples(
        st.sampled_from(places), st.sampled_from(["replace", "remove", "swap"]), st.sampled_from(ODD_VALUES)
    )
    return st.lists(change, min_size=1, max_size=2).map(lambda changes: _changed(document, changes))


def _places(value: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _changed(document: Json, changes: list[tuple[tuple[Any, ...], str, Any]]) -> Json:
    document = copy.deepcopy(document)
    for path, kind, value in changes:
        above = document
        try:
            for key in path[:-1]:
                above = above[key]
            _apply[kind](above, path[-1], copy.deepcopy(value))
        except (KeyError, IndexError, TypeError):  # an earlier change has taken it away
            continue
    return document


def _replace(above: Json, key: Any, value: Any) -> None:
    above[key] = value


def _remove(above: Json, key: Any, _: Any) -> None:
    del above[key]


def _swap(above: Json, key: Any, _: Any) -> None:
    """With the next one, or under another name."""
    if isinstance(above, list):
        above.append(above[key])
    else:
        others = [other for other in above if other != key]
        above[key], above[others[0]] = above[others[0]], above[key]


_apply: dict[str, Callable[[Json, Any, Any], None]] = {"replace": _replace, "remove": _remove, "swap": _swap}
