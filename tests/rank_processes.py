"""Functions of test modules on several ranks: a process for each, in a gloo group over a file."""

import datetime
import multiprocessing
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist

HANGS_AFTER = 100  # seconds
TIMEOUT = 30.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pytest", "torchrec", "damo_torchrec", "damo_torchrec.distributed"])


@dataclass(frozen=True)
class Raised:
    """An error of a rank."""

    kind: str
    message: str
    trace: str


@dataclass(frozen=True)
class Killed:
    """That a rank has ended without a word."""


@dataclass(frozen=True)
class Kill:
    """SIGKILL for a rank, so many seconds after all were started."""

    rank: int
    after: float


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    directory: Path,
    *args: object,
    kill: Kill | None = None,
    timeout: float = TIMEOUT,
) -> list[Any]:
    """What ``function(rank, *args)`` returns on each of the ranks, or the `Raised` of it, or `Killed`.

    Args:
        function: of a test module.
        world_size: how many ranks; without a process group if that is 1.
        directory: for the group's file.
        args: handed on.
        kill: one of them.
        timeout: seconds that a rank waits for another.
    """
    directory.mkdir(exist_ok=True, parents=True)
    number = len(list(directory.glob("group-*")))
    group = directory / f"group-{number}"
    group.touch()
    processes, pipes = [], []
    for rank in range(world_size):
        ours, theirs = _context.Pipe()
        process = _context.Process(target=_rank, args=(theirs, function, rank, world_size, str(group), timeout, args))
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    timer = threading.Timer(kill.after, processes[kill.rank].kill) if kill is not None else None
    if timer is not None:
        timer.start()
    try:
        return [_received(pipe) for pipe in pipes]
    finally:
        if timer is not None:
            timer.cancel()
            timer.join()
        for process in processes:
            process.join(10)
            process.kill()
            process.join()


def _received(pipe: Connection) -> Any:
    if not pipe.poll(HANGS_AFTER):
        raise TimeoutError("a rank does not end")
    try:
        return pipe.recv()
    except EOFError:
        return Killed()


def _rank(
    pipe: Connection,
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    group: str,
    timeout: float,
    args: tuple[object, ...],
) -> None:
    try:
        if world_size > 1:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{group}.rendezvous",
                rank=rank,
                world_size=world_size,
                timeout=datetime.timedelta(seconds=timeout),
            )
        result = function(rank, *args)
    except Exception as error:
        result = Raised(type(error).__name__, str(error), traceback.format_exc())
    pipe.send(result)
    pipe.close()


def values(results: list[Any]) -> list[Any]:
    """The results, if no rank has raised or was killed."""
    for rank, result in enumerate(results):
        assert result != Killed(), f"rank {rank} was killed"
        assert not isinstance(result, Raised), f"rank {rank}: {result.trace}"
    return results


def error_of(results: list[Any]) -> Raised:
    """The one error that all ranks have raised."""
    for result in results:
        assert isinstance(result, Raised), f"expected an error, got {result}"
    assert len({(result.kind, result.message) for result in results}) == 1, results
    return results[0]
