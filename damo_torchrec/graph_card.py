"""What an exported graph says of itself: a card, as JSON in the graph's metadata.

A graph with rows has a `FullCard`; a dense graph, which is given what its lookups would find, has a `DenseCard`, which
says how to find it. ``format_version`` rises when a reader has to know of a change.

A card has the SHA-256 of the graph's file, too, which it is in itself: that of the file with 64 zeros in its place.
"""

import hashlib
import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from damo_torchrec.errors import CorruptionError
from damo_torchrec.lookup_plan import LookupKind, LookupOutput, LookupPlan

CARD = "damo_torchrec"  # the card's key in a graph's metadata
_FORMAT_VERSION = 1
SEAL = "graph_sha256"
UNSEALED = "0" * 64
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[^/\\\0]+(/[^/\\\0]+)*")
_CARDS = ("dense", "full")
_KINDS = tuple(kind.value for kind in LookupKind)
_DIMS = range(1, 2**31)


@dataclass(frozen=True)
class Feature:
    """A KeyedJaggedTensor that the model's forward takes.

    Args:
        keys: its keys.
        weighted: whether it has weights.
        string_salts: by key whose ids are `hash_strings` of strings, the salt.
    """

    keys: tuple[str, ...]
    weighted: bool
    string_salts: Mapping[str, int] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        """Its entry in a card."""
        salts = {"string_salts": dict(self.string_salts)} if self.string_salts else {}
        return {"keys": list(self.keys), "weighted": self.weighted, **salts}


@dataclass(frozen=True)
class LookupCard:
    """A call of a collection, whose outputs are inputs of the graph.

    Args:
        path: where the collection is in the model.
        input: the argument that it is given.
        graph_inputs: what its outputs are called in the graph: each for itself, or if they are pooled all as one.
        plan: what is looked up. Of sequences, those that the graph takes.
    """

    path: str
    input: str
    graph_inputs: tuple[str, ...]
    plan: LookupPlan


@dataclass(frozen=True)
class Card:
    """What all graphs say.

    Args:
        store: the directory of the store that the model was over.
        seed: the store's.
        step: the store's.
        features: by name, the KeyedJaggedTensors that the model's forward takes.
        jagged: names of the JaggedTensors that it takes.
        by_sample: whether a sample's answer is the same whatever samples are asked with it; None if it is not known.
    """

    store: str
    seed: int
    step: int
    features: Mapping[str, Feature]
    jagged: tuple[str, ...]
    by_sample: bool | None

    def _dump(self, kind: str, **more: Any) -> str:
        about = {
            "store": self.store,
            "seed": self.seed,
            "step": self.step,
            "features": {name: feature.dump() for name, feature in self.features.items()},
            "jagged": list(self.jagged),
            "by_sample": self.by_sample,
            SEAL: UNSEALED,
        }
        return json.dumps({"format_version": _FORMAT_VERSION, "kind": kind, **about, **more})


@dataclass(frozen=True)
class FullCard(Card):
    """Of a graph with rows.

    Args:
        tables: by name, ``dim`` and the number of ``rows`` that were exported.
        options: of the export.
        files: the graph's other files, by name, as in its own directory: ``size`` and ``sha256``.
    """

    tables: Mapping[str, Mapping[str, int]]
    options: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    def dump(self) -> str:
        """The card as JSON."""
        return self._dump("full", tables=self.tables, options=self.options, files=self.files)


@dataclass(frozen=True)
class DenseCard(Card):
    """Of a graph that is given what its lookups would find."""

    lookups: tuple[LookupCard, ...]

    def dump(self) -> str:
        """The card as JSON."""
        return self._dump("dense", lookups=[_dump_lookup(lookup) for lookup in self.lookups])

    @staticmethod
    def parse(text: str | None, where: str) -> "DenseCard":
        """Reads a card.

        Raises:
            CorruptionError: it is none of a dense graph, contradicts itself, or is of a later format; names `where` it
                is from.
        """
        if text is None:
            raise CorruptionError(f"{where} is no graph that damo_torchrec made: it has no metadata {CARD!r}")
        with _damage(where):
            card = _card(text, "dense")
            features = _features(card)
            lookups = tuple(_lookup(entry, features) for entry in _entry(card, "lookups", list))
            _check_together(lookups)
            about = {key: card[key] for key in ("store", "seed", "step", "by_sample")}
            return DenseCard(**about, features=features, jagged=_jagged(card, features), lookups=lookups)


