"""What a command of the tool is, and how a path is given."""

import argparse
import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """A command: ``damo-torchrec NAME ARGUMENTS``.

    Args:
        name: as it is typed.
        help: its line in the list of commands.
        add_arguments: tells a parser what it takes.
        run: does it, prints what came of it and returns the exit status. ValueError is wrong usage, DamoError damage,
            OSError of what is no part of a store neither: the system refuses.
        description: what it does, for its own ``--help``.

    All take ``--json`` and ``--quiet`` besides.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    description: str | None = None


def id_number(text: str) -> int:
    """The type of an argument that is an id."""
    try:
        id = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no id: expected an integer") from None
    if not -(2**63) <= id < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is no id: expected an integer from -2^63 to 2^63 - 1")
    return id


def add_ids(parser: argparse.ArgumentParser, what: str) -> None:
    """Ids of rows, as arguments and in a file; `what` says which."""
    parser.add_argument("ids", nargs="*", type=id_number, metavar="ID", help=f"{what}, any int64")
    parser.add_argument(
        "--ids-file", type=absolute_path, metavar="FILE", help="more ids, with blanks or new lines between them"
    )


def ids_of(options: argparse.Namespace) -> list[int]:
    """Those that are given in both ways. Raises OSError or ValueError for a file that is none of ids."""
    ids: list[int] = list(options.ids)
    if options.ids_file is None:
        return ids
    try:
        return ids + [id_number(word) for word in options.ids_file.read_text().split()]
    except (argparse.ArgumentTypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{options.ids_file}: {error}") from None


def positive(text: str) -> int:
    """The type of an argument that is a number of things."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def number(text: str) -> float:
    """What a text says, NaN for none: for types of arguments that say what they expect."""
    with contextlib.suppress(ValueError):
        return float(text)
    return math.nan


def positive_seconds(text: str) -> float:
    """The type of an argument that is a time."""
    if not 0 < (seconds := number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return seconds


def absolute_path(text: str) -> Path:
    """The type of an argument that is a path."""
    return Path(text).absolute()
