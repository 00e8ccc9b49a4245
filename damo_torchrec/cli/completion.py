"""``--print-completion SHELL``: what a shell completes the tool's arguments by."""

import argparse
from collections.abc import Sequence
from typing import Any

_SHELLS = ("bash", "zsh", "tcsh")


class PrintCompletion(argparse.Action):
    """Prints the script for a shell, of the parser that it belongs to, and ends the program. Needs shtab."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(
            option_strings,
            argparse.SUPPRESS,
            choices=_SHELLS,
            default=argparse.SUPPRESS,
            metavar="SHELL",
            help=f"print a script that has {', '.join(_SHELLS[:-1])} or {_SHELLS[-1]} complete arguments; needs shtab",
        )

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """What argparse calls."""
        try:
            import shtab
        except ImportError:
            parser.error(f"{option_string} needs a package that is not installed: pip install shtab")
        print(shtab.complete(parser, shell=str(values)))
        parser.exit()
