"""What a dense graph says of itself: which lookups give its inputs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from damo_torchrec.errors import CorruptionError

CARD = "damo_torchrec"  # in the metadata of a graph; `damo_torchrec.onnx` puts it there
_FORMAT_VERSION = 1
_KINDS = ("EmbeddingBagCollection", "EmbeddingCollection", "Embedding")


@dataclass(frozen=True)
class Feature:
    """A KeyedJaggedTensor that the model's forward takes."""

    keys: tuple[str, ...]
    weighted: bool


@dataclass(frozen=True)
class Output:
    """One output of a collection.

    Args:
        key: the feature.
        table: its table.
        dim: of the table's rows.
        mean: whether bags are means; else sums.
        unseen: what ids without a row read as: ``"zeros"`` or ``"initial"``.
    """

    key: str
    table: str
    dim: int
    mean: bool
    unseen: str


@dataclass(frozen=True)
class LookupCard:
    """A call of a collection.

    Args:
        kind: the collection's class.
        path: where it is in the model.
        input: the argument that it is given.
        graph_inputs: what its outputs are called in the graph.
        weighted: whether it uses the weights of ids.
        padding: an id that reads zeros whatever its row; None for none.
        outputs: in the order of columns, or of `graph_inputs`.
    """

    kind: str
    path: str
    input: str
    graph_inputs: tuple[str, ...]
    weighted: bool
    padding: int | None
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class Card:
    """A dense graph's lookups, and the store and step that it is of."""

    seed: int
    step: int
    features: Mapping[str, Feature]
    lookups: tuple[LookupCard, ...]

    @staticmethod
    def parse(text: str | None, where: str) -> "Card":
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
            features = {name: Feature(tuple(f["keys"]), bool(f["weighted"])) for name, f in card["features"].items()}
            lookups = tuple(_lookup(lookup) for lookup in card["lookups"])
            return Card(int(card["seed"]), int(card["step"]), features, lookups)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptionError(f"{where} does not say how to look up its inputs: {error!r}") from error

    def at(self, step: int) -> "Card":
        """The same of another step."""
        return replace(self, step=step)


def _lookup(lookup: Mapping[str, Any]) -> LookupCard:
    if lookup["kind"] not in _KINDS:
        raise ValueError(f"collection {lookup['kind']!r} is not one of {_KINDS}")
    outputs = tuple(
        Output(o["key"], o["table"], int(o["dim"]), {"SUM": False, "MEAN": True}[o["pooling"]], o["unseen"])
        for o in lookup["outputs"]
    )
    return LookupCard(
        kind=lookup["kind"],
        path=lookup["path"],
        input=lookup["input"],
        graph_inputs=tuple(lookup["graph_inputs"]),
        weighted=bool(lookup["weighted"]),
        padding=lookup.get("padding"),
        outputs=outputs,
    )
