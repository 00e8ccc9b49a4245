#!/usr/bin/env python3
"""Serves a checkpoint of `damo.serving.export` over HTTP; `--help` tells the rest.

The application is in serve_http.py, what it serves in serve_model.py, what requests look like in
serve_json.py, and how those that arrive together are answered together in serve_batching.py. What it
lets clients do is in serve_gate.py, serve_connections.py and serve_bodies.py.
"""

import argparse
import functools
import gc
import logging
import os
import sys
from pathlib import Path

import uvicorn

import damo_torchrec as damo
from serve_connections import Connection, Connections
from serve_gate import LOCAL_HOSTS, Access
from serve_http import make_app
from serve_json import Limits
from serve_model import Metrics, Settings

log = logging.getLogger("serve")

TOKEN = "DAMO_SERVE_TOKEN"
EVERYWHERE = ("", "0.0.0.0", "::")  # no names by which anybody asks, but a browser that is made to

DESCRIPTION = """\
Answers POST /predict with a model's outputs, as JSON. GET /health tells what is served, GET
/metrics figures for Prometheus. SIGTERM ends it once all requests are answered.
"""

EPILOG = """\
SIGHUP, or POST /reload, opens CHECKPOINT again, without a request being refused: have CHECKPOINT be
a symbolic link, and point it to another checkpoint first. With --watch the server follows a
training by its deltas.

/reload, and the path of the checkpoint in /health, are for those who have a token: give the server one
by --token-file or in the environment variable DAMO_SERVE_TOKEN, and clients the header
`Authorization: Bearer TOKEN`. Everybody who reaches the port may ask the rest: put a proxy with TLS and
a login before a server that is not on loopback. docs/serving.md says what it withstands by itself.

example, with a model that takes `dense_features` and `sparse_features`:
  python examples/serve.py checkpoints/serving --watch deltas/
  curl -s localhost:8000/predict -H 'Content-Type: application/json' -d '{
       "dense_features": [[0.5, 1.0]], "sparse_features": {"user": [[7]], "clicks": [[1, 2, 2]]}}'
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown = "(default: %(default)s)"
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="what damo.serving.export made")
    parser.add_argument("--watch", type=Path, metavar="DIR", help="apply deltas that appear there")
    parser.add_argument("--host", default="127.0.0.1", help=f"address to listen on {shown}")
    parser.add_argument("--port", type=int, default=8000, help=f"port to listen on {shown}")
    parser.add_argument("--memory-budget", default="1GiB", metavar="SIZE", help=f"what rows may take of memory {shown}")
    parser.add_argument("--threads", type=int, help="threads of one lookup, and of one run (default: all processors)")

    batches = parser.add_argument_group("answering together")
    batches.add_argument(
        "--join",
        choices=["auto", "always", "never"],
        default="auto",
        help="which models answer requests of several clients together: auto, those that were found not to compare "
        f"samples when they were exported {shown}",
    )
    batches.add_argument("--batch-samples", type=int, default=256, help=f"most samples in one run {shown}")
    batches.add_argument(
        "--batch-ms", type=float, default=1.0, metavar="MS", help=f"how long to wait for others to join {shown}"
    )
    batches.add_argument("--workers", type=int, default=2, help=f"runs at a time {shown}")

    access = parser.add_argument_group("who may ask")
    access.add_argument("--token-file", type=Path, metavar="FILE", help=f"the token is there (default: in {TOKEN})")
    access.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that clients have for it, besides --host and localhost",
    )
    access.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN", help="pages of it may ask (default: none may)"
    )

    clients = parser.add_argument_group("limits of all clients together")
    clients.add_argument("--max-connections", type=int, default=256, metavar="N", help=f"open at a time {shown}")
    clients.add_argument(
        "--client-seconds",
        type=float,
        default=20.0,
        metavar="S",
        help=f"how long a request may take to arrive, and an answer to be read {shown}",
    )
    clients.add_argument(
        "--max-bodies", default="32MiB", metavar="SIZE", help=f"bytes of all large bodies that are under way {shown}"
    )

    limits = parser.add_argument_group("limits of a request")
    limits.add_argument("--max-body", default="8MiB", metavar="SIZE", help=f"bytes of its body {shown}")
    limits.add_argument("--max-values", type=int, default=1_000_000, help=f"its numbers and lists {shown}")
    limits.add_argument("--max-samples", type=int, default=4096, help=f"its samples {shown}")
    limits.add_argument("--max-ids", type=int, default=262_144, help=f"ids of one of its arguments {shown}")
    arguments = parser.parse_args(argv)
    for name in ("batch_samples", "workers", "max_connections", "max_values", "max_samples", "max_ids"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if not 0 < arguments.client_seconds < float("inf"):
        parser.error(f"--client-seconds must be above 0, got {arguments.client_seconds}")
    return arguments


def access_of(arguments: argparse.Namespace) -> Access:
    token = os.environ.get(TOKEN)
    if arguments.token_file is not None:
        if token is not None:
            raise ValueError(f"either --token-file or {TOKEN}, got both")
        token = arguments.token_file.read_text().strip()
    names = list(arguments.allow_host)
    if arguments.host not in EVERYWHERE:
        names.append(f"[{arguments.host}]" if ":" in arguments.host else arguments.host)
    elif not names:
        log.warning("asked by another name than localhost the server will refuse: --allow-host says what it is called")
    return Access(LOCAL_HOSTS.union(name.lower() for name in names), frozenset(arguments.allow_origin), token)


def limits_of(arguments: argparse.Namespace) -> Limits:
    limits = Limits(
        body_bytes=damo.options.parse_bytes(arguments.max_body),
        values=arguments.max_values,
        samples=arguments.max_samples,
        ids=arguments.max_ids,
        bytes_together=damo.options.parse_bytes(arguments.max_bodies),
    )
    if limits.bytes_together < limits.body_bytes:
        raise ValueError(f"--max-bodies {arguments.max_bodies} is less than --max-body {arguments.max_body}")
    return limits


def settings_of(arguments: argparse.Namespace) -> Settings:
    return Settings(
        checkpoint=arguments.checkpoint,
        memory_budget=arguments.memory_budget,
        num_threads=arguments.threads,
        watch=arguments.watch,
        batch_samples=arguments.batch_samples,
        batch_seconds=arguments.batch_ms / 1000,
        workers=arguments.workers,
        join=arguments.join,
        limits=limits_of(arguments),
        access=access_of(arguments),
    )


def main() -> int:
    arguments = parse_arguments()
    # By force: importing FBGEMM has set it up already.
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", force=True)
    for name in ("serve", "damo_torchrec"):
        logging.getLogger(name).setLevel(logging.INFO)
    settings = settings_of(arguments)
    damo.serving.Predictor(arguments.checkpoint.resolve(), memory_budget=arguments.memory_budget).close()
    gc.freeze()  # or the objects of a large body have the collector go through all modules, again and again
    metrics = Metrics()
    connections = Connections(arguments.max_connections, arguments.client_seconds, metrics.connections_ended)
    uvicorn.run(
        make_app(settings, metrics),
        host=arguments.host,
        port=arguments.port,
        http=functools.partial(Connection, connections),
        ws="none",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=30,
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (damo.DamoError, OSError, ValueError) as error:
        sys.exit(f"serve.py: error: {error}")
