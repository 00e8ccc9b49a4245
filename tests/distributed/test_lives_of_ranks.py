"""Which rows live in tables that are spread over ranks: by one rule over all of them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import damo_torchrec as damo
import ranked_lives
import spread
from lives_model import Lives
from rank_processes import run_ranks, values
from ranked_lives import Stream

STEPS = 90

_IDLE = damo.Idle(steps=15)
CASES = {
    "max_rows": (damo.TableOptions(max_rows=40), Lives(max_rows=40)),
    "idle steps": (damo.TableOptions(expire=[_IDLE]), Lives(idle_steps=15)),
    "idle time": (damo.TableOptions(expire=[damo.Idle(seconds=100)]), Lives(idle_seconds=100)),
    "min_rows": (damo.TableOptions(expire=[_IDLE], min_rows=25), Lives(idle_steps=15, min_rows=25)),
    "admit": (
        damo.TableOptions(admit=damo.Admit(sightings=2, within_steps=15), expire=[_IDLE]),
        Lives(sightings=2, idle_steps=15),
    ),
    "all": (
        damo.TableOptions(
            admit=damo.Admit(sightings=2, within_steps=30), expire=[damo.Idle(steps=30)], max_rows=20, min_rows=5
        ),
        Lives(sightings=2, idle_steps=30, max_rows=20, min_rows=5),
    ),
}


def fresh(model: Lives) -> Lives:
    return Lives(model.sightings, model.idle_steps, model.idle_seconds, model.min_rows, model.max_rows)


@pytest.mark.parametrize("case", CASES)
def test_rows_that_live_are_those_of_a_plain_model_at_every_step(ranks, case):
    options, model = CASES[case]
    stream = Stream(options, wrong_clocks=case == "idle time")
    of_ranks = ranks(ranked_lives.trained, stream, STEPS)
    expected = ranked_lives.as_model(fresh(model), stream, 1, STEPS)
    for step, (found, wanted) in enumerate(zip(zip(*of_ranks, strict=True), expected, strict=True), 1):
        assert ranked_lives.of_all(list(found)) == wanted, f"after step {step}"
    assert any(expected[i][0].keys() - expected[i + 1][0].keys() for i in range(STEPS - 2)), "no row has gone"


def test_large_batches_leave_the_same_rows_whatever_the_number_of_ranks(ranks):
    stream = Stream(damo.TableOptions(max_rows=120, credit=3, expire=[damo.Idle(steps=9)]), batch=40, longest=5)
    found = [ranked_lives.of_all(list(step)) for step in zip(*ranks(ranked_lives.trained, stream, 40), strict=True)]
    assert found == ranked_lives.trained_here(stream, 40)
    assert all(len(rows) <= 120 for rows, _ in found)
    assert max(len(rows) for rows, _ in found) > 110


@pytest.mark.parametrize("sightings", [3, 1])
def test_sequences_count_every_occurrence(ranks, sightings):
    options = damo.TableOptions(admit=damo.Admit(sightings=sightings), max_rows=100)
    stream = Stream(options, batch=8, longest=6, sequences=True)
    of_ranks = ranks(ranked_lives.trained, stream, 40)
    found = [ranked_lives.of_all(list(step)) for step in zip(*of_ranks, strict=True)]
    alone = ranked_lives.trained_here(stream, 40)
    if sightings > 1:
        assert [(rows, seen) for rows, seen in found] == alone
        assert any(seen for _, seen in found)
    assert all(len(rows) <= 100 for rows, _ in found)


@pytest.mark.parametrize("case", ["all", "idle time"])
def test_they_go_on_so_with_other_numbers_of_ranks_and_in_one_process(two_ranks, tmp_path, case):
    options, plain = CASES[case]
    stream, root, model = Stream(options), tmp_path / "store", fresh(plain)
    ends = (31, 61, 91, 121)
    expected = ranked_lives.as_model(model, stream, 1, ends[-1])
    two = two_ranks(ranked_lives.continued, stream, root, ends[0])
    again = two_ranks(ranked_lives.continued, stream, root, ends[1])
    three = values(run_ranks(ranked_lives.respread, 3, tmp_path, stream, root, ends[2]))
    damo.distributed.gather(root, tmp_path / "one", memory_budget="64MiB", progress=False)
    with damo.EmbeddingStore(tmp_path / "one", memory_budget="64MiB", restore="latest") as store:
        one = [list(ranked_lives.train(stream, store, ends[2], ends[3]))]
    found = [ranked_lives.of_all(list(step)) for part in (two, again, three, one) for step in zip(*part, strict=True)]
    assert len(found) == len(expected)
    for step, (living, wanted) in enumerate(zip(found, expected, strict=True), 1):
        assert living == wanted, f"after step {step}"


def options_later(rank: int, size: int) -> Any:
    """Rows that are there get a limit, in stores whose clocks and samples of rows differ."""
    stream, limited = Stream(damo.TableOptions()), Stream(damo.TableOptions(max_rows=30))
    with spread.new_store() as store:
        before = list(ranked_lives.train(stream, store, 1, 40))[-1]
        assert store.table("t").opened.life is None
        store.clock = lambda: 1e5 * rank
        return before, list(ranked_lives.train(limited, store, 40, 60))


def test_a_limit_that_comes_later_is_of_all_rows(two_ranks):
    of_ranks = two_ranks(options_later, 2)
    before = ranked_lives.of_all([found for found, _ in of_ranks])[0]
    assert len(before) > 40
    for step in zip(*(steps for _, steps in of_ranks), strict=True):
        rows, _ = ranked_lives.of_all(list(step))
        assert 25 <= len(rows) <= 30
        assert min(last for last, _ in rows.values()) > 20


def clock_fails(rank: int, size: int) -> Any:
    stream = Stream(damo.TableOptions(max_rows=20, expire=[damo.Idle(days=1)]))
    with spread.new_store() as store:
        model = ranked_lives.model_over(stream, store)
        features = stream.features(3, rank, size)
        model(features).sum().backward()
        before = ranked_lives.living(store), store.table("t").iter
        if rank == 1:
            store.clock = lambda: 1 / 0
        try:
            model(features).sum().backward()
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        store.clock = lambda: 5.0
        unchanged = before == (ranked_lives.living(store), store.table("t").iter)
        model(features).sum().backward()
        return told, unchanged, store.table("t").iter


def test_a_clock_that_fails_on_one_rank_leaves_all_as_they_were(two_ranks):
    (first, *rest), (second, *_) = two_ranks(clock_fails, 2)
    assert "rank 1 could not: ZeroDivisionError" in first
    assert second.startswith("ZeroDivisionError")
    assert rest == [True, 2]


def cut_off(rank: int, root: Path) -> Any:
    """The ranks lose each other when rows have changed, but it is not settled which go."""
    stream = Stream(damo.TableOptions(max_rows=8))
    with damo.distributed.open_store(root, memory_budget="64MiB") as store:
        *_, before = ranked_lives.train(stream, store, 1, 9)
    store = damo.distributed.open_store(root, memory_budget="64MiB")
    model = ranked_lives.model_over(stream, store)

    def nobody(life: bytes) -> list[bytes]:
        raise damo.DamoError("a rank has ended")

    store.session.agreement.exchange = nobody
    told = ""
    for step in range(9, 30):
        try:
            model(stream.features(step, rank, 2)).sum().backward()
        except damo.DamoError as error:
            told = str(error)
            break
    closed = store.session.closed
    with damo.distributed.open_store(root, memory_budget="64MiB") as store:
        _ = ranked_lives.model_over(stream, store)
        return told, closed, before == ranked_lives.living(store)


def test_what_could_not_be_ended_on_all_ranks_is_saved_on_none(two_ranks, tmp_path):
    for told, closed, unchanged in two_ranks(cut_off, tmp_path / "store"):
        assert "could not be ended: a rank has ended" in told
        assert closed
        assert unchanged


def interrupted(rank: int, root: Path) -> Any:
    """A signal comes in the middle of an update: its handler asks the store, and ends one rank."""
    stream, told = Stream(damo.TableOptions(max_rows=8)), []
    store = damo.distributed.open_store(root, memory_budget="64MiB")
    model = ranked_lives.model_over(stream, store)
    exchange = store.session.agreement.exchange

    def handler(*_: object) -> None:
        for call in (lambda: len(store.table("t")), store.checkpoint, store.close):
            try:
                call()
            except (ValueError, damo.DamoError) as error:
                told.append(str(error))
        if rank == 1:
            raise KeyboardInterrupt

    def exchange_and_signal(life: bytes) -> list[bytes]:
        of_all = exchange(life)
        signal.raise_signal(signal.SIGUSR1)
        return of_all

    for step in range(1, 9):
        model(stream.features(step, rank, 2)).sum().backward()
    before = signal.signal(signal.SIGUSR1, handler)
    store.session.agreement.exchange = exchange_and_signal
    try:
        for step in range(9, 30):
            model(stream.features(step, rank, 2)).sum().backward()
            if told:
                break
    except KeyboardInterrupt:
        told.append("interrupted")
    except damo.DamoError as error:
        told.append(str(error))
    finally:
        signal.signal(signal.SIGUSR1, before)
    closed = store.session.closed
    store.session.give_up_rows()
    return told, closed


def test_a_signal_in_the_middle_of_an_update_waits_for_nothing_and_stays_an_interrupt(two_ranks, tmp_path):
    (first, told), (second, ended) = two_ranks(interrupted, tmp_path / "store")
    assert "in the middle of an update of this thread" in first[0]
    assert all("in the middle of another call of this thread" in said for said in first[1:3])
    assert (second[-1], told, ended) == ("interrupted", True, True)
    assert first[-1].endswith("rank 1 could not make its part of it: KeyboardInterrupt")


def align_fails(rank: int, root: Path) -> Any:
    limited = Stream(damo.TableOptions(max_rows=30))
    with damo.distributed.open_store(root, memory_budget="64MiB") as store:
        list(ranked_lives.train(Stream(damo.TableOptions()), store, 1, 9))
        store.clock = lambda: 1e5 * rank
        model, told = ranked_lives.model_over(limited, store), ""
        lives = store.session.agreement.lives
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                patch.setattr(lives, "align", lambda _: 1 / 0)
            try:
                model(limited.features(9, rank, 2)).sum().backward()
            except Exception as error:
                told = str(error)
        before = store.step
        model(limited.features(9, rank, 2)).sum().backward()
        return told, before, store.step


def test_lives_that_cannot_be_aligned_on_one_rank_stop_all(two_ranks, tmp_path):
    for told, before, after in two_ranks(align_fails, tmp_path / "store"):
        assert "division by zero" in told
        assert (before, after) == (8, 9)


def dropped(rank: int, root: Path) -> Any:
    stream = Stream(damo.TableOptions(max_rows=30))
    with damo.distributed.open_store(root, memory_budget="64MiB") as store:
        for _ in range(2):
            *_, (rows, _) = ranked_lives.train(stream, store, 1, 9)
            store.drop_table("t")
        return len(rows)


def test_a_table_that_was_dropped_counts_no_more(two_ranks, tmp_path):
    assert sum(two_ranks(dropped, tmp_path / "store")) > 8


def set_too_many(rank: int, size: int) -> Any:
    stream = Stream(damo.TableOptions(max_rows=10))
    with spread.new_store() as store:
        _ = ranked_lives.model_over(stream, store)
        store.session.has_rows_of = lambda ids: damo.distributed.rank_of(ids, size) == rank
        table, told = store.table("t"), []
        for ids in (torch.arange(8), torch.arange(4, 12), torch.arange(2, 10)):
            try:
                table.set(ids, torch.ones(len(ids), 2))
            except ValueError as error:
                told.append(str(error))
        return len(table), told


def test_rows_that_are_set_count_on_all_ranks(two_ranks):
    (first, told), (second, others) = two_ranks(set_too_many, 2)
    assert first + second == 10
    assert told == others
    assert [message.split(":")[0] for message in told] == [
        "table 't' has 8 rows on all ranks and may have 10 (max_rows)"
    ]


def import_too_many(rank: int, size: int) -> Any:
    import pyarrow

    stream = Stream(damo.TableOptions(max_rows=10))
    with spread.new_store() as store:
        _ = ranked_lives.model_over(stream, store)
        store.session.has_rows_of = lambda ids: damo.distributed.rank_of(ids, size) == rank
        table, told = store.table("t"), []
        for ids in (range(8), range(4, 12), [3, 3], range(2, 10)):
            try:
                table.from_arrow(pyarrow.table({"id": list(ids), "weight": [[1.0, 1.0]] * len(ids)}))
            except ValueError as error:
                told.append(str(error))
        return len(table), told


def test_rows_that_are_imported_count_on_all_ranks_and_are_wrong_on_all(two_ranks):
    pytest.importorskip("pyarrow")
    (first, told), (second, others) = two_ranks(import_too_many, 2)
    assert first + second == 10
    assert told[0] == others[0]
    assert "has 8 rows on all ranks and may have 10 (max_rows)" in told[0]
    assert sorted([told[1], others[1]]) == [
        "table 't': id 3 comes more than once",
        "table 't': rows are wrong on another rank: nothing was imported",
    ]


PREVIEWED = damo.TableOptions(max_rows=300, expire=[damo.Idle(steps=40)])


def previewed(rank: int, size: int) -> list[int]:
    with spread.new_store() as store:
        list(ranked_lives.train(Stream(PREVIEWED, batch=40, longest=2), store, 1, 40))
        table = store.table("t")
        return [
            table.preview(max_rows=100),
            table.preview(expire=[damo.Idle(steps=4)]),
            table.preview(expire=[damo.Idle(steps=4)], min_rows=250),
            table.preview(max_rows=1000),
            len(table),
        ]


def test_what_would_go_is_foreseen_of_all_ranks_rows(ranks):
    of_ranks = ranks(previewed, ranks.size)
    *alone, rows = previewed(0, 1)
    assert sum(left for *_, left in of_ranks) == rows
    assert [found for *found, _ in of_ranks] == [alone] * ranks.size
    assert 0 == alone[3] < alone[2] < alone[1], (alone, rows)
    assert rows - 100 <= alone[0] <= rows - 90, (alone, rows)


def mean_in_eval(rank: int, size: int) -> Any:
    options = {"t": damo.TableOptions(unseen_in_eval="mean")}
    case = spread.Case(options=options, batch=8)
    with spread.new_store() as store:
        model = ranked_lives.DistributedModelParallel(
            spread.Wrapped(spread.collection(case, store)), sharders=damo.distributed.sharders()
        )
        unseen = spread.KeyedJaggedTensor(["f"], torch.tensor([7777777]), lengths=torch.tensor([1]))
        read = []
        for step in range(3):
            model.eval()
            read.append(model(unseen)[0].tolist())
            model.train()
            model(spread.batch_of(case, step, *spread.share(case, rank, size))).sum().backward()
        model.eval()
        read.append(model(unseen)[0].tolist())
        return read, spread.rows_of(store)


def test_unseen_ids_read_the_mean_of_all_ranks_rows(ranks):
    of_ranks = ranks(mean_in_eval, ranks.size)
    rows = torch.stack(list(spread.as_one([rows for _, rows in of_ranks]).values()))
    for read, _ in of_ranks:
        assert read == of_ranks[0][0]
        assert read[0] == [0.0] * 4
        torch.testing.assert_close(torch.tensor(read[-1]), rows.double().mean(0).float(), rtol=1e-6, atol=1e-7)
