#!/usr/bin/env python3
"""Loads the HTTP server: how many requests it answers, how soon, and which it refuses; `--help`.

docs/serving.md describes the method.
"""

import argparse
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from common.measure import table, write_json
from common.program import DEFAULT, QUIET, Options, RefusedError, begin, count, run

FULL = {"rows": 10_000, "seconds": 10.0, "wrong": 10_000}
QUICK = {"rows": 100, "seconds": 1.0, "wrong": 100}
STARTS_WITHIN = 60.0
DENSE_FEATURES = 13

DESCRIPTION = """\
Serves a DLRM by `damo-torchrec serve` on loopback, and asks it from several connections at a time, each of
which sends the next request when it has its answer: first while nothing else happens, then beside
connections that have begun a request and do not go on, then while a delta with changed rows of all tables
and a new dense part arrives each second. Then sends wrong requests, every one of which has to be refused,
and one that is right. Clients, training and the server share the machine.
"""

EPILOG = """\
examples:
  python benchmarks/serving_load.py
  python benchmarks/serving_load.py --quick
  python benchmarks/serving_load.py --batch 16 --clients 8
"""


def main() -> None:
    arguments = parse_arguments()
    os.environ.update(QUIET)  # before torch is imported
    import torch

    from parts.serving.models import Trained

    torch.set_num_threads(1)
    report = begin("serving_load") | {"options": {n: v for n, v in vars(arguments).items() if n != "json"}}
    with (
        tempfile.TemporaryDirectory(prefix="damo-benchmark-") as name,
        Trained(Path(name), arguments.tables, arguments.rows, arguments.dim) as trained,
    ):
        bodies = [json.dumps(trained.json_request(arguments.batch, seed)).encode() for seed in range(64)]
        with server(trained.served, trained.deltas) as port:
            quiet = load(port, bodies, arguments.clients, arguments.seconds)
            with stalled(port, arguments.stalled):
                beside = load(port, bodies, arguments.clients, arguments.seconds)
            with publishing(trained.publish, every_seconds=1.0) as published:
                busy = load(port, bodies, arguments.clients, arguments.seconds)
            report["load"] = [
                {"stalled": 0, "deltas": 0, **quiet},
                {"stalled": arguments.stalled, "deltas": 0, **beside},
                {"stalled": 0, "deltas": len(published), **busy},
            ]
            print(f"\n{load_in_words(report['load'], arguments)}", flush=True)
            report["wrong"] = wrong_requests(port, bodies, arguments.wrong)
            print(f"\n{arguments.wrong:,} wrong requests: {report['wrong']}, and then one that is right: answered")
    if arguments.json is not None:
        write_json(arguments.json, report)


