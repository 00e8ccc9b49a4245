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
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    description: str | None = None


def absolute_path(text: str) -> Path:
    """The type of an argument that is a path."""
    return Path(text).absolute()
