"""`EmbeddingStore.forget` in tables whose rows have a life: rows that live, that died, and ids that were only seen."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.checkpoints import atomic_directory
from damo_torchrec.checkpoints.delta import Delta
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.cli import main as cli
from damo_torchrec.rescue.verification import verify
from forgotten import Traces
from processes import kill_this_process, run_until_killed
from raw_records import decode_key, opened
from support import config, kjt

DIM = 16
LIVES, DIED, SEEN, CUT, BORN = 405, -3, -(2**63), 17, 18
PERSON = [LIVES, DIED, SEEN, CUT, BORN]
OTHERS = [1, 2, 3, 4, 2**63 - 1]
MAX_ROWS = 9
DELETED = 1 << 31
RULES = damo.TableOptions(
    admit=damo.Admit(sightings=2), expire=[damo.Idle(steps=8)], max_rows=MAX_ROWS, keep_rows=8, unseen_in_eval="mean"
)


def collection(store: damo.EmbeddingStore, options: damo.TableOptions = RULES) -> damo.EmbeddingBagCollection:
    optimizer = torch.optim.Adagrad, {"lr": 0.1}
    return damo.EmbeddingBagCollection([config("t", DIM)], *optimizer, store=store, table_options={"t": options})


def train(ebc: damo.EmbeddingBagCollection, *batches: list[int]) -> None:
    for batch in batches:
        (ebc(kjt({"t": [[i] for i in batch]})).values() ** 2).sum().backward()


def open_store(path: Path, **arguments: object) -> damo.EmbeddingStore:
    options = damo.StoreOptions(num_threads=2, progress=False)
    store = damo.EmbeddingStore(path, memory_budget="64MiB", options=options, **arguments)
    store.clock = lambda: 0.0
    return store


@dataclass
class Filled:
    """A store, open, whose rows of a person have been everywhere, and what they were like."""

    store: damo.EmbeddingStore
    ebc: damo.EmbeddingBagCollection
    traces: Traces

    @property
    def checkpoints(self) -> list[Path]:
        found = sorted((self.store.path / "checkpoints").glob("[!.]*"))
        return [path for path in found if Manifest.read(path).tables]

    def train(self, *batches: list[int]) -> None:
        """Notes the bytes of all rows of the person after each step."""
        for batch in batches:
            train(self.ebc, batch)
            table = self.store.table("t")
            if there := [i for i in PERSON if bool(table.contains([i]))]:
                self.traces.note(table, there)


def fill(path: Path) -> Filled:
    store = open_store(path)
    filled = Filled(store, collection(store), Traces())
    table = store.table("t")
    filled.train(*[[LIVES, DIED, CUT, *OTHERS]] * 2, [LIVES, CUT, *OTHERS], [SEEN])
    store.checkpoint()
    store.flush()  # rows and sightings are in table files
    filled.train([DIED], [DIED, SEEN])
    filled.train(*[[LIVES, CUT, *OTHERS]] * 3)
    store.checkpoint()  # and in a journal
    filled.train(*[[LIVES, *OTHERS, i] for i in (50, 51, 52) for _ in range(2)])  # more than may be: some are cut
    filled.train([BORN])
    store.checkpoint()
    filled.train(*[[*OTHERS, LIVES]] * 4, [BORN, LIVES])
    store.flush()
    filled.train([DIED], [LIVES])  # which is seen anew
    store.checkpoint(path / "checkpoints" / "mine")
    filled.train([LIVES, SEEN], [BORN])
    assert table.contains(PERSON).tolist() == [True, False, False, False, True]
    return filled


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    made = fill(tmp_path / "store")
    with made.store:
        yield made


def records(checkpoint: Path, scratch: Path) -> dict[tuple[int, int], bytes]:
    """All records by (table number, id), as another program's RocksDB reads them."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with opened(checkpoint, scratch) as rows:
        return {decode_key(key): value for key, value in rows.items()}


def living(checkpoint: Path) -> set[int]:
    with damo.EmbeddingStore(checkpoint, memory_budget="64MiB", read_only=True) as store:
        return {int(i) for ids, _ in store.table("t").items() for i in ids}


def findings(path: Path) -> list[str]:
    return [str(finding) for finding in verify(path, lambda *_: None)]