def parse_card(text: str, where: str) -> dict[str, Any]:
    """Checks a card of either kind, and returns it as it is. Raises CorruptionError as `DenseCard.parse`."""
    with _damage(where):
        card = _card(text, *_CARDS)
        features = _features(card)
        _jagged(card, features)
        if card["kind"] == "dense":
            _check_together([_lookup(entry, features) for entry in _entry(card, "lookups", list)])
        else:
            _entry(card, "options", dict)
            tables = _entry(card, "tables", dict)
            for name in tables:
                table = _entry(tables, name, dict)
                _entry(table, "dim", int, allowed=_DIMS)
                _entry(table, "rows", int, allowed=range(2**63))
            files = _entry(card, "files", dict) if "files" in card else {}
            for name in files:
                file = _entry(files, name, dict)
                _entry(file, "size", int, allowed=range(2**63))
                _sha256(file, "sha256")
                if not _FILE_NAME.fullmatch(name) or not {".", ".."}.isdisjoint(name.split("/")):
                    raise ValueError(f"{name!r:.80} is no name of a file beside the graph")
        return card


# ------------------------------------------------------------------ its SHA-256


def sealed(graph: bytes) -> bytes:
    """A graph's file, with its SHA-256 in its card. REQUIRES: that has `UNSEALED` there, as of `Card.dump`."""
    return graph.replace(_seal(UNSEALED), _seal(hashlib.sha256(graph).hexdigest()), 1)


def is_sealed(graph: bytes, sha256: str) -> bool:
    """Whether a graph's file is as it was when it was sealed, with this SHA-256."""
    digest = hashlib.sha256()
    before, found, after = (memoryview(part) for part in graph.partition(_seal(sha256)))
    for part in (before, _seal(UNSEALED) if found else b"", after):
        digest.update(part)
    return digest.hexdigest() == sha256


def _seal(sha256: str) -> bytes:
    return f'"{SEAL}": "{sha256}"'.encode()


