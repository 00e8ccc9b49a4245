"""The connections of a server: how many there may be, and how long a client may keep the server waiting.

uvicorn closes a connection that is idle after an answer, but waits for ever for the rest of a request,
and for a client that does not read its answer.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import h11
from prometheus_client import Counter
from uvicorn.protocols.http.h11_impl import H11Protocol

TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


@dataclass
class Connections:
    """Those of one server.

    Attributes:
        most: so many are open at a time. Another one takes the place of that which has waited for
            its client for longest; it is refused while all of them wait for the server.
        seconds: so long may the server wait for a client: for a whole request, counted from the
            opening or from the answer before, and for the reading of an answer.
        ended: counts those that the server ended, by reason.
    """

    most: int
    seconds: float
    ended: Counter
    answering: set["Connection"] = field(default_factory=set)
    waiting: dict["Connection", None] = field(default_factory=dict)  # since longest first

    def admit(self, connection: "Connection") -> None:
        """Takes a new connection in, or refuses it."""
        if len(self.answering) + len(self.waiting) < self.most:
            self.waiting[connection] = None
        elif self.waiting:
            next(iter(self.waiting)).end("crowded")
            self.waiting[connection] = None
        else:
            connection.refuse()


class Connection(H11Protocol):
    """One of them. It waits for its client until it has the whole request, and while answers are not read."""

    def __init__(self, connections: Connections, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._all = connections
        self._deadline: asyncio.TimerHandle | None = None
        self._is_writing_paused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as H11Protocol has it
        """Begins to wait for a request."""
        super().connection_made(transport)
        self._all.admit(self)
        self._look()

    def data_received(self, data: bytes) -> None:
        """Goes on to wait, unless a request is whole."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request."""
        if self.conn.their_state is not h11.SEND_BODY:  # else this request goes on, and so does the wait for it
            self._stop_waiting()
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        """Begins to wait for the client to read."""
        super().pause_writing()
        self._is_writing_paused = True
        self._look()

    def resume_writing(self) -> None:
        """Ends that wait."""
        super().resume_writing()
        self._is_writing_paused = False
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it."""
        self._forget()
        super().connection_lost(exc)

    def end(self, why: str) -> None:
        """Gives the client up."""
        is_in_request = self.conn.their_state is h11.SEND_BODY or bool(self.conn.trailing_data[0])
        has_begun_to_answer = self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE)
        self._end(why, TOO_SLOW if is_in_request and not has_begun_to_answer else b"")

    def refuse(self) -> None:
        """Ends it with 503."""
        self._end("refused", TOO_MANY)

    def _end(self, why: str, last_words: bytes) -> None:
        self._all.ended.labels(why).inc()
        self._forget()
        self.transport.write(last_words)
        self.transport.abort()  # `close` would wait for the client to read

    def _look(self) -> None:
        if self not in self._all.waiting and self not in self._all.answering:
            return  # it has ended
        waits = (
            self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
            or self._is_writing_paused
            or self.transport.is_closing()  # once the client has read the rest
        )
        if not waits:
            self._stop_waiting()
        elif self._deadline is None:
            self._all.answering.discard(self)
            self._all.waiting[self] = None
            self._deadline = self.loop.call_later(self._all.seconds, self.end, "slow")

    def _stop_waiting(self) -> None:
        self._forget()
        self._all.answering.add(self)

    def _forget(self) -> None:
        self._all.waiting.pop(self, None)
        self._all.answering.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
