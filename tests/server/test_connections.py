"""How many connections a server's clients may have, and how long they may keep it waiting."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from damo_torchrec.server.connections import Connection, Connections
from damo_torchrec.server.served_model import Metrics

LONG = 1000.0  # seconds that no test waits for
REQUEST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi"
STALLED = {
    "nothing": b"",
    "in the head": b"GET /hea",
    "between headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n",
    "before the body": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
    "in the body": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
    "in a chunk": b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{",
    "after an answer": REQUEST,
    "in a second request": REQUEST + b"GET /hea",
}


class Echo:
    """An application that answers with the body.

    At `/wait` it does so when it is told to, at `/early` before it has the body, at `/large` with more than a
    connection holds.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.asked.set()
        content = b""
        while scope["path"] != "/early":
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            content += message["body"]
            if not message["more_body"]:
                break
        if scope["path"] == "/wait":
            await self.answer.wait()
        if scope["path"] == "/large":
            content = b"x" * 50_000_000
        length = str(len(content)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": content})


class Client:
    """A connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes = REQUEST) -> bytes:
        """Sends a request, and gives the first line of its answer."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await self.reader.readexactly(int(length.split(b":")[1]))
        return head.split(b"\r\n")[0]

    async def rest(self) -> bytes:
        """All that comes until the server ends the connection."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""


Use = Callable[[Callable[[], Awaitable[Client]], Connections, Echo], Awaitable[None]]


def with_server(use: Use, **limits: Any) -> None:
    """Runs `use` beside a server, and sees to it that nothing is left of the connections afterwards."""

    async def main() -> None:
        connections = Connections(ended=Metrics().connections_ended, **limits)
        echo = Echo()
        config = uvicorn.Config(
            echo, port=0, log_level="critical", lifespan="off", http=functools.partial(Connection, connections)
        )
        config.load()
        state = uvicorn.server.ServerState()
        protocol = functools.partial(config.http_protocol_class, config=config, server_state=state, app_state={})
        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1")
        clients: list[Client] = []

        async def connect() -> Client:
            clients.append(Client(*await asyncio.open_connection(*server.sockets[0].getsockname())))
            return clients[-1]

        try:
            await asyncio.wait_for(use(connect, connections, echo), 60)
        finally:
            server.close()
            for client in clients:
                client.writer.close()
        while connections.answering or connections.waiting:
            await asyncio.sleep(0)

    asyncio.run(main())


def ended(connections: Connections, why: str) -> float:
    return connections.ended.labels(why)._value.get()


@pytest.mark.parametrize("sent", STALLED.values(), ids=STALLED)
def test_a_client_that_stalls_is_given_up(sent: bytes) -> None:
    async def use(connect: Any, connections: Connections, _: Echo) -> None:
        client = await connect()
        client.writer.write(sent)
        last = await client.rest()
        is_in_request = sent not in (b"", REQUEST)
        assert (b"HTTP/1.1 408 Request Timeout" in last) == is_in_request
        assert last.startswith(b"HTTP/1.1 200") == sent.startswith(REQUEST)
        assert ended(connections, "slow") == 1

    with_server(use, most=5, seconds=0.1)


def test_a_byte_now_and_then_does_not_help() -> None:
    async def use(connect: Any, connections: Connections, _: Echo) -> None:
        head, body = await connect(), await connect()
        body.writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")

        async def trickle(client: Client) -> None:
            while True:
                client.writer.write(b"x")
                await asyncio.sleep(0.01)

        trickling = [asyncio.create_task(trickle(client)) for client in (head, body)]
        for client in (head, body):
            assert b" 200 " not in await client.rest()
        for task in trickling:
            task.cancel()
        assert ended(connections, "slow") == 2

    with_server(use, most=5, seconds=0.2)


def test_a_client_that_does_not_read_its_answer_is_given_up() -> None:
    async def use(connect: Any, connections: Connections, _: Echo) -> None:
        client = await connect()
        client.writer.write(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while not ended(connections, "slow"):
            await asyncio.sleep(0.01)
        assert len(await client.rest()) < 50_000_000

    with_server(use, most=5, seconds=0.1)


def test_a_body_that_is_no_longer_wanted_may_not_go_on_for_ever() -> None:
    async def use(connect: Any, connections: Connections, _: Echo) -> None:
        client = await connect()
        client.writer.write(b"POST /early HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nx")
        assert (await client.rest()).startswith(b"HTTP/1.1 200")
        assert ended(connections, "slow") == 1

    with_server(use, most=5, seconds=0.1)


def test_an_answer_may_take_as_long_as_it_takes() -> None:
    """The server waits for nobody but itself then."""

    async def use(connect: Any, connections: Connections, echo: Echo) -> None:
        asked, stalled = await connect(), await connect()
        asked.writer.write(REQUEST.replace(b"echo", b"wait"))
        await stalled.rest()  # which is as long as the other one might have been given
        assert ended(connections, "slow") == 1
        echo.answer.set()
        assert (await asked.ask(b"")).startswith(b"HTTP/1.1 200")

    with_server(use, most=5, seconds=0.1)


@pytest.mark.parametrize("sent", STALLED.values(), ids=STALLED)
def test_stalled_clients_make_room_for_others(sent: bytes) -> None:
    """300 of them, where 20 have room: those that have stalled for longest go first, and all others are answered."""

    async def use(connect: Any, connections: Connections, _: Echo) -> None:
        real = [await connect() for _ in range(10)]
        stalled = []
        for number in range(300):
            stalled.append(await connect())
            stalled[-1].writer.write(sent)
            await stalled[-1].writer.drain()
            client = real[number % 10]
            assert await client.ask() == b"HTTP/1.1 200 OK"
            assert len(connections.waiting) + len(connections.answering) <= 20
        for client in stalled[:290]:
            await client.rest()
        assert ended(connections, "crowded") == 290

    with_server(use, most=20, seconds=LONG)


def test_who_comes_while_all_are_being_answered_is_refused() -> None:
    async def use(connect: Any, connections: Connections, echo: Echo) -> None:
        first = await connect()
        first.writer.write(REQUEST.replace(b"echo", b"wait"))
        await echo.asked.wait()
        refused = await (await connect()).rest()
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 1" in refused
        assert ended(connections, "refused") == 1
        echo.answer.set()
        assert (await first.ask(b"")).startswith(b"HTTP/1.1 200")
        assert await first.ask() == b"HTTP/1.1 200 OK"

    with_server(use, most=1, seconds=LONG)


def test_requests_that_come_at_once_are_answered_in_turn() -> None:
    async def use(connect: Any, connections: Connections, _: Echo) -> None:
        client = await connect()
        client.writer.write(REQUEST * 3)
        for _ in range(3):
            assert await client.ask(b"") == b"HTTP/1.1 200 OK"
        old = await connect()
        old.writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert (await old.rest()).startswith(b"HTTP/1.1 200 OK")
        assert connections.ended.collect()[0].samples == []

    with_server(use, most=2, seconds=LONG)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000,
        b"GET /" + b"a" * 1_000_000,
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhiXX0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(range(256)),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
    ids=range(12),
)
def test_what_is_no_request_ends_the_connection(request_bytes: bytes) -> None:
    async def use(connect: Any, connections: Connections, _: Echo) -> None:
        client = await connect()
        client.writer.write(request_bytes + b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = await client.rest()
        assert answer.count(b"HTTP/1.1") <= 1  # none where the end overtakes it
        assert b" 200 " not in answer
        assert await (await connect()).ask() == b"HTTP/1.1 200 OK"

    with_server(use, most=5, seconds=LONG)
