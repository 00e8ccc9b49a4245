"""``damo-torchrec verify``: all damage, and how much is sound."""

import argparse

from damo_torchrec.cli.command import DAMAGED, SOUND, Command, absolute_path
from damo_torchrec.progress import ProgressBar
from damo_torchrec.rescue.verification import Verified, verify


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=absolute_path, metavar="PATH", help="a store, with all its checkpoints, or a checkpoint"
    )


def _run(options: argparse.Namespace) -> int:
    status = SOUND
    checkpoints: list[Verified] = []
    with ProgressBar() as bar:
        for finding in verify(options.path, bar, checkpoints.append):
            bar.clear()
            print(finding)
            status = DAMAGED
    for checkpoint in checkpoints:
        print(checkpoint)
    sound = sum(checkpoint.findings == 0 for checkpoint in checkpoints)
    print(f"{sound} of {len(checkpoints)} checkpoints are sound")
    return status


COMMAND = Command(
    name="verify",
    help="find all damage",
    description="Reads everything and prints what is damaged, a line each, and for each checkpoint how much of it is "
    "sound. Writes nothing; the store may be open.",
    add_arguments=_add_arguments,
    run=_run,
)
