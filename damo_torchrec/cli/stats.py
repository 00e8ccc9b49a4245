"""``damo-torchrec stats``: figures of all rows, by table."""

import argparse
import sys
import time
from pathlib import Path

from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.cli.command import Command, positive
from damo_torchrec.cli.ending import SOUND
from damo_torchrec.cli.output import note, print_columns, print_json, shown_bytes, shown_progress
from damo_torchrec.cli.reading import add_reading_options, opened_to_read, table_of
from damo_torchrec.inspection.summary import Spread, TableSummary, summarize
from damo_torchrec.printable import printable
from damo_torchrec.store.embedding_store import EmbeddingStore


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_reading_options(parser, table=False)
    parser.add_argument("--table", metavar="TABLE", help="of this table alone")
    parser.add_argument(
        "--watch",
        type=positive,
        metavar="SECONDS",
        help="look so often for a newer checkpoint, and print its figures, until Ctrl-C",
    )


def _run(options: argparse.Namespace) -> int:
    if options.watch is None:
        return _show(options)
    if options.checkpoint != "latest":
        raise ValueError("either --watch, which is for the newest checkpoint, or --checkpoint, got both")
    if not StoreDirectory.is_store(options.store):
        raise ValueError(f"{options.store} is no store, which --watch needs")
    shown: Path | None = None
    note(
        options, f"watching for checkpoints of {options.store}: what a training changes is in the next one; Ctrl-C ends"
    )
    while True:
        newest = CheckpointLine.of_store(options.store).newest()
        if newest != shown:
            _show(options)
            sys.stdout.flush()
            shown = newest
        time.sleep(options.watch)


def _show(options: argparse.Namespace) -> int:
    with opened_to_read(options, options.store, options.checkpoint) as store, shown_progress(options) as bar:
        names = store.session.catalog.names() if options.table is None else [options.table]
        found = {name: summarize(store.session, table_of(store, name), bar) for name in names}
        bar.clear()
        if options.json:
            tables = {name: _described(store, name, summary) for name, summary in found.items()}
            print_json(options, {"store": options.store, "step": store.step, "tables": tables})
        else:
            _print(store, found)
    return SOUND


def _bytes(store: EmbeddingStore, name: str) -> int:
    """What the rows of a table take on disk without their keys: none is compressed."""
    return store.session.catalog.entry(name, store.session.engine).bytes_of_rows(name)


def _described(store: EmbeddingStore, name: str, summary: TableSummary) -> dict[str, object]:
    entry = store.session.catalog.entry(name, store.session.engine)
    return {
        "rows": summary.rows,
        "dim": entry.schema.dim,
        "row_dtype": entry.schema.row_dtype,
        "optimizer": entry.schema.optimizer,
        "updates": entry.iter,
        "bytes_of_rows": _bytes(store, name),
        "zero_rows": summary.zero_rows,
        "nonfinite_rows": summary.nonfinite_rows,
        "norm": _spread(summary.norms),
        "row_updates": _spread(summary.updates),
        "last_step": _spread(summary.last_steps),
    }


def _spread(spread: Spread) -> dict[str, float | None]:
    return {"min": spread.least, "mean": spread.mean, "max": spread.largest}


def _print(store: EmbeddingStore, found: dict[str, TableSummary]) -> None:
    print(f"store {store.path}, step {store.step}")
    heads = ("table", "rows", "bytes", "norm min", "mean", "max", "zero", "not finite", "updates min", "mean", "max")
    lines = [heads]
    for name, summary in found.items():
        lines.append(
            (
                printable(name),
                str(summary.rows),
                shown_bytes(_bytes(store, name)),
                *_texts(summary.norms),
                str(summary.zero_rows),
                str(summary.nonfinite_rows),
                *_texts(summary.updates),
            )
        )
    print_columns(lines)


def _texts(spread: Spread) -> tuple[str, str, str]:
    least, mean, largest = ("-" if x is None else f"{x:.4g}" for x in (spread.least, spread.mean, spread.largest))
    return least, mean, largest


COMMAND = Command(
    name="stats",
    help="figures of all rows, by table",
    description="Reads all rows: how many, their norms, those of zeros and those that are not finite, and how often "
    "they were updated.",
    add_arguments=_add_arguments,
    run=_run,
)
