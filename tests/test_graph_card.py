"""What a graph says of itself reads as it was written, and is written as it always was."""

import json

import pytest

from damo_torchrec.errors import CorruptionError
from damo_torchrec.graph_card import DenseCard, Feature, FullCard, LookupCard
from damo_torchrec.modules.lookup_plan import LookupKind, LookupOutput, LookupPlan

FEATURES = {"features": Feature(("a", "b"), weighted=True)}
OUTPUTS = (
    LookupOutput("a", "t", 4, mean=True, unseen="initial"),
    LookupOutput("b", "u", 3, mean=False, unseen="zeros"),
)
POOLED = LookupCard("ebc", "features", ("ebc.pooled",), LookupPlan(LookupKind.POOLED, OUTPUTS, weighted=True))
ROWS = LookupCard("embedding", "ids", ("embedding.rows",), LookupPlan(LookupKind.ROWS, OUTPUTS[1:], padding=0))
DENSE = DenseCard("/store", 7, 30, FEATURES, (POOLED, ROWS))
ABOUT = '"store": "/store", "seed": 7, "step": 30, "features": {"features": {"keys": ["a", "b"], "weighted": true}}'
DENSE_TEXT = (
    '{"format_version": 1, "kind": "dense", ' + ABOUT + ', "lookups": ['
    '{"kind": "EmbeddingBagCollection", "path": "ebc", "input": "features", "graph_inputs": ["ebc.pooled"], '
    '"weighted": true, "padding": null, "outputs": ['
    '{"key": "a", "table": "t", "dim": 4, "pooling": "MEAN", "unseen": "initial"}, '
    '{"key": "b", "table": "u", "dim": 3, "pooling": "SUM", "unseen": "zeros"}]}, '
    '{"kind": "Embedding", "path": "embedding", "input": "ids", "graph_inputs": ["embedding.rows"], '
    '"weighted": false, "padding": 0, "outputs": ['
    '{"key": "b", "table": "u", "dim": 3, "pooling": "SUM", "unseen": "zeros"}]}]}'
)


def test_a_dense_card_is_written_as_it_always_was_and_read_again() -> None:
    assert DENSE.dump() == DENSE_TEXT
    assert DenseCard.parse(DENSE_TEXT, "it") == DENSE


def test_a_full_card_is_written_as_it_always_was() -> None:
    card = FullCard("/store", 7, 30, FEATURES, {"t": {"dim": 4, "rows": 9}}, {"dtype": "int8", "expire": None})
    assert card.dump() == (
        '{"format_version": 1, "kind": "full", ' + ABOUT + ', "tables": {"t": {"dim": 4, "rows": 9}}, '
        '"options": {"dtype": "int8", "expire": null}}'
    )
    with pytest.raises(CorruptionError, match="it is a full graph, expected a dense one"):
        DenseCard.parse(card.dump(), "it")


def test_a_collection_of_a_later_version_is_refused() -> None:
    card = json.loads(DENSE_TEXT)
    card["lookups"][0]["kind"] = "Later"
    with pytest.raises(CorruptionError, match=r"it does not say how .*: ValueError\(.*Later.* is not one of"):
        DenseCard.parse(json.dumps(card), "it")
