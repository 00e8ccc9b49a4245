"""``damo-torchrec expired``: ids that had a row in an earlier checkpoint of a store, and have none in the newest."""

import argparse

from damo_torchrec import versions
from damo_torchrec.cli.command import Command, absolute_path
from damo_torchrec.cli.ending import SOUND


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=absolute_path, metavar="STORE", help="a store, which may be open elsewhere")
    parser.add_argument("table", metavar="TABLE", help="the table's name")
    parser.add_argument(
        "--since", required=True, metavar="CHECKPOINT", help="an earlier checkpoint: its step, name or path"
    )
    parser.add_argument(
        "--memory-budget", default="64MiB", metavar="BYTES", help="as of EmbeddingStore; by default the least, 64MiB"
    )


def _run(options: argparse.Namespace) -> int:
    # It needs torch, which other commands do not.
    with versions.explained():
        from damo_torchrec.store.embedding_store import EmbeddingStore

    with EmbeddingStore(options.store, memory_budget=options.memory_budget, read_only=True) as store:
        if options.table not in (tables := store.tables()):
            raise ValueError(f"the store {options.store} has no table {options.table!r}; its tables are {[*tables]}")
        for ids in tables[options.table].expired(since=options.since):
            print("\n".join(map(str, ids.tolist())))
    return SOUND


COMMAND = Command(
    name="expired",
    help="ids whose rows have gone since a checkpoint",
    description="Prints the ids that had a row in an earlier checkpoint of a store and have none in its newest, one "
    "a line, ascending: rows that options of the table or a program removed.",
    add_arguments=_add_arguments,
    run=_run,
)
