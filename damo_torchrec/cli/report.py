"""``damo-torchrec report``: a store in one page of HTML."""

import argparse

from damo_torchrec.cli.command import Command, absolute_path
from damo_torchrec.cli.ending import SOUND
from damo_torchrec.cli.output import print_json, shown_progress
from damo_torchrec.cli.reading import add_reading_options, opened_to_read, why_ahead
from damo_torchrec.errors import DamoError
from damo_torchrec.files import write_output
from damo_torchrec.report.facts import facts_of
from damo_torchrec.report.page import page


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_reading_options(parser, table=False)
    parser.add_argument(
        "-o",
        "--output",
        type=absolute_path,
        required=True,
        metavar="FILE",
        help="the page; a file that is there is replaced",
    )


def _run(options: argparse.Namespace) -> int:
    with opened_to_read(options, options.store, options.checkpoint) as store, shown_progress(options) as bar:
        facts = facts_of(store, bar, why_ahead(options.store) if options.checkpoint == "latest" else None)
        bar.clear()
    try:
        write_output(options.output, page(facts).encode())
    except DamoError as error:  # of a file that the user named: the store is sound
        raise ValueError(str(error)) from error
    if options.json:
        print_json(options, {"store": options.store, "step": facts.step, "file": options.output})
    else:
        print(f"wrote {options.output}")
    return SOUND


COMMAND = Command(
    name="report",
    help="a page of HTML that tells of a store",
    description="Reads all rows and writes one self-contained page: rows, norms and bytes by table, growth, "
    "checkpoints, rows that came and went, and how large the memory budget should be. It has "
    "no scripts and needs no network.",
    add_arguments=_add_arguments,
    run=_run,
)
