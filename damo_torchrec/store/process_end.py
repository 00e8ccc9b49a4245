"""What a normal end of the interpreter closes, so that forgetting close() costs nothing."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from damo_torchrec.store.background import wait_for_all

_log = logging.getLogger(__name__)

# What the end of the interpreter allows daemon threads that train to find their stores closed: torch ends the process
# with an error if they come back from a backward too late.
_TRAINERS_END_WITHIN = 2.0  # seconds


class Closable(Protocol):
    """A session that is open."""

    @property
    def path(self) -> Path:
        """The store's directory."""

    @property
    def trainers(self) -> Collection[int]:
        """The threads that have changed rows, by number."""

    def close(self) -> None:
        """Makes its rows durable, and ends it."""

    def give_up_rows(self) -> None:
        """Ends it where that fails."""


_open: weakref.WeakSet[Closable] = weakref.WeakSet()


def close_at_end(session: Closable) -> None:
    """Has a normal end of the interpreter close a session."""
    _open.add(session)


def leave_at_end(session: Closable) -> None:
    """Undoes `close_at_end`."""
    _open.discard(session)


@atexit.register
def _close_all() -> None:
    sessions = list(_open)
    for session in sessions:
        try:
            session.close()
        except BaseException:  # an interrupt, too: the others are still to be closed
            _log.exception("could not close the store %s: it goes back to its last checkpoint", session.path)
            session.give_up_rows()
    wait_for_all()
    trainers = {thread for session in sessions for thread in session.trainers}
    give_up = time.monotonic() + _TRAINERS_END_WITHIN
    for thread in threading.enumerate():
        if thread.daemon and thread.ident in trainers and thread is not threading.current_thread():
            with suppress(AssertionError, RuntimeError):  # not started by `threading`, which cannot wait for it
                thread.join(max(0.0, give_up - time.monotonic()))
