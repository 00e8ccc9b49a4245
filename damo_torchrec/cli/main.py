"""The command-line tool: its commands, and what their errors become."""

import argparse
import sys
from collections.abc import Sequence

from damo_torchrec.cli import convert, info, repair, verify
from damo_torchrec.cli.command import DAMAGED, WRONG_USAGE
from damo_torchrec.errors import DamoError

_COMMANDS = (info.COMMAND, verify.COMMAND, repair.COMMAND, convert.COMMAND)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool with the arguments of the command line, or these. Returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (ValueError, ImportError) as error:  # ImportError: of what some commands need beside this package
        print(f"damo-torchrec: {error}", file=sys.stderr)
        return WRONG_USAGE
    except (DamoError, OSError) as error:
        print(f"damo-torchrec: {error}", file=sys.stderr)
        return DAMAGED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="damo-torchrec",
        description="Looks after stores of embedding tables and their checkpoints.",
        epilog="Exit status: 0 sound, 1 damage found or something lost, 2 wrong usage, or a package is missing.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command_parser = commands.add_parser(command.name, help=command.help, description=command.description)
        command.add_arguments(command_parser)
        command_parser.set_defaults(run=command.run)
    return parser
