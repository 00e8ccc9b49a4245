"""What the server of the examples answers, what it refuses, and how it reloads."""

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import damo_torchrec as damo
from damo_torchrec.server.batching import predict_together
from damo_torchrec.server.gate import Access
from damo_torchrec.server.json_bodies import Limits
from damo_torchrec.serving import Predictor
from forged_lines import make_delta
from serve_cases import KEYS, body, client_of, expected_answer, with_client


def test_predictions_are_those_of_the_model(served: Any) -> None:
    model, path, _ = served

    async def use(client: httpx.AsyncClient) -> None:
        for batch in (1, 2, 30):
            response = await client.post("/predict", json=body(batch))
            assert response.status_code == 200
            np.testing.assert_allclose(response.json()["output"], expected_answer(model, body(batch)), atol=1e-5)

    with_client(path / "two", use)


def test_requests_that_come_together_get_their_own_answers(served: Any) -> None:
    model, path, _ = served
    requests = [body(1 + seed % 5, seed) for seed in range(60)]

    async def use(client: httpx.AsyncClient) -> None:
        responses = await asyncio.gather(*(client.post("/predict", json=request) for request in requests))
        for request, response in zip(requests, responses, strict=True):
            np.testing.assert_allclose(response.json()["output"], expected_answer(model, request), atol=1e-5)
        metrics = (await client.get("/metrics")).text
        assert 'serve_requests_total{status="200"} 60.0' in metrics
        batches = next(line for line in metrics.splitlines() if line.startswith("serve_batch_samples_count"))
        assert float(batches.split()[1]) < 60

    with_client(path / "two", use, batch_samples=50)


def changed(**changes: Any) -> bytes:
    return json.dumps({**body(2), **changes}).encode()


ONES = {key: [[1], [2]] for key in KEYS}


WEIGHTS = {key: [[1.0], [1.0]] for key in KEYS}


BAD: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "the body must be JSON"),
    "no JSON": (b"{", 400, "the body must be JSON"),
    "no text": (b"\xff\xfe{}", 400, "the body must be JSON"),
    "a list": (b"[1]", 400, "must be a JSON object, got a list"),
    "nested": (b"[" * 200_000, 400, "nested too deeply"),
    "nested in an argument": (changed(dense=json.loads("[" * 500 + "]" * 500)), 422, "dense must be one array"),
    "NaN": (b'{"dense": NaN}', 400, "NaN is not a number of JSON"),
    "digits without end": (b'{"dense": ' + b"9" * 5000 + b"}", 400, "the body must be JSON"),
    "empty": (b"{}", 422, "must have ['features', 'features.weights', 'dense'], got []"),
    "more": (changed(more=1), 422, "got ['dense', 'features', 'features.weights', 'more']"),
    "arrays of the predictor": (changed(**{"features.values": [1]}), 422, "'features.values']"),
    "features that are a list": (changed(features=[[1], [2]]), 422, "features must be an object of features"),
    "a feature less": (changed(features={"user": [[1], [2]]}), 422, "must have the features ['user', 'clicks']"),
    "ids that are no lists": (changed(features={**ONES, "user": [1, 2]}), 422, "must be a list of lists"),
    "samples": (changed(features={**ONES, "user": [[1]]}), 422, "one list for each sample in every feature"),
    "floats": (changed(features={**ONES, "user": [[1.0], [2]]}, **{"features.weights": WEIGHTS}), 422, "integers"),
    "bools": (changed(features={**ONES, "user": [[True], [2]]}, **{"features.weights": WEIGHTS}), 422, "integers"),
    "words": (changed(features={**ONES, "user": [["x"], [2]]}), 422, "must hold integers, got the string 'x'"),
    "digits in a string": (changed(features={**ONES, "user": [["554"], [2]]}), 422, "got the string '554'"),
    "twice": (b'{"dense": [[1]], "dense": [[2]]}', 400, "'dense' is there twice"),
    "UTF-16": (json.dumps(body(1)).encode("utf-16"), 400, "the body must be JSON"),
    "a long name": (json.dumps({"x" * 5000: 1}).encode(), 422, "x..."),
    "half a character": (b'{"\\ud800": 1}', 422, "ud800"),
    "large": (changed(features={**ONES, "user": [[2**63], [2]]}, **{"features.weights": WEIGHTS}), 422, "fit int64"),
    "weights": (changed(features=ONES, **{"features.weights": {**WEIGHTS, "user": [[], [1.0]]}}), 422, "for each id"),
    "text weights": (changed(features=ONES, **{"features.weights": {**WEIGHTS, "user": [["1"], [1]]}}), 422, "numbers"),
    "infinite": (changed(dense=[[1e39], [0]]), 422, "holds a number that float32 cannot"),
    "columns": (changed(dense=[[1, 2], [3, 4]]), 422, "dense must have the shape (batch, 1), got (2, 2)"),
    "rows": (changed(dense=[[1]]), 422, "batch is 2 in features.lengths"),
    "too many names": (b"{" + b'"":1' * 10_001 + b"}", 413, "holds 10001 names; the limit is 10000"),
    "too many values": (changed(dense=[[]] * 1500), 413, "values; the limit is 3000"),
    "too many samples": (json.dumps(body(41)).encode(), 413, "holds 41 samples; the limit is 40"),
    "too many ids": (changed(features={"user": [[1] * 200, []], "clicks": [[], []]}), 413, "the limit is 150"),
    "a large body": (b" " * 70_000, 413, "larger than 66000 bytes"),
}


