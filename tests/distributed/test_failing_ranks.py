"""A rank that fails in the middle of an update of all ranks, or ends there: what the others are told, and when."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import damo_torchrec as damo
import ranked_lives
from processes import kill_this_process
from rank_processes import Killed, Raised, run_ranks
from ranked_lives import Stream

CUT = damo.TableOptions(max_rows=8)  # which ranks tell each other of their rows for, from some step on
_AT_ONCE = 15.0  # seconds; the process group's time-out is longer


class Failing:
    """An engine whose updates fail from a step on: before it has done anything, or when it has done all."""

    def __init__(self, engine: Any, when: str) -> None:
        self._engine, self._when = engine, when

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def backward(self, *args: Any, **kwargs: Any) -> bool:
        if self._when == "after":
            self._engine.backward(*args, **kwargs)
        raise MemoryError("no memory is left")


def fails(rank: int, root: Path, when: str, options: damo.TableOptions) -> Any:
    """Rank 1 fails when rows are to go. Returns what that raised, how long it took, and what is left afterwards."""
    stream = Stream(options)
    with damo.distributed.open_store(root, memory_budget="64MiB") as store:
        *_, before = ranked_lives.train(stream, store, 1, 20)
    store = damo.distributed.open_store(root, memory_budget="64MiB")
    model = ranked_lives.model_over(stream, store)
    if rank == 1 and when == "exchange":
        store.session.agreement.exchange = lambda life: [][1]
    elif rank == 1:
        store.session._core = Failing(store.session.engine, when)
    told, began = [], time.monotonic()
    for step in range(20, 40):
        try:
            model(stream.features(step, rank, 2)).sum().backward()
        except Exception as error:
            told.append(f"{type(error).__name__}: {error}")
            if store.session.closed or "ranks differ" in told[-1]:
                break
    took = time.monotonic() - began
    closed = store.session.closed
    store.session.give_up_rows()
    with damo.distributed.open_store(root, memory_budget="64MiB") as store:
        _ = ranked_lives.model_over(stream, store)
        return told, took, closed, before == ranked_lives.living(store)


@pytest.mark.parametrize(
    ("when", "what"), [("before", "MemoryError"), ("exchange", "IndexError"), ("after", "MemoryError")]
)
def test_all_are_told_at_once_of_one_that_fails_where_rows_are_to_go(two_ranks, tmp_path, when, what):
    (first, *_), (second, *_) = found = two_ranks(fails, tmp_path / "store", when, CUT)
    assert "an update of all ranks could not be ended: rank 1 could not make its part of it" in first[0]
    assert what in first[0]
    assert second[0].startswith("DamoError: the store")
    for _, took, closed, unchanged in found:
        assert took < _AT_ONCE
        assert closed
        assert unchanged


def test_the_next_update_tells_of_one_that_failed_where_none_are_to_go(two_ranks, tmp_path):
    (first, *_), (second, *_) = two_ranks(fails, tmp_path / "store", "before", damo.TableOptions(max_rows=1000))
    assert "ranks differ in the step that they are at" in first[0]
    assert second[0] == "MemoryError: no memory is left"
    assert "ranks differ in the step that they are at" in second[1]


def ends(rank: int, root: Path) -> None:
    """Rank 1 is killed when it is to tell of its rows."""
    store = damo.distributed.open_store(root, memory_budget="64MiB")
    stream = Stream(CUT)
    model = ranked_lives.model_over(stream, store)
    if rank == 1:
        store.session.agreement.exchange = lambda life: kill_this_process()
    for step in range(1, 40):
        model(stream.features(step, rank, 2)).sum().backward()


def test_a_rank_that_is_gone_is_named_as_the_reason(tmp_path):
    first, second = run_ranks(ends, 2, tmp_path, tmp_path / "store")
    assert second == Killed()
    assert isinstance(first, Raised)
    assert first.kind == "DamoError"
    assert "a rank has ended, or does not answer, in the middle of an update" in first.message


def ends_before(rank: int, root: Path) -> None:
    """The same when ranks are to agree."""
    store = damo.distributed.open_store(root, memory_budget="64MiB")
    stream = Stream(CUT)
    model = ranked_lives.model_over(stream, store)
    if rank == 1:
        store.clock = lambda: kill_this_process()
    model(stream.features(3, rank, 2)).sum().backward()


def test_a_rank_that_is_gone_before_rows_change_is_named_as_the_reason(tmp_path):
    first, second = run_ranks(ends_before, 2, tmp_path, tmp_path / "store")
    assert second == Killed()
    assert isinstance(first, Raised)
    assert first.kind == "DamoError"
    assert "a rank has ended, or does not answer, as ranks agree, before any row has changed" in first.message
