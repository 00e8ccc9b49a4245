"""``damo-torchrec export`` and ``import``: a table's rows to and from files of Parquet and Arrow."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from damo_torchrec.cli.changing import add_store, check_is_store, opened_to_change
from damo_torchrec.cli.command import Command, absolute_path, positive
from damo_torchrec.cli.ending import SOUND, after
from damo_torchrec.cli.output import print_json, shown_progress
from damo_torchrec.cli.reading import add_reading_options, opened_to_read, table_of
from damo_torchrec.progress import counting

if TYPE_CHECKING:
    import pyarrow


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    add_reading_options(parser, table=True)
    parser.add_argument("file", type=absolute_path, metavar="FILE", help="a new file, .parquet or .arrow")
    parser.add_argument("--state", action="store_true", help="with the optimizer's state")
    parser.add_argument("--counts", action="store_true", help="with the last step and count of updates of each row")


def _export(options: argparse.Namespace) -> int:
    from damo_torchrec.convert.arrow_files import write_rows  # which needs pyarrow, as others do not

    with opened_to_read(options, options.store, options.checkpoint) as store, shown_progress(options) as bar:
        table = store.table(table_of(store, options.table).name)
        rows = table.to_arrow(state=options.state, counts=options.counts)
        advance = counting(bar, f"rows of table {options.table!r}", len(table))
        count, columns = write_rows(options.file, rows, advance), rows.schema.names
    with after(f"the file {options.file} is written"):
        if options.json:
            fields = {"store": options.store, "table": options.table, "file": options.file}
            print_json(options, {**fields, "rows": count, "columns": columns})
        else:
            print(f"{options.file}: {count} rows of table {options.table!r}, with {', '.join(columns)}")
    return SOUND


def _add_import_arguments(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    parser.add_argument("table", metavar="TABLE", help="a table of it, or a new one")
    parser.add_argument("file", type=absolute_path, metavar="FILE", help="its rows, .parquet or .arrow")
    parser.add_argument("--create", action="store_true", help="make the store if there is none")
    parser.add_argument("--no-state", action="store_true", help="pass columns of optimizer state over")
    parser.add_argument("--no-counts", action="store_true", help="pass last steps and counts of updates over")
    new = parser.add_argument_group("of a new table, where the file does not say or something else is wanted")
    new.add_argument("--optimizer", metavar="RULE", help="the update rule, as ADAM or ROWWISE_ADAGRAD")
    new.add_argument("--row-dtype", choices=("float32", "float16", "bfloat16"), help="what weights are stored as")
    new.add_argument("--dim", type=positive, help="weights in a row, where the type of its column does not say")
    new.add_argument(
        "--num-embeddings",
        type=positive,
        metavar="N",
        help="how many ids are expected: rows to come begin in ±1/√N",
    )


def _import(options: argparse.Namespace) -> int:
    from damo_torchrec.convert.arrow_files import read_rows  # which needs pyarrow, as others do not

    if not options.create:
        check_is_store(options.store)
    taken: dict[str, Any] = {"state": not options.no_state, "counts": not options.no_counts}
    schema = {name: getattr(options, name) for name in ("optimizer", "row_dtype", "dim", "num_embeddings")}
    with (
        read_rows(options.file) as (rows, total),
        opened_to_change(options, create=options.create) as store,
        shown_progress(options) as bar,
    ):
        read = _counted(rows, counting(bar, f"rows of {options.file}", total))
        new = options.table not in store.session.catalog.names()
        if not new and (given := [name.replace("_", "-") for name, value in schema.items() if value is not None]):
            raise ValueError(f"the store {options.store} has a table {options.table!r}: --{given[0]} is of a new one")
        if new:
            count = len(store.table_from_arrow(options.table, read, **schema, **taken))
        else:
            count = store.table(options.table).from_arrow(read, **taken)
    with after(f"the rows are in the store {options.store}"):
        if options.json:
            fields = {"store": options.store, "table": options.table, "file": options.file}
            print_json(options, {**fields, "rows": count, "new": new})
        else:
            print(f"{count} rows of {options.file} are in {'the new ' if new else ''}table {options.table!r}")
    return SOUND


def _counted(rows: pyarrow.RecordBatchReader, advance: Callable[[int], None]) -> pyarrow.RecordBatchReader:
    """The same, whose batches are told of as they are asked for."""

    def batches() -> Iterator[pyarrow.RecordBatch]:
        for batch in rows:
            yield batch
            advance(batch.num_rows)

    return type(rows).from_batches(rows.schema, batches())


EXPORT = Command(
    name="export",
    help="a table's rows to a file of Parquet or Arrow",
    description="Writes all rows of a table to a file of Parquet or Arrow; with --state and --counts, import makes the "
    "same table of it, to the bit. Needs pip install 'damo-torchrec[arrow]'.",
    add_arguments=_add_export_arguments,
    run=_export,
)
IMPORT = Command(
    name="import",
    help="a table's rows from a file of Parquet or Arrow",
    description="Sets rows of a table, or makes a new one, of a file with the columns id and weight. What is wrong "
    "with any row is found before anything changes. Needs pip install 'damo-torchrec[arrow]'.",
    add_arguments=_add_import_arguments,
    run=_import,
)
