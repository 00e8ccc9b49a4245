#!/usr/bin/env python3
"""Serves a checkpoint of `damo.serving.export` over HTTP; `--help` tells the rest.

The application is in serve_http.py, what it serves in serve_model.py, what requests look like in
serve_json.py, and how those that arrive together are answered together in serve_batching.py.
"""

import argparse
import logging
import sys
from pathlib import Path

import uvicorn

import damo_torchrec as damo
from serve_http import make_app
from serve_json import Limits
from serve_model import Settings

DESCRIPTION = """\
Answers POST /predict with a model's outputs, as JSON. GET /health tells what is served, GET
/metrics figures for Prometheus. SIGTERM ends it once all requests are answered.
"""

EPILOG = """\
POST /reload, or SIGHUP, opens CHECKPOINT again, without a request being refused: have CHECKPOINT be
a symbolic link, and point it to another checkpoint first. With --watch the server follows a
training by its deltas.

example, with a model that takes `dense_features` and `sparse_features`:
  python examples/serve.py checkpoints/serving --watch deltas/
  curl -s localhost:8000/predict -d '{"dense_features": [[0.5, 1.0]],
       "sparse_features": {"user": [[7]], "clicks": [[1, 2, 2]]}}'
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
    batches.add_argument("--batch-samples", type=int, default=256, help=f"most samples in one run {shown}")
    batches.add_argument(
        "--batch-ms", type=float, default=1.0, metavar="MS", help=f"how long to wait for others to join {shown}"
    )
    batches.add_argument("--workers", type=int, default=2, help=f"runs at a time {shown}")

    limits = parser.add_argument_group("limits of a request")
    limits.add_argument("--max-body", default="8MiB", metavar="SIZE", help=f"bytes of its body {shown}")
    limits.add_argument("--max-samples", type=int, default=4096, help=f"its samples {shown}")
    limits.add_argument("--max-ids", type=int, default=262_144, help=f"ids of one of its arguments {shown}")
    arguments = parser.parse_args(argv)
    for name in ("batch_samples", "workers", "max_samples", "max_ids"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    return arguments


def settings_of(arguments: argparse.Namespace) -> Settings:
    return Settings(
        checkpoint=arguments.checkpoint,
        memory_budget=arguments.memory_budget,
        num_threads=arguments.threads,
        watch=arguments.watch,
        batch_samples=arguments.batch_samples,
        batch_seconds=arguments.batch_ms / 1000,
        workers=arguments.workers,
        limits=Limits(
            body_bytes=damo.options.parse_bytes(arguments.max_body),
            samples=arguments.max_samples,
            ids=arguments.max_ids,
        ),
    )


def main() -> int:
    arguments = parse_arguments()
    # By force: importing FBGEMM has set it up already.
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", force=True)
    for name in ("serve", "damo_torchrec"):
        logging.getLogger(name).setLevel(logging.INFO)
    damo.serving.Predictor(arguments.checkpoint.resolve(), memory_budget=arguments.memory_budget).close()
    uvicorn.run(
        make_app(settings_of(arguments)),
        host=arguments.host,
        port=arguments.port,
        access_log=False,
        timeout_graceful_shutdown=30,
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (damo.DamoError, OSError, ValueError) as error:
        sys.exit(f"serve.py: error: {error}")
