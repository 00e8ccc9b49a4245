"""What commands say: data on standard output, as text or as one JSON document, and all else on stderr.

docs/command_line.md has the documents.
"""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from damo_torchrec.cli.ending import say
from damo_torchrec.progress import ProgressBar

# Of all documents. It rises where a program that reads them would misunderstand the next one: not for more fields.
SCHEMA = 1


def add_common_options(parser: argparse.ArgumentParser, *, defaults: bool = True) -> None:
    """Those of every command.

    Args:
        parser: the command's.
        defaults: False of what a command consists of: what was said before it holds, then.
    """
    default: Any = False if defaults else argparse.SUPPRESS
    parser.add_argument("--json", action="store_true", default=default, help="print one JSON document instead of text")
    parser.add_argument(
        "-q", "--quiet", action="store_true", default=default, help="no progress and no notes on stderr, errors alone"
    )


def print_json(options: argparse.Namespace, fields: Mapping[str, object], **last: Iterable[object]) -> None:
    """Prints a command's document.

    Args:
        options: of the command.
        fields: of the document, but those that all have.
        last: at most one more, a list, whose items are printed as they come.
    """
    document = _encode({"schema": SCHEMA, "command": options.command, **fields})
    if not last:
        print(document)
        return
    ((name, items),) = last.items()
    sys.stdout.write(f"{document[:-1]}, {_encode(name)}: [")
    for i, item in enumerate(items):
        sys.stdout.write(f"{',' if i else ''}\n {_encode(item)}")
    sys.stdout.write("]}\n")


def _encode(value: object) -> str:
    return json.dumps(value, default=_plain, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is nothing of JSON's")


def finite(number: float) -> float | None:
    """A number as JSON can have it: None for what is none."""
    return number if math.isfinite(number) else None


def note(options: argparse.Namespace, text: str) -> None:
    """Tells the user what is no data, unless he wants to hear of errors alone."""
    if not options.quiet:
        say(text)


@contextlib.contextmanager
def shown_progress(options: argparse.Namespace) -> Iterator[ProgressBar]:
    """Gives what is told how far a command is: a bar on a terminal, unless it is to be quiet."""
    with ProgressBar(enabled=not options.quiet) as bar:
        yield bar


def print_columns(lines: Sequence[Sequence[str]]) -> None:
    """Prints lines of as many texts each, of which the first are their heads, one below the other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def shown_bytes(size: int) -> str:
    """A size in bytes for people, as ``"1.5 GiB"``."""
    power = min(max(size.bit_length() - 1, 0) // 10, 4)
    return f"{size} bytes" if power == 0 else f"{size / 1024**power:.1f} {' KMGT'[power]}iB"
