"""``damo-torchrec repair``: what can be read of a damaged checkpoint, in a new one."""

import argparse

from damo_torchrec.cli.command import Command, absolute_path
from damo_torchrec.cli.ending import DAMAGED, SOUND, after
from damo_torchrec.cli.output import print_json, shown_progress
from damo_torchrec.rescue.repair import Repair, repair


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=absolute_path, metavar="PATH", help="a checkpoint, or a store: its newest checkpoint"
    )
    parser.add_argument("out", type=absolute_path, metavar="OUT", help="the new checkpoint's directory")
    parser.add_argument(
        "--schema",
        type=absolute_path,
        metavar="CHECKPOINT",
        help="says what the tables are if PATH's manifest is damaged; by default the store's other checkpoints do",
    )


def _run(options: argparse.Namespace) -> int:
    with shown_progress(options) as bar:
        done = repair(options.path, options.out, bar, options.schema)
    with after(f"the checkpoint {done.target} is made"):
        if options.json:
            tables = {name: {"rows": rows, "expected": done.expected.get(name)} for name, rows in done.rows.items()}
            lost = [str(one) for one in [*done.findings, *done.losses]]
            print_json(options, {"source": done.source, "target": done.target, "lost": lost, "tables": tables})
        else:
            _print(done)
    return DAMAGED if done.losses or done.findings else SOUND


def _print(done: Repair) -> None:
    for lost in [*done.findings, *done.losses]:
        print(lost)
    print(f"{done.source} is repaired in {done.target}")
    for name, rows in done.rows.items():
        expected = done.expected.get(name, rows)
        of = f" of {expected}" if name in done.expected else ""
        more = f", and {rows - expected} that may have been dead" if rows > expected else ""
        print(f"table {name!r}: {min(rows, expected)}{of} rows{more}")


COMMAND = Command(
    name="repair",
    help="save what can be read of a damaged checkpoint",
    description="Writes every row that can be read with certainty into a new checkpoint, and prints what is lost.",
    add_arguments=_add_arguments,
    run=_run,
)
