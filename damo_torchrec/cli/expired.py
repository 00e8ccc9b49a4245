"""``damo-torchrec expired``: ids that had a row in an earlier checkpoint of a store, and have none in the newest."""

import argparse

from damo_torchrec.cli.command import Command
from damo_torchrec.cli.ending import SOUND
from damo_torchrec.cli.output import print_json
from damo_torchrec.cli.reading import add_memory_budget, add_store_and_table, opened_to_read, table_of
from damo_torchrec.store.expired import check_had_table, expired


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_store_and_table(parser)
    parser.add_argument(
        "--since", required=True, metavar="CHECKPOINT", help="an earlier checkpoint: its step, name or path"
    )
    add_memory_budget(parser)


def _run(options: argparse.Namespace) -> int:
    with opened_to_read(options, options.store) as store:
        table = table_of(store, options.table)
        source = check_had_table(store.session, options.table, options.since)
        batches = expired(store.session, table, source)
        if options.json:
            ids = (i for batch in batches for i in batch.tolist())
            print_json(options, {"store": options.store, "table": options.table, "since": source}, ids=ids)
        else:
            for batch in batches:
                print("\n".join(map(str, batch.tolist())))
    return SOUND


COMMAND = Command(
    name="expired",
    help="ids whose rows have gone since a checkpoint",
    description="Prints the ids that had a row in an earlier checkpoint of a store and have none in its newest, one "
    "a line, ascending: rows that options of the table or a program removed.",
    add_arguments=_add_arguments,
    run=_run,
)
