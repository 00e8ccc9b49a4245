"""Who may ask a server what: a browser on behalf of a strange page may not, and administration needs a token."""

import hmac
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import HTTPException, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]*)?")
ONCE = ("authorization", "content-encoding", "content-length", "content-type", "host", "origin", "transfer-encoding")
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
LEAST_TOKEN = 16  # characters
Refuse = Callable[[Request, HTTPException], Awaitable[Response]]


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        hosts: names under which the server is asked, without ports, in lower case.
        origins: pages of which origins may ask, for example ``https://shop.example``.
        token: what the header ``Authorization: Bearer`` needs to have for /reload and for paths. Without
            one nobody gets these.

    Raises:
        ValueError: the token is too short.
    """

    hosts: frozenset[str] = LOCAL_HOSTS
    origins: frozenset[str] = frozenset()
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < LEAST_TOKEN:
            raise ValueError(f"the token must have at least {LEAST_TOKEN} characters, got {len(self.token)}")


class Gate:
    """Raises HTTPException where a request may not pass."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def check(self, http: Request) -> None:
        """What holds for all: browsers send Host and, with what may change something, Origin."""
        if "content-length" in http.headers and "transfer-encoding" in http.headers:
            # A proxy that goes by the other one takes the rest of the body for a request, or the other way round.
            raise HTTPException(400, "either Content-Length or Transfer-Encoding, got both", {"Connection": "close"})
        if twice := [name for name in ONCE if len(http.headers.getlist(name)) > 1]:
            raise HTTPException(400, f"a request has one {twice[0]}, got several", {"Connection": "close"})
        host = http.headers.get("host")  # HTTP/1.0 has none, nor a browser that speaks it
        if host is not None and _name(host) not in self._access.hosts:
            raise HTTPException(421, f"this server is not {host!r:.100}; --allow-host names what else it is called")
        origin = http.headers.get("origin")
        if origin is not None and origin not in self._access.origins:
            raise HTTPException(403, "pages of this origin may not ask; --allow-origin names those that may")

    async def check_body(self, http: Request) -> None:
        """That a body is what it is taken for: JSON, as it is."""
        kind = http.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPException(415, f"the body must be application/json, got {kind!r:.100}")
        encoding = http.headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise HTTPException(415, f"the body must not be compressed, got {encoding!r:.100}")

    async def check_token(self, http: Request) -> None:
        """That the request may administer."""
        if self._access.token is None:
            raise HTTPException(403, "this server was begun without a token; its --help says more")
        if not self.has_token(http):
            raise HTTPException(401, "a token is needed", {"WWW-Authenticate": "Bearer"})

    def has_token(self, http: Request) -> bool:
        """Whether it has the server's token."""
        scheme, _, token = http.headers.get("authorization", "").partition(" ")
        return (
            self._access.token is not None
            and scheme.lower() == "bearer"
            and hmac.compare_digest(token.strip().encode(), self._access.token.encode())
        )


class Guarded:
    """An application behind a gate: middleware, so that there is no way around it."""

    def __init__(self, app: ASGIApp, gate: Gate, refuse: Refuse) -> None:
        self._app = app
        self._gate = gate
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may pass, and answers the rest."""
        app = self._app
        if scope["type"] == "http":
            http = Request(scope)
            try:
                self._gate.check(http)
            except HTTPException as error:
                app = await self._refuse(http, error)
        await app(scope, receive, send)


def _name(host: str) -> str | None:
    found = HOST.fullmatch(host.lower())
    return None if found is None else found[1]
