"""What a command of the tool is, and how a path is given."""

import argparse
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
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no id: expected an integer") from None
    if not -(2**63) <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is no id: expected an integer from -2^63 to 2^63 - 1")
    return number


def ids_in(file: Path) -> list[int]:
    """The ids in a text file, with blanks or new lines between them. Raises OSError or ValueError."""
    try:
        return [id_number(word) for word in file.read_text().split()]
    except (argparse.ArgumentTypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}") from None


def positive(text: str) -> int:
    """The type of an argument that is a number of things."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def absolute_path(text: str) -> Path:
    """The type of an argument that is a path."""
    return Path(text).absolute()
