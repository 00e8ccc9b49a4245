"""``damo-torchrec head``, ``get`` and ``top``: some rows of a table."""

import argparse
from collections.abc import Iterable, Sequence

import numpy as np

from damo_torchrec.cli.command import Command, add_ids, ids_of, positive
from damo_torchrec.cli.ending import SOUND
from damo_torchrec.cli.output import finite, print_columns, print_json, shown_progress
from damo_torchrec.cli.reading import add_reading_options, opened_to_read, table_of
from damo_torchrec.inspection.summary import norms_of, top_rows
from damo_torchrec.optim.state_parts import StatePart
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.store.rows import Rows, rows_of, scan_rows

_SHOWN_WEIGHTS = 6


def _add_head_arguments(parser: argparse.ArgumentParser) -> None:
    add_reading_options(parser, table=True)
    parser.add_argument("-n", type=positive, default=10, metavar="ROWS", help="how many; by default 10")


def _head(options: argparse.Namespace) -> int:
    with opened_to_read(options, options.store, options.checkpoint) as store:
        table = table_of(store, options.table)
        rows = next(scan_rows(store.session, table, options.n), None)
        _print(options, table, [] if rows is None else [rows])
    return SOUND


def _add_get_arguments(parser: argparse.ArgumentParser) -> None:
    add_reading_options(parser, table=True)
    add_ids(parser, "whose rows")


def _get(options: argparse.Namespace) -> int:
    ids = ids_of(options)
    if not ids:
        raise ValueError("nothing to get: give ids, or --ids-file")
    with opened_to_read(options, options.store, options.checkpoint) as store:
        table = table_of(store, options.table)
        rows, exists = rows_of(store.session, table, np.array(ids, np.int64))
        _print(options, table, [rows[exists]], absent=rows.ids[~exists].tolist())
    return SOUND


def _add_top_arguments(parser: argparse.ArgumentParser) -> None:
    add_reading_options(parser, table=True)
    parser.add_argument("-n", type=positive, default=10, metavar="ROWS", help="how many; by default 10")
    parser.add_argument(
        "--by", choices=("norm", "updates"), default="norm", help="the L2 norm of weights (the default), or updates"
    )
    parser.add_argument("--least", action="store_true", help="those with the smallest norms, or fewest updates")


def _top(options: argparse.Namespace) -> int:
    with opened_to_read(options, options.store, options.checkpoint) as store, shown_progress(options) as bar:
        table = table_of(store, options.table)
        by_updates = options.by == "updates"
        rows, _ = top_rows(store.session, table, options.n, by_updates=by_updates, least=options.least, progress=bar)
        bar.clear()
        _print(options, table, [rows] if len(rows) else [])
    return SOUND


def _print(options: argparse.Namespace, table: OpenTable, some: Sequence[Rows], absent: Sequence[int] = ()) -> None:
    if options.json:
        fields = {"store": options.store, "table": table.name, "dim": table.definition.dim, "absent": absent}
        print_json(options, fields, rows=(row for rows in some for row in _described(table.layout.state, rows)))
        return
    lines = [("id", "updates", "last step", "norm", "weights")]
    for rows in some:
        norms = norms_of(rows)
        for i in range(len(rows)):
            counters = (str(rows.counts[i]), str(rows.last_steps[i]))
            lines.append((str(rows.ids[i]), *counters, f"{norms[i]:.4g}", _shown(rows.weights[i])))
    print_columns(lines)
    for number in absent:
        print(f"{number} has no row")


def _described(parts: Sequence[StatePart], rows: Rows) -> Iterable[dict[str, object]]:
    """Rows as a document has them."""
    dim = rows.weights.shape[1]
    for i in range(len(rows)):
        state, column = {}, 0
        for part in parts:
            numbers = _numbers(rows.state[i, column : column + part.width(dim)])
            column += part.width(dim)
            state[part.name] = numbers[0] if part.rowwise else numbers
        yield {
            "id": rows.ids[i],
            "updates": rows.counts[i],
            "last_step": rows.last_steps[i],
            "weights": _numbers(rows.weights[i]),
            "state": state,
        }


def _numbers(floats: np.ndarray) -> list[float | None]:
    return [finite(number) for number in floats.tolist()]


def _shown(weights: np.ndarray) -> str:
    shown = " ".join(f"{weight:.4g}" for weight in weights[:_SHOWN_WEIGHTS].tolist())
    return shown if len(weights) <= _SHOWN_WEIGHTS else f"{shown} ... ({len(weights)})"


HEAD = Command(
    name="head",
    help="the first rows of a table",
    description="Prints the rows of a table with the least ids.",
    add_arguments=_add_head_arguments,
    run=_head,
)
GET = Command(
    name="get",
    help="rows of a table by their ids",
    description="Prints rows by their ids; --json has all weights and the optimizer's state.",
    add_arguments=_add_get_arguments,
    run=_get,
)
TOP = Command(
    name="top",
    help="the rows of a table with the largest norms, or most updates",
    description="Reads all rows of a table and prints those with the largest norms, or most updates.",
    add_arguments=_add_top_arguments,
    run=_top,
)
