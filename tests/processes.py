"""Functions in processes of their own, forked from a server that has imported the heavy modules once."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

HANGS_AFTER = 120  # seconds: then a program counts as one that does not end

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pytest", "torchrec", "damo_torchrec"])


def run(function: Callable[..., Any], *args: object) -> Any:
    """What a test module's function returns or raises, called in a new process."""
    with ProcessPoolExecutor(1, mp_context=_context) as process:
        return process.submit(function, *args).result()


def run_program(function: Callable[[Path], None], directory: Path) -> subprocess.CompletedProcess[str]:
    """A test module's function as a program of its own, which imports that module alone and has to end well."""
    path = Path(function.__code__.co_filename)
    script = f"import {path.stem}, pathlib; {path.stem}.{function.__name__}(pathlib.Path({str(directory)!r}))"
    paths = os.pathsep.join([str(path.parent), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(directory)},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS_AFTER,
    )
    assert result.returncode == 0, result.stderr
    return result


def run_until_killed(function: Callable[..., Any], *args: object) -> None:
    """Calls, in a new process, a function that does not return because the process is killed."""
    with pytest.raises(BrokenProcessPool):
        run(function, *args)


def kill_this_process(*_: object, **__: object) -> None:
    """What `kill -9` does, at this very place."""
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def started(function: Callable[..., Any], *args: object) -> Iterator[tuple[int, Connection]]:
    """A new process that calls ``function(connection, *args)``: its number, and the connection's other end."""
    ours, theirs = _context.Pipe()
    process = _context.Process(target=function, args=(theirs, *args))
    process.start()
    theirs.close()
    try:
        yield process.pid, ours
    finally:
        process.kill()
        ours.close()
        process.join()


def resident_bytes(which: str = "VmRSS") -> int:
    """Memory of this process: now, or with ``"VmHWM"`` the most there has been."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(which))
    return int(line.split()[1]) * 1024