LIMITS = Limits(body_bytes=66_000, values=3000, samples=40, ids=150)


def test_wrong_requests_are_refused_with_the_reason(served: Any) -> None:
    _, path, answers = served

    async def use(client: httpx.AsyncClient) -> None:
        for name, (content, status, reason) in BAD.items():
            if name == "nested":
                continue  # larger than the limit, here
            response = await client.post("/predict", content=content)
            assert (name, response.status_code) == (name, status)
            assert reason in response.json()["error"]
        assert (await client.get("/predict")).status_code == 405
        assert (await client.get("/none")).json() == {"error": "Not Found"}
        response = await client.post("/predict", json=body(3))
        np.testing.assert_allclose(response.json()["output"], answers[0], atol=1e-5)
        assert 'serve_requests_total{status="422"}' in (await client.get("/metrics")).text

    with_client(path / "one", use, limits=LIMITS)


def test_a_body_that_is_nested_too_deeply_is_refused(served: Any) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        content, status, reason = BAD["nested"]
        response = await client.post("/predict", content=content)
        assert response.status_code == status
        assert reason in response.json()["error"]

    with_client(served[1] / "one", use)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*KEYS, "x"]), inner, max_size=3),
    max_leaves=12,
)


def mangled(draw: st.DrawFn) -> bytes:
    """A request of which one part is something else, or bytes of it are."""
    request: Any = body(2, seed=draw(st.integers(0, 5)))
    where = [request]
    for _ in range(draw(st.integers(0, 4))):
        inner = where[-1]
        keys = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        if not keys:
            break
        key = draw(st.sampled_from(list(keys)))
        where.append(inner[key])
        if draw(st.booleans()) or not isinstance(inner[key], dict | list):
            inner[key] = draw(JSON)
            break
    content = json.dumps(request).encode()
    if draw(st.booleans()):
        return content
    place = draw(st.integers(0, len(content)))
    return content[:place] + draw(st.binary(max_size=3)) + content[place + draw(st.integers(0, 3)) :]


