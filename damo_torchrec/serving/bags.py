"""Features of a request by key: a list of bags for each, of ids or, where training hashed strings, of these."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np

from damo_torchrec.graph_card import Feature
from damo_torchrec.ids import hash_strings

_LISTS = (list, tuple, np.ndarray)


def parts_of_bags(name: str, feature: Feature, bags: Mapping[str, Any], weights: object) -> dict[str, Any]:
    """Values, lengths and weights of a KeyedJaggedTensor, by the names of a request.

    Args:
        name: of the argument.
        feature: its keys, and the salts of those whose strings are hashed.
        bags: by key, a list of samples, each a list of ids, or of strings where these are hashed.
        weights: the same of numbers, if the feature is weighted; else None.

    Raises:
        ValueError: keys or samples are not those of the model and of each other, or a string is where none is hashed.
    """
    values, lengths = _flat(name, feature.keys, bags)
    begin = 0
    for key, of_key in zip(feature.keys, lengths, strict=True):
        end = begin + sum(of_key)
        values[begin:end] = _ids(f"{name}.{key}", values[begin:end], feature.string_salts.get(key))
        begin = end
    sizes = sorted({len(of_key) for of_key in lengths})
    if len(sizes) > 1:
        raise ValueError(f"{name} must have one list for each sample in every feature, got {sizes}")
    parts = {f"{name}.values": values, f"{name}.lengths": np.array(lengths, np.int64).reshape(len(lengths), *sizes)}
    if isinstance(weights, Mapping):
        numbers, of_weights = _flat(f"{name}.weights", feature.keys, weights)
        if of_weights != lengths:
            raise ValueError(f"{name}.weights must have a weight for each id of {name}")
        parts[f"{name}.weights"] = numbers
    return parts


def _flat(name: str, keys: Iterable[str], bags: Mapping[str, Any]) -> tuple[list[Any], list[list[int]]]:
    """What is in bags by key, then sample, and how much each sample has."""
    keys = list(keys)
    if bags.keys() != set(keys):
        raise ValueError(f"{name} must have the features {keys}, got {list(bags)}")
    for key in keys:
        if not isinstance(bags[key], _LISTS) or not all(isinstance(sample, _LISTS) for sample in bags[key]):
            raise ValueError(f"{name}.{key} must be a list of lists, one for each sample")
    samples = chain.from_iterable(bags[key] for key in keys)
    return list(chain.from_iterable(samples)), [[len(sample) for sample in bags[key]] for key in keys]


def _ids(name: str, values: list[Any], salt: int | None) -> list[Any]:
    """The ids of strings; what is none stays, to be checked with all others."""
    places = [i for i, value in enumerate(values) if isinstance(value, str | bytes)]
    if not places:
        return values
    if salt is None:
        raise ValueError(
            f"{name} must hold integers, got the string {values[places[0]]!r:.40}: no table of it has a string_salt"
        )
    ids = hash_strings([values[i] for i in places], salt).tolist()
    for i, of_string in zip(places, ids, strict=True):
        values[i] = of_string
    return values
