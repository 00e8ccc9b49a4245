"""``damo-torchrec serve``: an exported model over HTTP."""

import argparse
import contextlib
import math
import sys
from typing import TYPE_CHECKING

from damo_torchrec.cli.command import Command, absolute_path, number, positive, positive_seconds
from damo_torchrec.cli.ending import SOUND, WRONG_USAGE
from damo_torchrec.cli.output import print_json

if TYPE_CHECKING:
    from damo_torchrec.serving.predictor import Predictor

_DESCRIPTION = """\
Answers POST /predict with a model's outputs, as JSON. GET /health tells what is served, GET /metrics
figures for Prometheus. SIGTERM and Ctrl-C end it once all requests are answered.

SIGHUP, or POST /reload, opens EXPORT again, without a request being refused: have EXPORT be a symbolic
link, and point it to another export first. With --watch the server follows a training by its deltas.

/reload, and paths in /health, are for those who have a token: give the server one by --token-file or in
the environment variable DAMO_SERVE_TOKEN, and clients the header `Authorization: Bearer TOKEN`.
Everybody who reaches the port may ask the rest: put a proxy with TLS and a login before a server that is
not on loopback. docs/serving.md says what it withstands by itself.

example, with a model that takes `dense_features` and `sparse_features`:
  damo-torchrec serve exports/ranker --watch deltas/
  curl -s localhost:8000/predict -H 'Content-Type: application/json' -d '{
       "dense_features": [[0.5, 1.0]], "sparse_features": {"user": [[7]], "clicks": [[1, 2, 2]]}}'
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    shown = "(default: %(default)s)"
    parser.add_argument("export", type=absolute_path, metavar="EXPORT", help="what damo.serving.export made")
    parser.add_argument("--watch", type=absolute_path, metavar="DIR", help="apply deltas that appear there")
    parser.add_argument("--host", default="127.0.0.1", help=f"address to listen on {shown}")
    parser.add_argument("--port", type=_port, default=8000, help=f"port to listen on, 0 for any {shown}")
    parser.add_argument("--memory-budget", default="1GiB", metavar="SIZE", help=f"what rows may take of memory {shown}")
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="threads of one lookup, and of one run (default: all processors)"
    )
    parser.add_argument("--dry-run", action="store_true", help="open it, say what would be served, and end")

    batches = parser.add_argument_group("answering together")
    batches.add_argument(
        "--join",
        choices=["auto", "always", "never"],
        default="auto",
        help="which models answer requests of several clients together: auto, those that were found not to compare "
        f"samples when they were exported {shown}",
    )
    batches.add_argument(
        "--batch-samples", type=positive, default=256, metavar="N", help=f"most samples in one run {shown}"
    )
    batches.add_argument(
        "--batch-ms", type=_milliseconds, default=1.0, metavar="MS", help=f"how long to wait for others to join {shown}"
    )
    batches.add_argument("--workers", type=positive, default=2, metavar="N", help=f"runs at a time {shown}")

    access = parser.add_argument_group("who may ask")
    access.add_argument(
        "--token-file", type=absolute_path, metavar="FILE", help="the token is there (default: in DAMO_SERVE_TOKEN)"
    )
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
    clients.add_argument("--max-connections", type=positive, default=256, metavar="N", help=f"open at a time {shown}")
    clients.add_argument(
        "--client-seconds",
        type=positive_seconds,
        default=20.0,
        metavar="S",
        help=f"how long a request may take to arrive, and an answer to be read {shown}",
    )
    clients.add_argument(
        "--max-bodies", default="32MiB", metavar="SIZE", help=f"bytes of all large bodies that are under way {shown}"
    )

    limits = parser.add_argument_group("limits of a request")
    limits.add_argument("--max-body", default="8MiB", metavar="SIZE", help=f"bytes of its body {shown}")
    limits.add_argument(
        "--max-values", type=positive, default=1_000_000, metavar="N", help=f"its numbers and lists {shown}"
    )
    limits.add_argument("--max-samples", type=positive, default=4096, metavar="N", help=f"its samples {shown}")
    limits.add_argument(
        "--max-ids", type=positive, default=262_144, metavar="N", help=f"ids of one of its arguments {shown}"
    )


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def _milliseconds(text: str) -> float:
    if not 0 <= (milliseconds := number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of milliseconds, got {text!r}")
    return milliseconds


def _run(options: argparse.Namespace) -> int:
    # What no other command needs: ONNX Runtime, and then the packages of a web server.
    from damo_torchrec.serving.predictor import Predictor

    path = options.export.resolve()
    with contextlib.ExitStack() as stack:
        with Predictor(path, memory_budget=options.memory_budget, num_threads=options.threads) as predictor:
            if options.dry_run:
                _describe(options, predictor, options.port)
                return SOUND
            from damo_torchrec.cli.serve_settings import settings_of
            from damo_torchrec.server import program

            sockets = stack.enter_context(program.listening(options.host, options.port))
            if options.json:
                _describe(options, predictor, sockets[0].getsockname()[1])
                sys.stdout.flush()
        began = program.run(
            settings_of(options),
            sockets,
            connections=options.max_connections,
            client_seconds=options.client_seconds,
            quiet=options.quiet,
        )
    return SOUND if began else WRONG_USAGE


def _describe(options: argparse.Namespace, predictor: "Predictor", port: int) -> None:
    if options.json:
        fields = {
            "export": options.export,
            "dry_run": options.dry_run,
            "host": options.host,
            "port": port,
            "step": predictor.step,
            "features": predictor.features,
            "inputs": [*predictor.inputs],
            "outputs": [*predictor.outputs],
        }
        print_json(options, fields)
        return
    print(f"{options.export}, step {predictor.step}, would be served on {options.host} port {port}")
    for name, keys in predictor.features.items():
        print(f"  {name}: ids of {', '.join(keys)}")
    print(f"  outputs: {', '.join(predictor.outputs)}")


COMMAND = Command(
    name="serve",
    help="an exported model over HTTP",
    description=_DESCRIPTION,
    add_arguments=_add_arguments,
    run=_run,
)
