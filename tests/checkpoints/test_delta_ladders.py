"""Deltas of tables whose rows die: what is in them, what several come to, and which are refused."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import damo_torchrec as damo
from damo_torchrec import Delta
from damo_torchrec.checkpoints import folding
from damo_torchrec.checkpoints.folding import fold_deltas
from damo_torchrec.checkpoints.ladder import CLASSES, Ladder
from damo_torchrec.checkpoints.manifest import new_id
from delta_model import Model
from forging import forge_delta, forged_copy
from plain_store import Moment, PlainStore, Policy, Row


@dataclass
class PlainServer:
    """A dictionary that deltas are applied to."""

    rows: dict[int, Row] = field(default_factory=dict)

    def apply(self, path: Path) -> None:
        table = Delta.read(path).tables["t"]
        assert table.headers is not None
        assert table.ladder is not None
        for i in table.deleted.tolist():
            self.rows.pop(i, None)
        for i, weights, (last, count) in zip(table.ids.tolist(), table.weights, table.headers.tolist(), strict=True):
            self.rows[i] = Row(tuple(weights.tolist()), last, count)
        there = PlainStore(self.rows, 0, [], table.ladder)
        there.forget()


def new_store() -> PlainStore:
    return PlainStore({}, 0, [Moment(new_id(), 0)])


@pytest.mark.parametrize("seed", range(20))
def test_servers_have_what_the_store_has(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, folded, and folded deltas folded."""
    monkeypatch.setattr(folding, "_WORKING_BYTES", 100)  # so that arrays are cut
    chance = random.Random(seed)
    policy = Policy.any(chance)
    store = new_store()
    one_by_one, folded, twice = PlainServer(), PlainServer(), PlainServer()
    paths: list[Path] = []
    for number in range(9):
        for _ in range(chance.randrange(8)):
            ids = chance.sample(range(30), 3)
            rows = {i: (float(chance.randrange(9)), 1.0) for i in ids}
            kind = chance.random()
            if kind < 0.7:
                store.update(rows)
                store.raise_ladder(policy.ladder(store, chance.choice([0, 128])))
            elif kind < 0.85:
                store.set(rows)
            else:
                store.delete(ids)
        paths.append(store.delta(tmp_path / f"{number}", store.moments[-1], seed=0))
        one_by_one.apply(paths[-1])
        assert one_by_one.rows == store.rows
        if number % 3 == 2:
            folded.apply(fold_deltas(paths[-3:], tmp_path / f"folded-{number}"))
            assert folded.rows == store.rows
    twice.apply(fold_deltas([tmp_path / f"folded-{number}" for number in (2, 5, 8)], tmp_path / "twice"))
    assert twice.rows == store.rows


def test_rows_of_before_any_died_go_where_later_deltas_do_not_bring_them_back(tmp_path: Path) -> None:
    store = new_store()
    store.update(dict.fromkeys(range(4), (1.0, 1.0)))
    before = store.delta(tmp_path / "before", store.moments[-1], seed=0)
    forge_delta(before, lambda body: (body["tables"]["t"].pop("ladder"), body["files"].pop("1.headers.npy")))
    store.update({0: (2.0, 2.0)})
    store.raise_ladder(Ladder.of_steps((2,) * CLASSES))
    since_then = store.delta(tmp_path / "since-then", store.moments[-1], seed=0)
    delta = Delta.read(fold_deltas([before, since_then], tmp_path / "folded"))
    assert delta.tables["t"].ids.tolist() == [0]
    assert delta.tables["t"].deleted.tolist() == [1, 2, 3]


def test_tables_whose_rows_do_not_die_are_written_as_ever(tmp_path: Path) -> None:
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        model = Model(store)
        base = store.checkpoint()
        model.train("a", [1])
        path = store.export_delta(tmp_path / "delta", since=base)
    document = json.loads((path / "delta.json").read_text())
    assert document["format_version"] == 1
    assert document["delta"]["tables"]["a"].keys() == {"number", "dim", "changed", "deleted"}
    assert sorted(document["delta"]["files"]) == [
        f"{n}.{of}.npy" for n in (1, 2) for of in ("deleted", "ids", "weights")
    ]


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of step 6, with the ids 1 and 2, updated at 5 and 6, and a ladder that stands at 3."""
    store = PlainStore({}, 4, [Moment(new_id(), 0)])
    store.update({1: (1.0, 1.0)})
    store.update({2: (1.0, 1.0)})
    store.raise_ladder(Ladder.of_steps((3,) * CLASSES))
    return store.delta(tmp_path_factory.mktemp("delta") / "delta", store.moments[0], seed=0)


def headers(change: Callable[[Any], Any]) -> Callable[[Path], object]:
    name = "1.headers.npy"
    return lambda path: np.save(path / name, change(np.load(path / name)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (headers(lambda h: h - np.uint32([3, 0])), "dead by the delta's own ladder"),
        (headers(lambda h: h + np.uint32([1, 0])), "rows of steps after 6"),
        (headers(lambda h: h[:1]), r"expected <u4 \(2, 2\), found"),
        (headers(lambda h: h.astype(np.int64)), r"expected <u4 \(2, 2\), found"),
        (lambda path: (path / "1.headers.npy").unlink(), "headers.npy is missing"),
    ],
)
def test_forged_headers_are_refused(
    delta: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    with pytest.raises(damo.CorruptionError, match=message):
        Delta.read(forged_copy(delta, tmp_path / "copy", change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body["tables"]["t"].update(ladder=[3] * 35), "a ladder is 34 positions"),
        (
            lambda body: body["tables"]["t"].update(ladder=[1537] + [3] * 33),
            "stands at position 1537, but .* leads to 1536",
        ),
        (lambda body: body["tables"]["t"].update(ladder=[-1] * 34), r"ladder\[0\] is -1"),
        (lambda body: body["tables"]["t"].update(ladder="high"), "ladder is 'high'"),
        (lambda body: body["files"].pop("1.headers.npy"), r"files lack \['1.headers.npy'\]"),
    ],
)
def test_forged_ladders_are_refused(delta: Path, tmp_path: Path, change: Any, message: str) -> None:
    copy = forged_copy(delta, tmp_path / "copy", lambda _: None)
    forge_delta(copy, change)
    with pytest.raises(damo.CorruptionError, match=message):
        Delta.read(copy)


def test_format_1_has_no_ladders(delta: Path, tmp_path: Path) -> None:
    copy = forged_copy(delta, tmp_path / "copy", lambda _: None)
    document = json.loads((copy / "delta.json").read_text())
    assert document["format_version"] == 2
    (copy / "delta.json").write_text(json.dumps({**document, "format_version": 1}))
    with pytest.raises(damo.CorruptionError, match="it has ladders, which format version 1 has not"):
        Delta.read(copy)
