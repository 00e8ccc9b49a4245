"""What an exported graph says of itself: a card, as JSON in the graph's metadata.

A graph with rows has a `FullCard`; a dense graph, which is given what its lookups would find, has a `DenseCard`, which
says how to find it. ``format_version`` rises when a reader has to know of a change.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from damo_torchrec.errors import CorruptionError
from damo_torchrec.modules.lookup_plan import LookupKind, LookupOutput, LookupPlan

CARD = "damo_torchrec"  # the card's key in a graph's metadata
_FORMAT_VERSION = 1
_KINDS = tuple(kind.value for kind in LookupKind)


@dataclass(frozen=True)
class Feature:
    """A KeyedJaggedTensor that the model's forward takes."""

    keys: tuple[str, ...]
    weighted: bool


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
    """

    store: str
    seed: int
    step: int
    features: Mapping[str, Feature]

    def _dump(self, kind: str, **more: Any) -> str:
        features = {name: {"keys": list(f.keys), "weighted": f.weighted} for name, f in self.features.items()}
        about = {"store": self.store, "seed": self.seed, "step": self.step, "features": features}
        return json.dumps({"format_version": _FORMAT_VERSION, "kind": kind, **about, **more})


@dataclass(frozen=True)
class FullCard(Card):
    """Of a graph with rows.

    Args:
        tables: by name, ``dim`` and the number of ``rows`` that were exported.
        options: of the export.
    """

    tables: Mapping[str, Mapping[str, int]]
    options: Mapping[str, Any]

    def dump(self) -> str:
        """The card as JSON."""
        return self._dump("full", tables=self.tables, options=self.options)


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
            CorruptionError: it is none of a dense graph, or of a later format; names `where` it is from.
        """
        if text is None:
            raise CorruptionError(f"{where} is no graph that damo_torchrec made: it has no metadata {CARD!r}")
        try:
            card = json.loads(text)
            version, kind = card["format_version"], card["kind"]
            if version != _FORMAT_VERSION:
                raise CorruptionError(f"{where} has format version {version}; this version reads {_FORMAT_VERSION}")
            if kind != "dense":
                raise ValueError(f"it is a {kind} graph, expected a dense one")
            return DenseCard(
                store=str(card.get("store", "")),  # for people alone
                seed=int(card["seed"]),
                step=int(card["step"]),
                features={n: Feature(tuple(f["keys"]), bool(f["weighted"])) for n, f in card["features"].items()},
                lookups=tuple(_parse_lookup(lookup) for lookup in card["lookups"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptionError(f"{where} does not say how to look up its inputs: {error!r}") from error


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


def _parse_lookup(lookup: Mapping[str, Any]) -> LookupCard:
    if lookup["kind"] not in _KINDS:
        raise ValueError(f"collection {lookup['kind']!r} is not one of {_KINDS}")
    outputs = tuple(
        LookupOutput(o["key"], o["table"], int(o["dim"]), {"SUM": False, "MEAN": True}[o["pooling"]], o["unseen"])
        for o in lookup["outputs"]
    )
    plan = LookupPlan(LookupKind(lookup["kind"]), outputs, bool(lookup["weighted"]), lookup.get("padding"))
    return LookupCard(lookup["path"], lookup["input"], tuple(lookup["graph_inputs"]), plan)
