"""The command-line tool: its commands, and what their errors become."""

import argparse
import errno
import importlib.metadata
from collections.abc import Sequence

from damo_torchrec.cli.ending import (
    DAMAGED,
    PIPE_CLOSED,
    WRONG_USAGE,
    UnwrittenOutputError,
    checked_output,
    end_by_interrupt,
    ended_imports,
    say,
)

with ended_imports():
    from damo_torchrec.cli import (
        advise,
        bench,
        convert,
        deleting,
        diff,
        doctor,
        expired,
        forget,
        info,
        repair,
        report,
        rows,
        serve,
        stats,
        tables,
        transfer,
        verify,
    )
    from damo_torchrec.cli.completion import PrintCompletion
    from damo_torchrec.cli.output import add_common_options
    from damo_torchrec.errors import DamoError, OutOfSpaceError

COMMANDS = (
    info.COMMAND,
    rows.HEAD,
    rows.GET,
    stats.COMMAND,
    rows.TOP,
    diff.COMMAND,
    transfer.EXPORT,
    transfer.IMPORT,
    verify.COMMAND,
    repair.COMMAND,
    expired.COMMAND,
    deleting.PRUNE,
    deleting.DELETE,
    tables.DROP,
    tables.RENAME,
    tables.COMPACT,
    forget.COMMAND,
    convert.COMMAND,
    serve.COMMAND,
    doctor.COMMAND,
    bench.COMMAND,
    advise.COMMAND,
    report.COMMAND,
)

# What the system says of a disk or a user rather than of the bytes.
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool with the arguments of the command line, or these. Returns its exit status."""
    try:
        with checked_output():
            return _run(arguments)
    except UnwrittenOutputError as error:
        if isinstance(error.cause, BrokenPipeError):  # who reads it has enough
            return PIPE_CLOSED
        say(str(error))
        return WRONG_USAGE
    except KeyboardInterrupt:
        end_by_interrupt()
        raise


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (ValueError, ImportError) as error:  # ImportError: of what some commands need beside this package
        say(str(error))
        return WRONG_USAGE
    except (DamoError, OSError) as error:
        say(str(error))
        return DAMAGED if _is_damage(error) else WRONG_USAGE
    return status


def _is_damage(error: DamoError | OSError) -> bool:
    if isinstance(error, OSError):  # of a file that the user named
        return error.errno == errno.EIO
    cause = error.__cause__
    return not isinstance(error, OutOfSpaceError) and not (isinstance(cause, OSError) and cause.errno in _REFUSALS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="damo-torchrec",
        description="Looks after stores of embedding tables and their checkpoints.",
        epilog="Exit status: 0 sound, 1 damage found, something lost, or not all forgotten, 2 wrong usage, a package "
        "is missing, or the system refuses to read or write.",
    )
    version = f"%(prog)s {importlib.metadata.version('damo-torchrec')}"
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("--print-completion", action=PrintCompletion)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command_parser = commands.add_parser(command.name, help=command.help, description=command.description)
        add_common_options(command_parser)
        command.add_arguments(command_parser)
        command_parser.set_defaults(run=command.run)
    return parser
