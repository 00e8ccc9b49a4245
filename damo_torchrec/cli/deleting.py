"""``damo-torchrec prune`` and ``delete``: checkpoints by their number, and rows by ids or rules."""

import argparse
import math
from collections.abc import Iterator

import numpy as np

from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.origin import STORE
from damo_torchrec.checkpoints.retention import Retention
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.cli.changing import (
    add_deletion_options,
    add_store,
    agreed,
    check_is_store,
    opened_to_change,
    opened_to_try,
)
from damo_torchrec.cli.command import Command, absolute_path, add_ids, ids_of, positive
from damo_torchrec.cli.ending import SOUND, WRONG_USAGE, after
from damo_torchrec.cli.output import print_json, shown_progress
from damo_torchrec.cli.reading import table_of
from damo_torchrec.errors import StoreLockedError
from damo_torchrec.inspection.summary import norms_of
from damo_torchrec.progress import Progress, counting
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.store.rows import Ids, delete_rows, rows_of, scan_rows


def _add_prune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=absolute_path, metavar="STORE", help="a store, which nobody has open")
    parser.add_argument("--keep", type=positive, required=True, metavar="N", help="how many stay: the newest")
    add_deletion_options(parser)


def _prune(options: argparse.Namespace) -> int:
    check_is_store(options.store)
    retention = Retention(options.keep)
    if options.dry_run:
        paths = [one.path for one in retention.outdated_of(CheckpointLine.of_store(options.store), STORE)]
    else:
        try:
            directory = StoreDirectory(options.store)
        except StoreLockedError as error:
            raise ValueError(f"{error}. Where it is open, store.prune() does the same") from None
        try:
            line = CheckpointLine.of_store(options.store)
            n = len(retention.outdated_of(line, STORE))
            if n and not agreed(options, f"Remove {n} checkpoints of {options.store}?"):
                return WRONG_USAGE
            paths = retention.apply(line, STORE)
        finally:
            directory.release()
    with after("nothing was done" if options.dry_run else f"{len(paths)} checkpoints are removed"):
        if options.json:
            print_json(options, {"store": options.store, "dry_run": options.dry_run, "removed": paths})
        else:
            for path in paths:
                print(f"{path}: {'would be ' if options.dry_run else ''}removed")
            print(f"{len(paths)} checkpoints {'would be' if options.dry_run else 'were'} removed")
    return SOUND


def _add_delete_arguments(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    parser.add_argument("table", metavar="TABLE", help="the table's name")
    add_ids(parser, "whose rows go")
    rules = parser.add_argument_group("rules, in place of ids; rows go that all of those given hold for")
    rules.add_argument("--norm-below", type=_norm, metavar="X", help="the L2 norm of their weights is below")
    rules.add_argument("--last-step-below", type=positive, metavar="N", help="updated last before this of the table")
    rules.add_argument("--updates-below", type=positive, metavar="N", help="with fewer updates")
    add_deletion_options(parser)


def _norm(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return number


def _delete(options: argparse.Namespace) -> int:
    ids = ids_of(options)
    by_rule = any(rule is not None for rule in (options.norm_below, options.last_step_below, options.updates_below))
    if by_rule == bool(ids):
        raise ValueError("give ids or rules, not both" if ids else "nothing to delete: give ids, --ids-file or rules")
    opened = opened_to_try if options.dry_run else opened_to_change
    with opened(options) as store, shown_progress(options) as bar:
        table = table_of(store, options.table)
        rows = store.session.engine.rows(table.index)
        given = np.unique(np.array(ids, np.int64))
        n = sum(map(len, _chosen(options, store, table, given, bar)))
        bar.clear()
        if not options.dry_run and n:
            if not agreed(options, f"Delete {n} of {rows} rows of table {options.table!r} of {options.store}?"):
                return WRONG_USAGE
            for some in _chosen(options, store, table, given, bar):
                delete_rows(store.session, table, some)
    with after("nothing was done" if options.dry_run else f"{n} rows are deleted"):
        if options.json:
            fields = {"store": options.store, "table": options.table, "dry_run": options.dry_run}
            print_json(options, {**fields, "rows": rows, "deleted": n})
        else:
            would = "would be" if options.dry_run else "were"
            print(f"{n} of {rows} rows of table {options.table!r} {would} deleted")
    return SOUND


def _chosen(
    options: argparse.Namespace, store: EmbeddingStore, table: OpenTable, ids: Ids, progress: Progress
) -> Iterator[Ids]:
    """The ids of rows that go, some at a time: of those given, or by the rules."""
    if len(ids):
        _, exists = rows_of(store.session, table, ids)
        yield ids[exists]
        return
    advance = counting(progress, f"rows of table {table.name!r}", store.session.engine.rows(table.index))
    for rows in scan_rows(store.session, table):
        goes = np.ones(len(rows), np.bool_)
        if options.norm_below is not None:
            goes &= norms_of(rows) < options.norm_below
        if options.last_step_below is not None:
            goes &= rows.last_steps < options.last_step_below
        if options.updates_below is not None:
            goes &= rows.counts < options.updates_below
        advance(len(rows))
        yield rows.ids[goes]


PRUNE = Command(
    name="prune",
    help="remove older checkpoints of a store",
    description="Removes checkpoints inside a store, but for the newest and the newest with a dense part: of those "
    "that the store made itself. Those of a CheckpointManager or another store, damaged ones and those in use stay.",
    add_arguments=_add_prune_arguments,
    run=_prune,
)
DELETE = Command(
    name="delete",
    help="delete rows of a table, by ids or rules",
    description="Deletes rows and makes a checkpoint without them; earlier checkpoints keep them, and files may for a "
    "while: forget leaves no byte of them.",
    add_arguments=_add_delete_arguments,
    run=_delete,
)
