"""Whom the server of the examples lets do what, and what it keeps to itself."""

import asyncio
import gzip
import json
from typing import Any

import httpx
import pytest

import damo_torchrec as damo
from damo_torchrec.server.gate import Access
from damo_torchrec.server.json_bodies import Limits
from serve_cases import body, with_client

TOKEN = "correct horse battery"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "LOCALHOST:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "ranker.example"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": "evil.example@localhost"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Encoding": "identity"}, 200),
        ({"Content-Length": "5", "Transfer-Encoding": "chunked"}, 400),
        ([("Content-Type", "application/json"), ("Content-Type", "text/plain")], 400),
        ([("Content-Encoding", "identity"), ("Content-Encoding", "gzip")], 400),
    ],
)
def test_a_browser_or_a_proxy_cannot_be_made_to_ask(served: Any, headers: Any, status: int) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        response = await client.post("/predict", content=json.dumps(body(2)), headers=headers)
        assert response.status_code == status
        assert ("output" if status == 200 else "error") in response.json()
        if status in (400, 421, 403):  # nothing is, whether it is there or not
            for path in ("/health", "/metrics", "/none"):
                assert (await client.get(path, headers=headers)).status_code == status
            assert f'serve_requests_total{{status="{status}"}} 4.0' in (await client.get("/metrics")).text

    with_client(served[1] / "one", use)


def test_names_and_origins_that_are_given_may_ask(served: Any) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        headers = {"Host": "ranker.example:8000", "Origin": "https://shop.example"}
        response = await client.post("/predict", json=body(2), headers=headers)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://shop.example"
        asked = {**headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        assert (await client.options("/predict", headers=asked)).status_code == 200
        other = await client.post("/predict", json=body(2), headers={"Origin": "https://evil.example"})
        assert other.status_code == 403
        assert "access-control-allow-origin" not in other.headers

    access = Access(hosts=frozenset({"localhost", "ranker.example"}), origins=frozenset({"https://shop.example"}))
    with_client(served[1] / "one", use, access=access)


async def health(client: httpx.AsyncClient, headers: Any = None) -> dict[str, Any]:
    """What it says, but for how old what it serves is."""
    said: dict[str, Any] = (await client.get("/health", headers=headers)).json()
    assert said.pop("age_seconds") > 0
    return said


@pytest.mark.parametrize("token", [None, TOKEN])
def test_administration_needs_the_token(served: Any, token: str | None) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert (await client.get(path, headers=BEARER)).status_code == 404
        without = await health(client)
        assert str(served[1]) not in str(without)
        for wrong in (
            "",
            "Bearer",
            "Bearer ",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Basic {TOKEN}",
            "Bearer é",
        ):
            headers = {"Authorization": wrong.encode()}
            refused = await client.post("/reload", headers=headers)
            assert refused.status_code == (403 if token is None else 401)
            assert await health(client, headers) == without
        assert (await client.post("/reload", headers=BEARER)).status_code == (403 if token is None else 200)
        told = await health(client, BEARER)
        assert told.get("checkpoint") == (None if token is None else str(served[1] / "one"))

    with_client(served[1] / "one", use, access=Access(token=token))


def test_a_short_token_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 characters, got 15"):
        Access(token="x" * 15)


def test_failures_do_not_tell_what_the_machine_looks_like(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        for error in (damo.DamoError("/secret/rows"), RuntimeError("/secret/dense.onnx"), OSError("/secret")):
            monkeypatch.setattr("damo_torchrec.server.batching.predict_together", failing(error))
            transport: Any = client._transport
            transport.raise_app_exceptions = False  # as uvicorn, which logs them
            response = await client.post("/predict", json=body(3))
            assert response.status_code == 500
            assert "secret" not in response.text
            assert "Traceback" not in response.text
            assert "error" in response.json()
        assert 'serve_requests_total{status="500"} 3.0' in (await client.get("/metrics")).text

    def failing(error: Exception) -> Any:
        def predict_together(*_: Any) -> Any:
            raise error

        return predict_together

    with_client(served[1] / "one", use)


def test_a_compressed_body_is_not_even_read(served: Any) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        content = gzip.compress(json.dumps(body(2)).encode())
        response = await client.post("/predict", content=content)
        assert (response.status_code, "must be JSON" in response.text) == (400, True)

        async def never() -> Any:
            raise AssertionError("the body was asked for")
            yield b""

        response = await client.post("/predict", content=never(), headers={"Content-Encoding": "gzip"})
        assert response.status_code == 415

    with_client(served[1] / "one", use)


def test_large_bodies_share_a_number_of_bytes(served: Any) -> None:
    """While two of them are under way a third is told to come again, and a small one is answered."""

    async def use(client: httpx.AsyncClient) -> None:
        rest = asyncio.Event()
        begun = asyncio.Semaphore(0)

        async def slowly() -> Any:
            content = json.dumps(body(2)).encode()
            yield content + b" " * (100_000 - len(content))
            begun.release()
            await rest.wait()
            yield b" "

        slow = [asyncio.create_task(client.post("/predict", content=slowly())) for _ in range(2)]
        for _ in slow:
            await begun.acquire()
        large = json.dumps(body(2)).encode() + b" " * 100_000
        refused = await client.post("/predict", content=large)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert (await client.post("/predict", json=body(2))).status_code == 200
        rest.set()
        assert [(await task).status_code for task in slow] == [200, 200]
        assert (await client.post("/predict", content=large)).status_code == 200

    limits = Limits(body_bytes=200_000, bytes_together=250_000)
    with_client(served[1] / "one", use, limits=limits)


def test_what_is_longer_than_it_may_be_is_refused_by_its_length_alone(served: Any) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        async def never() -> Any:
            raise AssertionError("the body was asked for")
            yield b""

        response = await client.post("/predict", content=never(), headers={"Content-Length": "1000001"})
        assert response.status_code == 413

    with_client(served[1] / "one", use, limits=Limits(body_bytes=1_000_000))