def test_no_request_takes_the_server_down(served: Any) -> None:
    """Whatever is sent is answered, or refused by a reason; the next request gets its answer."""
    _, path, answers = served
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        stack = contextlib.AsyncExitStack()
        client = loop.run_until_complete(stack.enter_async_context(client_of(path / "one")))

        @settings(max_examples=150)
        @given(st.composite(mangled)() | st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
        def send(content: bytes) -> None:
            response = loop.run_until_complete(client.post("/predict", content=content))
            assert response.status_code in (200, 400, 413, 422)
            assert ("output" if response.status_code == 200 else "error") in response.json()

        send()
        response = loop.run_until_complete(client.post("/predict", json=body(3)))
        np.testing.assert_allclose(response.json()["output"], answers[0], atol=1e-5)
        loop.run_until_complete(stack.aclose())


def test_a_reload_drops_no_request(served: Any, tmp_path: Path) -> None:
    """While clients ask, the link goes from one checkpoint to the other and back."""
    _, path, answers = served
    link = tmp_path / "current"
    link.symlink_to(path / "one")

    async def use(client: httpx.AsyncClient) -> None:
        client.headers["Authorization"] = "Bearer of a secret, long"
        stop = asyncio.Event()

        async def ask() -> set[int]:
            seen = set()
            while not stop.is_set():
                response = await client.post("/predict", json=body(3))
                assert response.status_code == 200
                output = response.json()["output"]
                seen.add(next(i for i, answer in enumerate(answers) if np.allclose(output, answer, atol=1e-5)))
            return seen

        clients = [asyncio.create_task(ask()) for _ in range(4)]
        for name in ("two", "one", "two"):
            link.unlink()
            link.symlink_to(path / name)
            response = await client.post("/reload")
            assert response.json() == {"checkpoint": str(path / name), "step": 0}
            for _ in range(10):
                await client.post("/predict", json=body(1))
        link.unlink()
        link.symlink_to(path / "none")
        refused = await client.post("/reload")
        assert refused.status_code == 409
        assert "serving on as before" in refused.json()["error"]
        stop.set()
        assert set.union(*await asyncio.gather(*clients)) == {0, 1}
        health = (await client.get("/health")).json()
        assert health["passed_over"] == 0
        assert (health["status"], health["checkpoint"]) == ("ok", str(path / "two"))

    with_client(link, use, access=Access(token="of a secret, long"))
    assert sorted(p.name for p in path.iterdir()) == ["one", "store", "two"]


def test_health_says_that_the_newest_delta_cannot_be_reached(served: Any, tmp_path: Path) -> None:
    make_delta(tmp_path, "delta-000000000007", [6], 7, sequence=2**61)

    async def use(client: httpx.AsyncClient) -> None:
        health = (await client.get("/health")).json()
        assert (health["status"], health["step"], health["newest_step"]) == ("behind", 0, 7)
        assert (health["deltas_waiting"], health["deltas_refused"]) == (1, 0)
        assert "to the newest, at 7: deltas between them are missing" in health["reason"]
        assert health["age_seconds"] > 0
        metrics = (await client.get("/metrics")).text
        for line in ("serve_behind 1.0", "serve_newest_step 7.0", "serve_deltas_waiting 1.0"):
            assert line in metrics

    with_client(served[1] / "one", use, watch=tmp_path)


def test_no_sample_has_an_answer(served: Any) -> None:
    nothing = {key: [] for key in KEYS}

    async def use(client: httpx.AsyncClient) -> None:
        empty = {"dense": [], "features": nothing, "features.weights": nothing}
        requests = [client.post("/predict", json=request) for request in (empty, body(3), empty)]
        responses = await asyncio.gather(*requests)
        assert [response.status_code for response in responses] == [200] * 3
        assert [len(response.json()["output"]) for response in responses] == [0, 3, 0]

    with_client(served[1] / "one", use, workers=1)


def test_too_many_that_wait_are_told_to_come_again(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        monkeypatch.setattr("damo_torchrec.server.batching.predict_together", slow)
        responses = await asyncio.gather(*(client.post("/predict", json=body(3)) for _ in range(20)))
        codes = [response.status_code for response in responses]
        assert set(codes) == {200, 503}
        assert next(r for r in responses if r.status_code == 503).headers["retry-after"] == "1"

    def slow(predictor: Predictor, requests: Any) -> Any:
        time.sleep(0.05)
        return predict_together(predictor, requests)

    with_client(served[1] / "one", use, batch_samples=3, waiting_samples=9, workers=1)


def test_a_failure_of_rows_is_told_as_such(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("damo_torchrec.server.batching.predict_together", fail)
            response = await client.post("/predict", json=body(3))
            assert (response.status_code, response.json()) == (500, {"error": "rows cannot be read"})
        assert (await client.post("/predict", json=body(3))).status_code == 200

    def fail(*_: Any) -> Any:
        raise damo.DamoError("a file is gone")

    with_client(served[1] / "one", use)
