"""What a graph says of itself reads as it was written, and is written as it always was."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from damo_torchrec.errors import CorruptionError
from damo_torchrec.graph_card import DenseCard, Feature, FullCard, LookupCard, parse_card
from damo_torchrec.lookup_plan import LookupKind, LookupOutput, LookupPlan

TABLES = {"t": {"dim": 4, "rows": 9}}
FILES = {"model.data-01234567/4.keys": {"size": 72, "sha256": "ab" * 32}}
FEATURES = {"features": Feature(("a", "b"), weighted=True)}
OUTPUTS = (
    LookupOutput("a", "t", 4, mean=True, unseen="initial"),
    LookupOutput("b", "u", 3, mean=False, unseen="zeros"),
)
POOLED = LookupCard("ebc", "features", ("ebc.pooled",), LookupPlan(LookupKind.POOLED, OUTPUTS, weighted=True))
ROWS = LookupCard("embedding", "ids", ("embedding.rows",), LookupPlan(LookupKind.ROWS, OUTPUTS[1:], padding=0))
DENSE = DenseCard("/store", 7, 30, FEATURES, ("history",), True, (POOLED, ROWS))
ABOUT = (
    '"store": "/store", "seed": 7, "step": 30, "features": {"features": {"keys": ["a", "b"], "weighted": true}}, '
    '"jagged": ["history"], "by_sample": true, "graph_sha256": "' + "0" * 64 + '"'
)
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


def test_salts_of_strings_are_read_again() -> None:
    feature = Feature(("a", "b"), weighted=True, string_salts={"b": 2**64 - 1})
    card = DenseCard("/store", 7, 30, {"features": feature}, ("history",), True, (POOLED, ROWS))
    assert '"weighted": true, "string_salts": {"b": 18446744073709551615}}' in card.dump()
    assert DenseCard.parse(card.dump(), "it") == card


def test_a_full_card_is_written_as_it_always_was() -> None:
    card = FullCard("/store", 7, 30, FEATURES, ("history",), True, TABLES, {"dtype": "int8", "expire": None}, FILES)
    assert card.dump() == (
        '{"format_version": 1, "kind": "full", ' + ABOUT + ', "tables": {"t": {"dim": 4, "rows": 9}}, '
        '"options": {"dtype": "int8", "expire": null}, '
        '"files": {"model.data-01234567/4.keys": {"size": 72, "sha256": "' + "ab" * 32 + '"}}}'
    )
    with pytest.raises(CorruptionError, match="it is a full graph, expected a dense one"):
        DenseCard.parse(card.dump(), "it")


def test_a_collection_of_a_later_version_is_refused() -> None:
    card = json.loads(DENSE_TEXT)
    card["lookups"][0]["kind"] = "Later"
    with pytest.raises(CorruptionError, match=r"it does not say how .*: ValueError\(.*Later.* is not one of"):
        DenseCard.parse(json.dumps(card), "it")


def lookup(number: int, **changes: Any) -> Callable[[Any], object]:
    return lambda card: card["lookups"][number].update(changes)


def output(**changes: Any) -> Callable[[Any], object]:
    return lambda card: card["lookups"][0]["outputs"][0].update(changes)


FORGED: list[tuple[Callable[[Any], object], str]] = [
    (lambda card: card.update(step=10**30), "step 1000"),
    (lambda card: card.update(step=-1), "step -1"),
    (lambda card: card.update(step=True), "step True"),
    (lambda card: card.update(seed=float("nan")), "seed nan"),
    (lambda card: card.update(seed=2**127), "seed 170"),
    (lambda card: card.update(store=5), "store 5"),
    (lambda card: card.update(features=[]), r"features \[\]"),
    (lambda card: card.update(features={"f": 5}), "keys None"),
    (lambda card: card["features"]["features"].update(keys=["a", "a"]), "expected different strings"),
    (lambda card: card["features"]["features"].update(keys=["a", 5]), "expected different strings"),
    (lambda card: card["features"]["features"].update(string_salts=[1]), r"string_salts \[1\] is no dict"),
    (lambda card: card["features"]["features"].update(string_salts={"a": -1}), "a -1 is not one of"),
    (lambda card: card["features"]["features"].update(string_salts={"a": 2**64}), "a 18446744073709551616 is not one"),
    (lambda card: card["features"]["features"].update(string_salts={"c": 1}), "which are no keys"),
    (lambda card: card["features"]["features"].update(keys="ab"), "keys 'ab'"),
    (lambda card: card["features"]["features"].update(weighted=1), "weighted 1"),
    (lambda card: card["features"]["features"].update(weighted=False), "needs weights, which features does not have"),
    (lambda card: card.update(format_version=None), "format_version None"),
    (lambda card: card.update(format_version=True), "format_version True"),
    (lambda card: card.update(lookups={}), "lookups {}"),
    (lambda card: card.update(lookups=[5]), "kind None"),
    (lambda card: card["lookups"].append(card["lookups"][0]), "several lookups are for one input"),
    (lookup(0, input="nope"), "looks up 'nope'"),
    (lookup(0, input=None), "input None"),
    (lookup(0, path=7), "path 7"),
    (lookup(0, kind="Embedding"), "is no Embedding"),
    (lookup(0, kind="EmbeddingCollection"), "has 2 outputs for the inputs"),
    (lookup(0, kind=[]), r"kind \[\]"),
    (lookup(0, weighted="yes"), "weighted 'yes'"),
    (lookup(0, padding=0), "is no EmbeddingBagCollection"),
    (lookup(0, outputs=[]), "has 0 outputs"),
    (lookup(0, outputs=None), "outputs None"),
    (lookup(0, graph_inputs=[]), "has 2 outputs for the inputs"),
    (lookup(0, graph_inputs=[[]]), "expected different strings"),
    (lookup(0, graph_inputs=["x", "y"]), "has 2 outputs for the inputs"),
    (lookup(1, weighted=True), "is no Embedding"),
    (lookup(1, padding="x"), "padding 'x'"),
    (lookup(1, padding=2**63), "padding 9223372036854775808"),
    (lookup(1, input="features"), "looks up 'features'"),
    (output(key="zz"), "which features does not have"),
    (output(key=None), "key None"),
    (output(table=[]), r"table \[\]"),
    (output(dim=0), "dim 0"),
    (output(dim=2**31), "dim 2147483648"),
    (output(dim=4.0), "dim 4.0"),
    (output(pooling="MAX"), "pooling 'MAX'"),
    (output(pooling={}), "pooling {}"),
    (output(unseen="x"), "unseen 'x'"),
    (output(unseen=5), "unseen 5"),
    (output(table="u", unseen="initial"), "read as initial and as zeros"),
]


@pytest.mark.parametrize(("change", "message"), FORGED)
def test_cards_that_contradict_themselves_are_refused(change: Callable[[Any], object], message: str) -> None:
    card = json.loads(DENSE_TEXT)
    change(card)
    for parse in (DenseCard.parse, parse_card):
        with pytest.raises(CorruptionError, match=f"^it does not say how to look up its inputs: .*{message}"):
            parse(json.dumps(card), "it")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "", "null", "[]", '"x"', '{"kind": "dense"}', "\ud800"])
def test_what_is_no_card_is_refused(text: str) -> None:
    for parse in (DenseCard.parse, parse_card):
        with pytest.raises(CorruptionError, match=r"^it does not say how to look up its inputs"):
            parse(text, "it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(tables=[]), r"tables \[\]"),
        (lambda card: card.update(options=5), "options 5"),
        (lambda card: card["tables"].update(t=5), "t 5"),
        (lambda card: card["tables"]["t"].update(rows=-1), "rows -1"),
        (lambda card: card["tables"]["t"].update(dim="4"), "dim '4'"),
        (lambda card: card["files"].update({"../other": {"size": 1, "sha256": "ab" * 32}}), "'../other' is no name"),
        (lambda card: card["files"].update({"/other": {"size": 1, "sha256": "ab" * 32}}), "'/other' is no name"),
        (lambda card: card["files"]["model.data-01234567/4.keys"].update(size=-1), "size -1"),
        (lambda card: card["files"]["model.data-01234567/4.keys"].update(sha256="ab"), "sha256 'ab' is no SHA-256"),
        (lambda card: card.update(graph_sha256=5), "graph_sha256 5"),
        (lambda card: card.update(by_sample="yes"), "by_sample 'yes'"),
        (lambda card: card.update(jagged=["features"]), r"\['features'\] are JaggedTensors and KeyedJaggedTensors"),
        (lambda card: card.update(kind="other"), "kind 'other'"),
    ],
)
def test_full_cards_are_checked_as_well(change: Callable[[Any], object], message: str) -> None:
    text = FullCard("/store", 7, 30, FEATURES, (), None, TABLES, {"dtype": "int8"}, FILES).dump()
    card = json.loads(text)
    assert parse_card(text, "it") == card
    change(card)
    with pytest.raises(CorruptionError, match=message):
        parse_card(json.dumps(card), "it")
