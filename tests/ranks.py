"""Process groups of real processes over gloo, which serve many calls: whoever hangs is killed, and the test fails."""

import contextlib
import datetime
import faulthandler
import os
import pickle
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from processes import started

ANSWERS_WITHIN = 60  # seconds
_GROUP_GIVES_UP_AFTER = datetime.timedelta(seconds=40)


class RankError(Exception):
    """What a call raised on a rank, with the traceback there as its notes."""


class Ranks:
    """The ranks of one process group. Calling it calls a test module's function on all of them at once."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections

    @property
    def size(self) -> int:
        return len(self._connections)

    def __call__(self, function: Callable[..., Any], *args: object) -> list[Any]:
        """What ``function(rank, *args)`` returns, by rank. Raises what the first of them that failed has raised."""
        results = self.outcomes(function, *args)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    def outcomes(self, function: Callable[..., Any], *args: object) -> list[Any]:
        """The same, with what was raised in place of a result."""
        for connection in self._connections:
            connection.send((function, args))
        results = []
        for rank, connection in enumerate(self._connections):
            if not connection.poll(ANSWERS_WITHIN):
                raise TimeoutError(f"rank {rank} of {self.size} has not answered {function.__name__}")
            results.append(connection.recv())
        return results


@contextlib.contextmanager
def started_ranks(size: int) -> Iterator[Ranks]:
    """A process group of so many processes, which end with the context."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        meet = str(Path(directory) / "meet")
        ours = [stack.enter_context(started(_serve, rank, size, meet))[1] for rank in range(size)]
        yield Ranks(ours)


def _serve(connection: Connection, rank: int, size: int, meet: str) -> None:
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(size))
    faulthandler.enable()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # TorchRec's own, of several kinds
    distributed.init_process_group(
        "gloo", init_method=f"file://{meet}", rank=rank, world_size=size, timeout=_GROUP_GIVES_UP_AFTER
    )
    with contextlib.suppress(EOFError):
        while True:
            function, args = connection.recv()
            try:
                result = function(rank, *args)
            except Exception as error:
                result = _sendable(error)
            connection.send(result)


def _sendable(error: Exception) -> Exception:
    told = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RankError(f"{type(error).__name__}: {error}")
    error.add_note(told) if hasattr(error, "add_note") else None  # from Python 3.11 on
    return error