# ------------------------------------------------------------------ reading


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """Turns what is wrong with a card into CorruptionError."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{where} does not say how to look up its inputs: {error!r}") from error


def _entry(of: Any, key: str, kind: type, allowed: Container[Any] | None = None) -> Any:
    """An entry of an object, of this type and among these values. Raises ValueError if it is not so."""
    value = of.get(key) if type(of) is dict else None
    if type(value) is not kind or (allowed is not None and value not in allowed):
        expected = f"not one of {allowed}" if allowed is not None else f"no {kind.__name__}"
        raise ValueError(f"{key} {value!r:.80} is {expected}")
    return value


def _strings(of: Any, key: str) -> tuple[str, ...]:
    """An entry that is a list of different strings."""
    values = _entry(of, key, list)
    if not all(type(value) is str for value in values) or len(set(values)) != len(values):
        raise ValueError(f"{key} is {values!r:.80}, expected different strings")
    return tuple(values)


def _card(text: str, *kinds: str) -> dict[str, Any]:
    """What all cards have, but for features."""
    card: dict[str, Any] = json.loads(text)
    if (version := _entry(card, "format_version", int)) != _FORMAT_VERSION:
        raise ValueError(f"it has format version {version}; this version reads {_FORMAT_VERSION}")
    if (kind := _entry(card, "kind", str, allowed=_CARDS)) not in kinds:
        raise ValueError(f"it is a {kind} graph, expected a {kinds[0]} one")
    _entry(card, "seed", int, allowed=range(-(2**127), 2**127))
    _entry(card, "step", int, allowed=range(2**32))
    card.setdefault("store", "")  # for people alone
    _entry(card, "store", str)
    card.setdefault("by_sample", None)
    if card["by_sample"] is not None:
        _entry(card, "by_sample", bool)
    card.setdefault("jagged", [])
    if SEAL in card:
        _sha256(card, SEAL)
    return card


def _sha256(of: Any, key: str) -> None:
    if not _SHA256.fullmatch(_entry(of, key, str)):
        raise ValueError(f"{key} {of[key]!r:.80} is no SHA-256")


def _jagged(card: Any, features: Container[str]) -> tuple[str, ...]:
    names = _strings(card, "jagged")
    if both := [name for name in names if name in features]:
        raise ValueError(f"{both} are JaggedTensors and KeyedJaggedTensors at once")
    return names


def _features(card: Any) -> dict[str, Feature]:
    features = _entry(card, "features", dict)
    return {name: _feature(features[name]) for name in features}


def _feature(entry: Any) -> Feature:
    keys, weighted = _strings(entry, "keys"), _entry(entry, "weighted", bool)
    salts = _entry(entry, "string_salts", dict) if "string_salts" in entry else {}
    for key in salts:
        _entry(salts, key, int, allowed=range(2**64))
    if unknown := sorted(set(salts) - set(keys)):
        raise ValueError(f"string_salts has {unknown!r:.80}, which are no keys: {list(keys)!r:.80}")
    return Feature(keys, weighted, salts)


def _lookup(entry: Any, features: Mapping[str, Feature]) -> LookupCard:
    """A lookup that fits the features that it is given."""
    kind = LookupKind(_entry(entry, "kind", str, allowed=_KINDS))
    outputs = tuple(_output(output) for output in _entry(entry, "outputs", list))
    weighted, padding = _entry(entry, "weighted", bool), entry.get("padding")
    if padding is not None:
        _entry(entry, "padding", int, allowed=range(-(2**63), 2**63))
    lookup = LookupCard(
        _entry(entry, "path", str),
        _entry(entry, "input", str),
        _strings(entry, "graph_inputs"),
        LookupPlan(kind, outputs, weighted, padding),
    )
    rows = kind is LookupKind.ROWS
    if len(lookup.graph_inputs) != (len(outputs) if kind is LookupKind.SEQUENCES else 1) or not outputs:
        raise ValueError(f"{lookup.path} has {len(outputs)} outputs for the inputs {list(lookup.graph_inputs)}")
    if (
        (rows and len(outputs) != 1)
        or (weighted and kind is not LookupKind.POOLED)
        or (padding is not None and not rows)
    ):
        raise ValueError(f"{lookup.path} is no {kind.value}")
    if rows == (lookup.input in features):
        raise ValueError(f"{lookup.path} looks up {lookup.input!r}; KeyedJaggedTensors are {sorted(features)}")
    if not rows:
        feature = features[lookup.input]
        if absent := sorted(set(lookup.plan.features) - set(feature.keys)):
            raise ValueError(
                f"{lookup.path} looks up {absent}, which {lookup.input} does not have: {list(feature.keys)}"
            )
        if weighted > feature.weighted:
            raise ValueError(f"{lookup.path} needs weights, which {lookup.input} does not have")
    return lookup


def _output(entry: Any) -> LookupOutput:
    return LookupOutput(
        _entry(entry, "key", str),
        _entry(entry, "table", str),
        _entry(entry, "dim", int, allowed=_DIMS),
        _entry(entry, "pooling", str, allowed=("SUM", "MEAN")) == "MEAN",
        _entry(entry, "unseen", str, allowed=("zeros", "initial", "mean")),
    )


def _check_together(lookups: Sequence[LookupCard]) -> None:
    """Raises ValueError if lookups contradict each other."""
    inputs = [name for lookup in lookups for name in lookup.graph_inputs]
    if len(set(inputs)) != len(inputs):
        raise ValueError(f"several lookups are for one input: {sorted(inputs)}")
    unseen: dict[str, str] = {}
    for output in (output for lookup in lookups for output in lookup.plan.outputs):
        if (other := unseen.setdefault(output.table, output.unseen)) != output.unseen:
            raise ValueError(f"ids without a row of table {output.table!r} read as {other} and as {output.unseen}")


# ------------------------------------------------------------------ writing


def _dump_lookup(lookup: LookupCard) -> dict[str, Any]:
    plan = lookup.plan
    return {
        "kind": plan.kind.value,
        "path": lookup.path,
        "input": lookup.input,
        "graph_inputs": list(lookup.graph_inputs),
        "weighted": plan.weighted,
        "padding": plan.padding,
        "outputs": [
            {
                "key": output.feature,
                "table": output.table,
                "dim": output.dim,
                "pooling": "MEAN" if output.mean else "SUM",
                "unseen": output.unseen,
            }
            for output in plan.outputs
        ],
    }
