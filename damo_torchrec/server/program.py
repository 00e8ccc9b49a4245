"""The server as a program: what stays until a signal ends it."""

import errno
import functools
import gc
import logging
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import uvicorn

from damo_torchrec.server.application import make_app
from damo_torchrec.server.connections import Connection, Connections
from damo_torchrec.server.served_model import Metrics, Settings

_log = logging.getLogger(__name__)

_DRAIN_SECONDS = 30
_BACKLOG = 2048  # uvicorn's
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # such as IPv6 where there is none


@contextmanager
def listening(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Sockets that listen on all addresses of `host`, at one port; who connects waits for `run`.

    Args:
        host: a name or an address.
        port: the port; 0 for any that is free.

    Raises:
        ValueError: the port is in use, there is no such address here, or the system refuses.
    """
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        try:
            for family, kind, protocol, _, address in dict.fromkeys(
                socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            ):
                try:
                    made = stack.enter_context(socket.socket(family, kind, protocol))
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    made.bind((address[0], sockets[0].getsockname()[1] if sockets else port, *address[2:]))
                    made.listen(_BACKLOG)
                except OSError as error:
                    if error.errno not in _NO_SUCH_ADDRESS:
                        raise
                    refused = error
                    continue
                sockets.append(made)
            if not sockets:
                raise refused
        except OSError as error:
            raise ValueError(f"cannot listen on {host} port {port}: {error.strerror}") from error
        yield sockets


def run(
    settings: Settings, sockets: Sequence[socket.socket], *, connections: int, client_seconds: float, quiet: bool
) -> bool:
    """Serves until SIGTERM or SIGINT, and answers what was asked before. The log goes to stderr.

    Returns whether it could begin; the log says why not.

    Args:
        settings: what is served, and how.
        sockets: those of `listening`, which the log names.
        connections: so many may be open at a time.
        client_seconds: so long may a request take to arrive, and an answer to be read.
        quiet: warnings and errors alone are in the log.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    level = logging.WARNING if quiet else logging.INFO
    for name in ("damo_torchrec", "uvicorn"):
        log = logging.getLogger(name)
        log.addHandler(handler)
        log.setLevel(level)
    gc.freeze()  # or the objects of a large body have the collector go through all modules, again and again
    metrics = Metrics()
    config = uvicorn.Config(
        make_app(settings, metrics),
        http=functools.partial(Connection, Connections(connections, client_seconds, metrics.connections_ended)),  # type: ignore[arg-type]  # it is called alone
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    server = _Server(config)
    with suppress(KeyboardInterrupt):  # which uvicorn raises again once it has ended
        server.run(sockets=[*sockets])
    return server.started


class _Server(uvicorn.Server):
    """One that tells where it is, as uvicorn does of sockets that it makes itself."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or () if self.started else ():
            host, port = listener.getsockname()[:2]
            _log.info("running on http://%s:%d (Press CTRL+C to quit)", f"[{host}]" if ":" in host else host, port)
