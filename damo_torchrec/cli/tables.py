"""``damo-torchrec drop-table``, ``rename-table`` and ``compact``: whole tables."""

import argparse
from pathlib import Path

from damo_torchrec.cli.changing import add_deletion_options, add_store, agreed, opened_to_change, opened_to_try
from damo_torchrec.cli.command import Command
from damo_torchrec.cli.ending import SOUND, WRONG_USAGE, after
from damo_torchrec.cli.output import print_json, shown_bytes
from damo_torchrec.cli.reading import table_of


def _add_drop_arguments(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    parser.add_argument("table", metavar="TABLE", help="the table's name")
    add_deletion_options(parser)


def _drop(options: argparse.Namespace) -> int:
    with (opened_to_try if options.dry_run else opened_to_change)(options) as store:
        rows = store.session.engine.rows(table_of(store, options.table).index)
        if not options.dry_run:
            if not agreed(options, f"Drop table {options.table!r} of {options.store}, with its {rows} rows?"):
                return WRONG_USAGE
            store.drop_table(options.table)
    with after("nothing was done" if options.dry_run else f"table {options.table!r} is dropped"):
        if options.json:
            fields = {"store": options.store, "table": options.table, "dry_run": options.dry_run}
            print_json(options, {**fields, "rows": rows})
        else:
            would = "would be" if options.dry_run else "was"
            print(f"table {options.table!r}, with {rows} rows, {would} dropped")
    return SOUND


def _add_rename_arguments(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    parser.add_argument("table", metavar="TABLE", help="the table's name")
    parser.add_argument("name", metavar="NAME", help="another, that no table has")
    parser.add_argument("--dry-run", action="store_true", help="say what there is to do, and do nothing")


def _rename(options: argparse.Namespace) -> int:
    with (opened_to_try if options.dry_run else opened_to_change)(options) as store:
        table_of(store, options.table)
        if options.name in store.session.catalog.names():
            raise ValueError(f"the store {options.store} has a table {options.name!r} already")
        if not options.dry_run:
            store.rename_table(options.table, options.name)
    with after("nothing was done" if options.dry_run else f"table {options.table!r} is renamed"):
        if options.json:
            fields = {"store": options.store, "table": options.table, "dry_run": options.dry_run}
            print_json(options, {**fields, "name": options.name})
        else:
            would = "would be" if options.dry_run else "was"
            print(f"table {options.table!r} {would} renamed {options.name!r}")
    return SOUND


def _add_compact_arguments(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what rows take, and do nothing")


def _compact(options: argparse.Namespace) -> int:
    checkpoint: Path | None = None
    with (opened_to_try if options.dry_run else opened_to_change)(options) as store:
        session = store.session
        before = after_it = session.engine.row_store_stats().disk_bytes
        if not options.dry_run:
            for name in session.catalog.names():
                session.engine.reclaim_table(session.catalog.entry(name, session.engine).number)
            after_it = session.engine.row_store_stats().disk_bytes
            checkpoint = session.checkpoint()
    with after("nothing was done" if options.dry_run else f"the checkpoint {checkpoint} is made"):
        if options.json:
            fields = {"store": options.store, "dry_run": options.dry_run, "checkpoint": checkpoint}
            print_json(options, {**fields, "bytes_before": before, "bytes_after": after_it})
        elif options.dry_run:
            print(f"rows of {options.store} take {shown_bytes(before)}, and would be written anew")
        else:
            print(
                f"rows of {options.store} took {shown_bytes(before)}, and take {shown_bytes(after_it)} in {checkpoint}"
            )
            print("earlier checkpoints keep what they hold until they go: damo-torchrec prune")
    return SOUND


DROP = Command(
    name="drop-table",
    help="remove a table with all of its rows",
    description="Removes a table and makes a checkpoint without it; earlier checkpoints keep it.",
    add_arguments=_add_drop_arguments,
    run=_drop,
)
RENAME = Command(
    name="rename-table",
    help="give a table another name",
    description="Gives a table another name, and makes a checkpoint. Deltas begin anew.",
    add_arguments=_add_rename_arguments,
    run=_rename,
)
COMPACT = Command(
    name="compact",
    help="write all rows anew, without what was deleted",
    description="Writes the files of all rows anew, without rows and records that are deleted or dead, and makes a "
    "checkpoint of them. No row changes.",
    add_arguments=_add_compact_arguments,
    run=_compact,
)
