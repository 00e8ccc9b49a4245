"""Requests and answers as JSON.

A request for a model whose forward takes `dense_features` and the KeyedJaggedTensor
`sparse_features` with the keys `user` and `clicks`, of two samples:

    {"dense_features": [[0.5, 1.0], [0.1, 0.0]],
     "sparse_features": {"user": [[7], [-3]], "clicks": [[1, 2, 2], []]}}

Ids are integers of 64 bits. Where training hashed strings to ids (`TableOptions.string_salt`),
strings are taken, too, and "554" is another id than 554; elsewhere strings are refused, digits too.
Where ids have weights, `sparse_features.weights` has them in the same shape. The answer:

    {"output": [[0.25], [0.5]]}
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from damo_torchrec.serving import Predictor, Request

# Of features and arguments. Python reads objects of many names for seconds, in which nobody else is answered.
MOST_NAMES = 10_000


@dataclass(frozen=True)
class Limits:
    """What requests may hold.

    Attributes:
        body_bytes: of one body.
        values: of one body: numbers and lists, by its commas and brackets. Python takes some 100 bytes for each.
        samples: of one request.
        ids: of one argument of a request.
        bytes_together: of all large bodies that are under way.
    """

    body_bytes: int = 8 << 20
    values: int = 1_000_000
    samples: int = 4096
    ids: int = 262_144
    bytes_together: int = 32 << 20


class TooLargeError(ValueError):
    """A request is beyond the limits."""


def parse(body: bytes | bytearray, limits: Limits) -> dict[str, Any]:
    """What a body says.

    Raises:
        TooLargeError: there are too many values or names in it. They are not read then.
        ValueError: it is not a JSON object of finite numbers, in UTF-8, each of its keys there once.
    """
    values = sum(body.count(sign) for sign in (b",", b"[", b"{"))
    if values > limits.values:
        raise TooLargeError(f"the body holds {values} values; the limit is {limits.values}")
    if (names := body.count(b":")) > MOST_NAMES:
        raise TooLargeError(f"the body holds {names} names; the limit is {MOST_NAMES}")
    try:
        content = json.loads(body.decode(), parse_constant=_no_constant, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("the body is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"the body must be JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"the body must be a JSON object, got {_kind(content)}")
    return content


def to_request(predictor: Predictor, content: dict[str, Any], limits: Limits) -> Request:
    """A request that the predictor takes. Raises ValueError or TypeError if there is none."""
    features = predictor.features
    parts = {f"{name}.{part}" for name in features for part in ("values", "lengths", "weights")}
    weights = {f"{name}.weights" for name in features} & predictor.inputs.keys()
    expected = [*features, *sorted(weights), *(name for name in predictor.inputs if name not in parts)]
    if content.keys() != set(expected):
        raise ValueError(f"the body must have {expected}, got {list(content)}")
    for name in [*features, *weights]:
        if not isinstance(content[name], dict):
            raise ValueError(f"{name} must be an object of features, got {_kind(content[name])}")
        if (count := _count(content[name])) > limits.ids:
            raise TooLargeError(f"{name} holds {count} ids; the limit is {limits.ids}")
    request = predictor.check(content)
    if request.batch > limits.samples:
        raise TooLargeError(f"the request holds {request.batch} samples; the limit is {limits.samples}")
    for name, array in request.arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds a number that {array.dtype} cannot")
    return request


def to_json(outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """An answer; JSON has null for what is not finite."""
    answer = {}
    for name, array in outputs.items():
        is_finite = np.isfinite(array)
        answer[name] = (
            array if is_finite.all() else np.where(is_finite, array.astype(object), np.array(None))
        ).tolist()
    return answer


def _count(features: dict[str, Any]) -> int:
    """Ids of all features, of those that are lists of lists."""
    lists = [bags for bags in features.values() if isinstance(bags, list)]
    return sum(len(bag) for bags in lists for bag in bags if isinstance(bag, list))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"{key!r:.40} is there twice")
        content[key] = value
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a bool", type(None): "null"}
    return kinds.get(type(value), "a number")