@contextmanager
def server(checkpoint: Path, deltas: Path) -> Iterator[int]:
    """Runs the example and gives its port. Raises RefusedError if it does not begin, or has ended by itself."""
    command = [sys.executable, "-m", "damo_torchrec", "serve", str(checkpoint), "--watch", str(deltas), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said: list[str] = []
    drain = threading.Thread(target=process.stdout.read)
    try:
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"http://[\w.]+:(\d+)", line):
                break
        else:
            raise RefusedError(f"the server ended: {''.join(said)}")
        drain.start()
        yield int(found[1])
        if process.poll() is not None:
            raise RefusedError(f"the server ended with {process.returncode}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STARTS_WITHIN)
        if drain.is_alive():
            drain.join()
        process.stdout.close()


@contextmanager
def stalled(port: int, connections: int) -> Iterator[None]:
    """Connections that have sent a part of a head, or a head and a part of the body."""
    body = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{"
    with ExitStack() as stack:
        for number in range(connections):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(body if number % 2 else b"GET /hea")
        yield


@contextmanager
def publishing(publish: Callable[[], Path | None], every_seconds: float) -> Iterator[list[Path]]:
    """Publishes deltas in a thread; they are in the list."""
    published: list[Path] = []
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(every_seconds):
            path = publish()
            if path is not None:
                published.append(path)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield published
    finally:
        ended.set()
        thread.join()


def load(port: int, bodies: Sequence[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Requests a second, and latencies in seconds, of clients that ask all the time."""
    times: list[list[float]] = [[] for _ in range(clients)]
    end = time.perf_counter() + seconds

    def ask(number: int) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            while (began := time.perf_counter()) < end:
                status, answer = post(connection, bodies[len(times[number]) % len(bodies)])
                if status != 200:
                    raise RefusedError(f"the server answered {status}: {answer!r}")
                times[number].append(time.perf_counter() - began)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_times = np.array([t for of_client in times for t in of_client])
    if not len(all_times):
        raise RefusedError("no request was answered")
    p50, p99 = np.percentile(all_times, [50, 99])
    return {"per_second": len(all_times) / seconds, "p50": float(p50), "p99": float(p99), "max": float(all_times.max())}


def wrong_requests(port: int, bodies: Sequence[bytes], n: int) -> dict[str, int]:
    """How many were refused, by status. Raises RefusedError if one is not, or if a right one then gets no answer."""
    rng = np.random.default_rng(0)
    refused: dict[str, int] = {}
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        for number in range(n):
            status, answer = post(connection, wrong(bodies[number % len(bodies)], number, rng))
            if not 400 <= status < 500:
                raise RefusedError(f"a wrong request was answered with {status}: {answer!r}")
            refused[str(status)] = refused.get(str(status), 0) + 1
        status, answer = post(connection, bodies[0])
    if status != 200:
        raise RefusedError(f"after {n} wrong requests a right one was answered with {status}: {answer!r}")
    return refused


def wrong(body: bytes, number: int, rng: np.random.Generator) -> bytes:
    """A request that is wrong in one of several ways."""
    request = json.loads(body)
    features = request["sparse_features"]
    key = next(iter(features))
    match number % 8:
        case 0:
            return body[: int(rng.integers(0, len(body) - 1))]
        case 1:
            return rng.bytes(int(rng.integers(1, 200)))
        case 2:
            del features[key]
        case 3:
            features[key] = [*features[key], [1]]
        case 4:
            features[key][0] = [2**64]
        case 5:
            features[key][0] = ["seven"]
        case 6:
            request["dense_features"][0] = request["dense_features"][0][:-1]
        case _:
            request["more"] = 1
    return json.dumps(request).encode()


def post(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, bytes]:
    connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read()


def load_in_words(figures: Sequence[dict[str, float]], arguments: argparse.Namespace) -> str:
    header = ["", "", "stalled", "deltas", "requests/s", "p50 ms", "p99 ms", "longest ms"]
    rows = [
        [
            f"{arguments.clients} clients, batch {arguments.batch}",
            "",
            f"{f['stalled']:.0f}",
            f"{f['deltas']:.0f}",
            f"{f['per_second']:,.0f}",
            *(f"{1e3 * f[name]:.1f}" for name in ("p50", "p99", "max")),
        ]
        for f in figures
    ]
    return table(header, rows)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    options = Options(DESCRIPTION, EPILOG, FULL, QUICK)
    add: Any = options.parser.add_argument
    add("--tables", type=count, metavar="N", default=26, help=f"how many {DEFAULT}")
    add("--rows", type=count, metavar="N", help=f"of each table (default: {FULL['rows']})")
    add("--dim", type=count, metavar="N", default=64, help=f"weights of a row {DEFAULT}")
    add("--batch", type=count, metavar="N", default=1, help=f"samples of a request {DEFAULT}")
    add("--clients", type=count, metavar="N", default=4, help=f"connections at a time {DEFAULT}")
    add("--seconds", type=float, metavar="S", help=f"of each load (default: {FULL['seconds']})")
    add("--stalled", type=count, metavar="N", default=300, help=f"connections that stall {DEFAULT}")
    add("--wrong", type=count, metavar="N", help=f"wrong requests (default: {FULL['wrong']})")
    return options.parse(argv)


if __name__ == "__main__":
    sys.exit(run(main))
