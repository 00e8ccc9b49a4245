"""How far the work is, on a terminal."""

import sys


class ProgressLine:
    """A line on a terminal that says how far the work is; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = False
        self._enabled = sys.stderr.isatty()

    def show(self, what: str, done: int, total: int) -> None:
        """Shows that `done` of `total` are done, in the place of what was shown before."""
        if self._enabled:
            print(f"\r\x1b[K{what}: {done} of {total}", end="", file=sys.stderr, flush=True)
            self._shown = True

    def clear(self) -> None:
        """Takes the line away, so that others can be printed."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