def state_of(store: damo.EmbeddingStore) -> tuple[object, ...]:
    """All that the rows of a table and their life are."""
    table = store.table("t")
    engine, index = store.session.engine, table.opened.index
    rows = [(ids.tolist(), weights.numpy().tobytes()) for ids, weights in table.items()]
    known = [[*range(60), *PERSON, *OTHERS]]
    counters = [part.tolist() for ids in known for part in table.counters(ids)]
    return rows, counters, len(table), engine.life_bytes(index)


def test_no_record_is_left_of_rows_that_live_that_died_and_of_sightings(filled: Filled, tmp_path: Path) -> None:
    before = {path: records(path, tmp_path / "scratch") for path in filled.checkpoints}
    found = {rows[1, i][0] for rows in before.values() for i in PERSON if (1, i) in rows}
    assert found == {1, 2}, "the test has to have rows and sightings"
    lived = {path: living(path) for path in before}
    stored = {path: {i for (_, i), value in rows.items() if value[0] == 1} for path, rows in before.items()}
    assert any((stored[path] - lived[path]) & {*PERSON} for path in before), "and rows that have died"
    assert filled.traces.files(filled.store.path)
    report = filled.store.forget({"t": PERSON})
    assert report.complete, report
    assert filled.traces.files(filled.store.path) == []
    for path, rows in before.items():
        step = Manifest.read(path).tables["t"].iter.to_bytes(8, "little")
        deletions = {(1 | DELETED, i): b"\1" + step for i in PERSON if i in lived[path]}
        others = {key: value for key, value in rows.items() if key[1] not in PERSON or key[0] != 1}
        assert records(path, tmp_path / "scratch") == {**others, **deletions}
        assert Manifest.read(path).tables["t"].rows == len(lived[path] - {*PERSON})
        assert findings(path) == []
        assert living(path) == lived[path] - {*PERSON}
    assert filled.store.forget({"t": PERSON}).erased == []
    filled.store.close()
    assert filled.traces.files(filled.store.path) == []
    assert findings(filled.store.path) == []


def test_rewritten_checkpoints_go_on_as_a_store_that_deleted_the_rows_there(filled: Filled, tmp_path: Path) -> None:
    shutil.copytree(filled.store.path / "checkpoints", tmp_path / "before")
    filled.store.forget({"t": PERSON})
    for path in filled.checkpoints:
        with (
            open_store(tmp_path / path.name / "forgotten", restore=path) as forgotten,
            open_store(tmp_path / path.name / "deleted", restore=tmp_path / "before" / path.name) as deleted,
        ):
            deleted.table("t").delete(PERSON)
            both = [(store, collection(store)) for store in (forgotten, deleted)]
            for batch in ([1, 2], PERSON, [60, *PERSON], [LIVES, *OTHERS], [60, *PERSON], *[[i, i] for i in range(20)]):
                assert state_of(forgotten) == state_of(deleted)
                for _, ebc in both:
                    train(ebc, batch)
            assert state_of(forgotten) == state_of(deleted)


def test_live_rows_go_on_as_where_they_were_deleted(filled: Filled, tmp_path: Path) -> None:
    path = filled.store.checkpoint()
    with open_store(tmp_path / "other", restore=path) as other:
        other.table("t").delete(PERSON)
        filled.store.forget({"t": PERSON})
        assert state_of(filled.store) == state_of(other)
        batches = [[DIED, SEEN], [DIED, 70], [LIVES, *OTHERS], [70, 71], [71, SEEN]]
        train(filled.ebc, *batches)
        train(collection(other), *batches)
        assert state_of(filled.store) == state_of(other)


