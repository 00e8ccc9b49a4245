"""Cards of exported graphs: made of an export's parts, and read for the user. graph_card.py has their form."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.files import os_errors
from damo_torchrec.graph_card import CARD, DenseCard, Feature, FullCard, LookupCard, parse_card
from damo_torchrec.graph_check import parse_graph
from damo_torchrec.onnx.arguments import FeatureInput, JaggedInput
from damo_torchrec.onnx.rows import RowGroup
from damo_torchrec.onnx.sessions import existing_model_file
from damo_torchrec.onnx.stand_ins import LookupCall
from damo_torchrec.store.embedding_store import EmbeddingStore


def set_card(proto: onnx.ModelProto, card: FullCard | DenseCard) -> None:
    """Puts a card into a graph."""
    proto.metadata_props.add(key=CARD, value=card.dump())


def model_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What an exported model says of itself: store, seed, step, features, tables, rows and options.

    Args:
        path: what `export` was given.

    Raises:
        ValueError: there is no such file, or it is none that `export` made.
        CorruptionError: it is damaged.
        DamoError: it cannot be read.
    """
    file = existing_model_file(path)
    with os_errors(f"cannot read {file}"):
        content = file.read_bytes()
    for entry in parse_graph(content, file).metadata_props:
        if entry.key == CARD:
            return parse_card(entry.value, str(file))
    raise ValueError(f"{file} is no model that damo_torchrec.onnx.export made: it has no metadata {CARD!r}")


@dataclass(frozen=True)
class About:
    """What both kinds of cards say.

    Args:
        store: where the rows are.
        features: the model's KeyedJaggedTensors.
        jagged: its JaggedTensors.
        by_sample: whether it answers each sample by itself; None if that is not known.
        calls: its lookups.
    """

    store: EmbeddingStore
    features: Sequence[FeatureInput]
    jagged: Sequence[JaggedInput]
    by_sample: bool | None
    calls: Sequence[LookupCall]

    def entries(self) -> dict[str, Any]:
        """The card's."""
        return {
            "store": str(self.store.path),
            "seed": self.store.seed,
            "step": self.store.step,
            "features": {
                feature.name: Feature(tuple(feature.keys), feature.weighted, string_salts(feature, self.calls))
                for feature in self.features
            },
            "jagged": tuple(jagged.name for jagged in self.jagged),
            "by_sample": self.by_sample,
        }


def string_salts(feature: FeatureInput, calls: Sequence[LookupCall]) -> dict[str, int]:
    """By key of a KeyedJaggedTensor whose ids are hashed strings, the salt.

    A lookup of what the model made itself, of a permuted one for example, goes by the names of features.

    Raises:
        ValueError: a key is looked up in tables that say otherwise of it.
    """
    found: dict[str, dict[int | None, str]] = {}
    for call in calls:
        if call.source in (feature.name, None):
            for output in call.plan.outputs:
                found.setdefault(output.feature, {})[output.string_salt] = output.table
    for key in feature.keys:
        if len(tables := found.get(key, {})) > 1:
            by_table = {table: salt for salt, table in tables.items()}
            raise ValueError(f"tables differ in the string_salt of feature {key!r}: {by_table}")
    salts = {key: next(iter(found[key])) for key in feature.keys if key in found}
    return {key: salt for key, salt in salts.items() if salt is not None}


def full_card(about: About, groups: Mapping[int, RowGroup], options: Mapping[str, Any], directory: Path) -> FullCard:
    """Of a graph with rows, which is to be in `directory`. Reads its other files, piece by piece, for their SHA-256."""
    tables = {
        name: {"dim": group.dim, "rows": rows} for group in groups.values() for name, rows in group.num_rows.items()
    }
    files = {
        file.relative_to(directory).as_posix(): asdict(FileEntry.of(file))
        for group in groups.values()
        for _, _, file in group.files.values()
        if file.exists()
    }
    return FullCard(**about.entries(), tables=tables, options=options, files=files)


def dense_card(about: About, inputs: Sequence[Sequence[str]], unseen: Mapping[str, str]) -> DenseCard:
    """Of a graph that is given what its lookups would find: how to find it.

    Args:
        about: the model.
        inputs: by lookup, the inputs that are for its outputs, "" for those that the graph does not need.
        unseen: by table, what ids without a row read as.

    Raises:
        ValueError: a lookup is not of an argument as it is.
    """
    lookups = [_lookup(call, names, unseen) for call, names in zip(about.calls, inputs, strict=True) if any(names)]
    return DenseCard(**about.entries(), lookups=tuple(lookups))


def _lookup(call: LookupCall, names: Sequence[str], unseen: Mapping[str, str]) -> LookupCard:
    if call.source is None:
        raise ValueError(
            f"{call.path} is not given an argument of the model's forward as it is: a dense graph cannot say what "
            "to look up"
        )
    # Sequences have an input each, pooled outputs one for all.
    of_outputs = names if len(names) > 1 else [*names] * len(call.plan.outputs)
    outputs = tuple(
        replace(output, unseen=unseen[output.table])
        for output, name in zip(call.plan.outputs, of_outputs, strict=True)
        if name
    )
    graph_inputs = tuple(name for name in names if name)
    return LookupCard(call.path, call.source, graph_inputs, replace(call.plan, outputs=outputs))
