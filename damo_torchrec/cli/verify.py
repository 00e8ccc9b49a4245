"""``damo-torchrec verify``: all damage."""

import argparse

from damo_torchrec.cli.command import DAMAGED, SOUND, Command, absolute_path
from damo_torchrec.cli.progress_line import ProgressLine
from damo_torchrec.rescue.verification import verify


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=absolute_path, metavar="PATH", help="a store, with all its checkpoints, or a checkpoint"
    )


def _run(options: argparse.Namespace) -> int:
    status = SOUND
    with ProgressLine() as line:
        for finding in verify(options.path, line.show):
            line.clear()
            print(finding)
            status = DAMAGED
    return status


COMMAND = Command(
    name="verify",
    help="find all damage",
    description="Reads everything and prints what is damaged, a line each. Writes nothing; the store may be open.",
    add_arguments=_add_arguments,
    run=_run,
)
