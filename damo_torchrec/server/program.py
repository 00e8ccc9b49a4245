"""The server as a program: what stays until a signal ends it."""

import functools
import gc
import logging
import sys

import uvicorn

from damo_torchrec.server.application import make_app
from damo_torchrec.server.connections import Connection, Connections
from damo_torchrec.server.served_model import Metrics, Settings

_DRAIN_SECONDS = 30


def run(settings: Settings, host: str, port: int, *, connections: int, client_seconds: float, quiet: bool) -> None:
    """Serves until SIGTERM or SIGINT, and answers what was asked before. The log goes to stderr.

    Args:
        settings: what is served, and how.
        host: the address to listen on.
        port: the port; 0 for any that is free, which the log names.
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
    uvicorn.run(
        make_app(settings, metrics),
        host=host,
        port=port,
        http=functools.partial(Connection, Connections(connections, client_seconds, metrics.connections_ended)),  # type: ignore[arg-type]  # it is called alone
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
