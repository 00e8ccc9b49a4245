"""Every answer is of one state, and `close` waits for those that are on their way."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import damo_torchrec as damo
from served_models import inputs, predictor_of
from served_training import PATIENCE, REQUESTS, Training, answers_of, check_same, same, wait_until


def test_an_answer_is_of_the_state_in_which_its_request_began(
    training: Training, predictor: damo.serving.Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, began, go_on = training.answers(), threading.Event(), threading.Event()
    run = predictor._lookups[1].run

    def slow(*arguments: Any) -> Any:
        began.set()
        assert go_on.wait(PATIENCE)
        return run(*arguments)

    monkeypatch.setattr(predictor._lookups[1], "run", slow)
    training.step()
    delta = training.delta()
    with ThreadPoolExecutor(2) as threads:
        old = threads.submit(predictor.predict, REQUESTS[3])
        assert began.wait(PATIENCE)
        monkeypatch.setattr(predictor._lookups[1], "run", run)
        applied = threads.submit(predictor.apply_delta, delta)
        wait_until(lambda: predictor.step == training.store.step)
        check_same(answers_of(predictor), training.answers())  # new ones do not wait
        assert not applied.done()
        go_on.set()
        assert same(old.result(), before[3])
        applied.result()
    check_same(answers_of(predictor), training.answers())


@pytest.mark.slow
def test_no_answer_mixes_states_under_load(training: Training, predictor: damo.serving.Predictor) -> None:
    states, deltas = [training.answers()], []
    for _ in range(6):
        training.step()
        states.append(training.answers())
        deltas.append(training.delta())
    stop = threading.Event()

    def ask(_: int) -> int:
        """Each answer is of one state, and none of an earlier one than an answer before it."""
        earliest, count = 0, 0
        while not stop.is_set():
            for number, request in enumerate(REQUESTS):
                answer = predictor.predict(request)
                found = [i for i in range(earliest, len(states)) if same(answer, states[i][number])]
                assert found, "an answer of no state, or of one that was over"
                earliest, count = found[0], count + 1
        return count

    with ThreadPoolExecutor(3) as threads:
        clients = [threads.submit(ask, number) for number in range(3)]
        try:
            for delta in deltas:
                asked = predictor.stats().requests
                predictor.apply_delta(delta)
                wait_until(
                    lambda asked=asked: predictor.stats().requests > asked + 30 or any(c.done() for c in clients)
                )
        finally:
            stop.set()
        assert all(client.result() > 0 for client in clients)
    check_same(answers_of(predictor), states[-1])


def test_closing_waits_for_requests(pooled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(pooled[1])
    begun, go_on = threading.Event(), threading.Event()
    run = predictor._lookups[0].run

    def slow(*arguments: Any) -> Any:
        begun.set()
        go_on.wait()
        return run(*arguments)

    monkeypatch.setattr(predictor._lookups[0], "run", slow)
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(predictor.predict, inputs())
        begun.wait()
        closed = pool.submit(predictor.close)
        assert not closed.done()
        go_on.set()
        assert answer.result()["output"].shape == (2, 27)
        closed.result()