def test_ids_that_were_only_seen_are_forgotten_and_told_of(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        train(collection(store), [SEEN, 1], [1])
        path = store.checkpoint()
        would = store.forget({"t": [SEEN]}, dry_run=True)
        report = store.forget({"t": [SEEN]})
        assert (report.erased, report.deleted) == (would.erased, {"t": 0})
        assert {(erased.what, erased.rows) for erased in report.erased} == {("live rows", 1), ("checkpoint", 1)}
        assert [part.tolist() for part in store.table("t").counters([SEEN])] == [[0], [0]]
        assert store.table("t").stats().life.sighted == 0
        assert findings(path) == []
        store.restore(path)
        assert store.table("t").stats().life.sighted == 0
        assert store.table("t").contains([1]).all()


@pytest.mark.parametrize("written", [False, True], ids=["in memory", "in files"])
def test_rows_that_died_leave_no_bytes_and_do_not_come_back(tmp_path: Path, written: bool) -> None:
    traces = Traces()
    with open_store(tmp_path / "store") as store:
        ebc = collection(store, damo.TableOptions(expire=[damo.Idle(steps=8, below_count=8)]))
        table, others = store.table("t"), [*range(60)]  # that live, so many that dead rows are not reclaimed yet
        train(ebc, *[others] * 8, *[[DIED, *others]] * 2)
        traces.note(table, [DIED])
        store.flush()
        store.checkpoint()
        train(ebc, *[[DIED, *others]] * 2)  # a newer version of the row, which dies in memory
        traces.note(table, [DIED])
        if written:
            store.flush()
            store.checkpoint()
        train(ebc, *[others] * 20)
        assert not table.contains([DIED]).any()
        assert any("/live/" in file for file in traces.files(store.path))
        report = store.forget({"t": [DIED]})
        assert (report.complete, report.deleted) == (True, {"t": 0})
        assert traces.files(store.path) == []
        store.flush()
        store.checkpoint()
        assert traces.files(store.path) == []
        assert not table.contains([DIED]).any()
    assert traces.files(tmp_path / "store") == []


def test_deltas_with_ladders_and_means(filled: Filled, tmp_path: Path) -> None:
    store = filled.store
    (tmp_path / "deltas").mkdir()
    path = store.export_delta(tmp_path / "deltas" / "delta", since=filled.checkpoints[0])
    before = Delta.read(path)
    table = before.tables["t"]
    gone = [i for i in PERSON if i in table.ids]
    assert gone
    assert before.manifest.tables["t"].mean
    assert filled.traces.files(path)
    report = store.forget({"t": PERSON}, deltas=tmp_path / "deltas")
    assert report.complete, report
    assert filled.traces.files(tmp_path) == []
    after = Delta.read(path)
    changes, now = after.manifest.tables["t"], after.tables["t"]
    kept = [i for i in table.ids.tolist() if i not in PERSON]
    places = [table.ids.tolist().index(i) for i in kept]
    assert table.headers is not None
    assert now.headers is not None
    assert now.ids.tolist() == kept
    assert now.headers.tolist() == table.headers[places].tolist()
    assert now.weights.tolist() == table.weights[places].tolist()
    assert now.deleted.tolist() == sorted({*table.deleted.tolist(), *gone})
    assert (changes.ladder, changes.mean) == (before.manifest.tables["t"].ladder, before.manifest.tables["t"].mean)


@pytest.mark.parametrize(("of", "message"), [("step_4", "counts none like id"), ("step_9", "has 9 rows, expected 8")])
def test_a_life_of_other_rows_is_damage_and_nothing_is_written(filled: Filled, of: str, message: str) -> None:
    where = filled.store.path / "checkpoints"
    damaged = where / "mine"
    (damaged / "1.life.bin").write_bytes((where / of / "1.life.bin").read_bytes())
    manifest = Manifest.read(damaged)
    (damaged / "manifest.json").unlink()
    manifest.with_files(damaged).write(damaged)
    files = {path: path.read_bytes() for path in damaged.rglob("*") if path.is_file()}
    report = filled.store.forget({"t": PERSON})
    (left,) = (left for left in report.remaining if left.what == "checkpoint")
    assert left.path == damaged
    assert "it is damaged" in left.reason
    assert message in left.reason
    assert {path: path.read_bytes() for path in damaged.rglob("*") if path.is_file()} == files


def forget_and_die(path: Path) -> None:
    exchanges = iter([atomic_directory.exchange, kill_this_process])
    atomic_directory.exchange = lambda *args: next(exchanges)(*args)  # type: ignore[assignment]  # of this process
    open_store(path).forget({"t": PERSON})


@pytest.mark.slow
def test_killed_while_rows_are_forgotten(tmp_path: Path) -> None:
    made = fill(tmp_path / "store")
    made.store.close()
    run_until_killed(forget_and_die, tmp_path / "store")
    assert findings(tmp_path / "store") == []
    assert cli.main(["forget", str(tmp_path / "store"), "t", *map(str, PERSON)]) == 0
    assert made.traces.files(tmp_path / "store") == []
    assert findings(tmp_path / "store") == []
    with open_store(tmp_path / "store") as store:
        assert not collection(store).tables()[0].contains(PERSON).any()
