"""How the program ends where it cannot go on: with a sentence and a status that says why, never with a traceback.

Nothing is imported here but what comes with Python: it says, too, what is missing of all else.
"""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

SOUND, DAMAGED, WRONG_USAGE = 0, 1, 2
PIPE_CLOSED = 128 + signal.SIGPIPE  # as a shell has it of programs that end by that signal


class UnwrittenOutputError(Exception):
    """Standard output takes no more: `cause` is what the system says, `done` what was done nevertheless."""

    def __init__(self, cause: OSError, done: str = "") -> None:
        super().__init__(f"cannot write to standard output: {cause}{done and f'; {done}'}")
        self.cause = cause


@contextmanager
def ended_imports() -> Iterator[None]:
    """Around the program's imports: those that fail, or are interrupted, end it."""
    try:
        yield
    except ImportError as error:
        say(str(error))
        sys.exit(WRONG_USAGE)
    except KeyboardInterrupt:
        end_by_interrupt()


@contextmanager
def checked_output() -> Iterator[None]:
    """All that is printed meanwhile is written in the end, or UnwrittenOutputError says why not.

    What the stream's encoding has no characters for, such as a path that is no text, is escaped.
    """
    stdout = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="backslashreplace")
    try:
        with redirect_stdout(_Checked(stdout)) as checked:
            try:
                yield
            finally:
                checked.flush()
    except UnwrittenOutputError:
        _drop(stdout)
        raise


@contextmanager
def after(done: str) -> Iterator[None]:
    """Around what is printed once something is done, which is said where it cannot be printed."""
    try:
        yield
        sys.stdout.flush()
    except UnwrittenOutputError as error:
        raise UnwrittenOutputError(error.cause, done) from error


def say(text: str) -> None:
    """Tells the user why the program ends, if there is anywhere to."""
    if sys.stderr is None:  # `print` would write it to standard output
        return
    try:
        print(f"damo-torchrec: {text}", file=sys.stderr, flush=True)
    except OSError:
        _drop(sys.stderr)


def end_by_interrupt() -> None:
    """Ends this process as Ctrl-C ends one that does not handle it, so that shells and scripts know."""
    say("interrupted")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


class _Checked(io.TextIOBase):
    """A stream whose errors are told from those of other files; also the one that is not there (``>&-``)."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            if self._stream is None:
                raise OSError("it is closed")
            return self._stream.write(text)
        except OSError as error:
            raise UnwrittenOutputError(error) from error

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            raise UnwrittenOutputError(error) from error


def _drop(stream: TextIO | None) -> None:
    """Has what a stream still holds go nowhere: the interpreter writes it in the end, and would fail."""
    if stream is not None:
        with suppress(OSError):  # a stream of no file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
