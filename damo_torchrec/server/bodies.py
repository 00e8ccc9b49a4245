"""Reads the bodies of requests, within a number of bytes for all that are under way."""

import contextlib
from collections.abc import Iterator

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

# Bodies up to here are not counted, so that large ones cannot keep them out: connections bound their number.
SMALL_BODY = 65_536


class Bodies:
    """Those of one server. `most` is the bytes that one may have, `most_together` of all large ones."""

    def __init__(self, most: int, most_together: int) -> None:
        self.most = most
        self.free = most_together

    @contextlib.contextmanager
    def reading(self) -> Iterator["Body"]:
        """A body, which is under way until the end of the context."""
        body = Body(self)
        try:
            yield body
        finally:
            self.free += body.held


class Body:
    """One of them."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.held = 0

    async def read(self, http: Request) -> bytearray:
        """All of it.

        Raises:
            HTTPException: it is too large, or larger than what is free now, or it ends early.
        """
        content = bytearray()
        try:
            self._admit(int(http.headers.get("content-length", 0)))  # h11 has checked it
            async for part in http.stream():
                self._admit(len(content) + len(part))
                content += part
                self._hold(len(content))
        except ClientDisconnect as error:
            raise HTTPException(400, "the client has gone before the end of the body") from error
        return content

    def _admit(self, size: int) -> None:
        if size > self._bodies.most:
            raise HTTPException(413, f"the body is larger than {self._bodies.most} bytes")

    def _hold(self, size: int) -> None:
        more = size - self.held if size > SMALL_BODY else 0
        if more > self._bodies.free:
            raise HTTPException(503, "too many large requests are under way", {"Retry-After": "1"})
        self._bodies.free -= more
        self.held += more
