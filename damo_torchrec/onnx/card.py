"""What an exported model says of itself, in the metadata of its graph: JSON."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from damo_torchrec.onnx.arguments import FeatureInput
from damo_torchrec.onnx.rows import RowGroup
from damo_torchrec.onnx.session import CARD, existing_model_file
from damo_torchrec.onnx.stand_ins import LookupCall
from damo_torchrec.store.embedding_store import EmbeddingStore

_FORMAT_VERSION = 1


def set_card(proto: onnx.ModelProto, card: Mapping[str, Any]) -> None:
    """Puts a card into a graph."""
    proto.metadata_props.add(key=CARD, value=json.dumps(card))


def model_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What an exported model says of itself: store, seed, step, features, tables, rows and options.

    Args:
        path: what `export` was given.

    Raises:
        ValueError: there is no such file, or it is none that `export` made.
    """
    file = existing_model_file(path)
    for entry in onnx.load(str(file), load_external_data=False).metadata_props:
        if entry.key == CARD:
            card: dict[str, Any] = json.loads(entry.value)
            return card
    raise ValueError(f"{file} is no model that damo_torchrec.onnx.export made: it has no metadata {CARD!r}")


def full_card(
    store: EmbeddingStore,
    features: Sequence[FeatureInput],
    groups: Mapping[int, RowGroup],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Of a graph with rows."""
    tables = {
        name: {"dim": group.dim, "rows": rows} for group in groups.values() for name, rows in group.num_rows.items()
    }
    return {**_about("full", store, features), "tables": tables, "options": dict(options)}


def dense_card(
    store: EmbeddingStore,
    features: Sequence[FeatureInput],
    calls: Sequence[LookupCall],
    inputs: Sequence[Sequence[str]],
    unseen: Mapping[str, str],
) -> dict[str, Any]:
    """Of a graph that is given what its lookups would find: how to find it.

    Args:
        store: where the rows are.
        features: the model's KeyedJaggedTensors.
        calls: its lookups.
        inputs: by lookup, the inputs that are for its outputs, "" for those that the graph does not need.
        unseen: by table, what ids without a row read as.

    Raises:
        ValueError: a lookup is not of an argument as it is.
    """
    lookups = []
    for call, names in zip(calls, inputs, strict=True):
        if not any(names):
            continue
        if call.source is None:
            raise ValueError(
                f"{call.path} is not given an argument of the model's forward as it is: a dense graph cannot say what "
                "to look up"
            )
        # Sequences have an input each, pooled outputs one for all.
        outputs = [
            {
                "key": output.feature,
                "table": output.table,
                "dim": output.dim,
                "pooling": "MEAN" if output.mean else "SUM",
                "unseen": unseen[output.table],
            }
            for output, name in zip(
                call.outputs, names if len(names) > 1 else [*names] * len(call.outputs), strict=True
            )
            if name
        ]
        lookups.append(
            {
                "kind": call.kind,
                "path": call.path,
                "input": call.source,
                "graph_inputs": [name for name in names if name],
                "weighted": call.weighted,
                "padding": call.padding,
                "outputs": outputs,
            }
        )
    return {**_about("dense", store, features), "lookups": lookups}


def _about(kind: str, store: EmbeddingStore, features: Sequence[FeatureInput]) -> dict[str, Any]:
    return {
        "format_version": _FORMAT_VERSION,
        "kind": kind,
        "store": str(store.path),
        "seed": store.seed,
        "step": store.step,
        "features": {feature.name: {"keys": feature.keys, "weighted": feature.weighted} for feature in features},
    }
