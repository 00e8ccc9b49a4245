"""``damo-torchrec diff``: how the rows of two checkpoints differ, by table."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from damo_torchrec.cli.command import Command, absolute_path
from damo_torchrec.cli.ending import SOUND
from damo_torchrec.cli.output import finite, print_columns, print_json, shown_progress
from damo_torchrec.cli.reading import add_memory_budget, opened_to_read, table_of
from damo_torchrec.inspection.comparison import Differences, compare
from damo_torchrec.printable import printable
from damo_torchrec.progress import Progress, ProgressBar, counting
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.store.rows import Rows, scan_rows
from damo_torchrec.store.schemas import SHAPING


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, what in (("first", "before"), ("second", "after")):
        parser.add_argument(
            name, type=absolute_path, metavar=what.upper(), help=f"{what}: a store's newest checkpoint, or a checkpoint"
        )
    parser.add_argument("--table", metavar="TABLE", help="of this table alone")
    parser.add_argument("--ids", action="store_true", help="also print the ids, a line each: added, gone or changed")
    add_memory_budget(parser)


@dataclass
class _Found:
    """Of one table: counts, and what of its rows could be compared."""

    gone: int = 0
    added: int = 0
    changed: int | None = None
    largest_change: float = 0.0
    schema: Sequence[str] = ()
    ids: dict[str, list[int]] = field(default_factory=lambda: {"added": [], "gone": [], "changed": []})


def _run(options: argparse.Namespace) -> int:
    with (
        opened_to_read(options, options.first) as first,
        opened_to_read(options, options.second) as second,
        shown_progress(options) as bar,
    ):
        stores = (first, second)
        names = sorted({name for store in stores for name in store.session.catalog.names()})
        if options.table is not None:
            if options.table not in names:
                raise ValueError(f"neither has a table {options.table!r}; their tables are {names}")
            names = [options.table]
        found = {}
        for name in names:
            tell = _Ids(options, name, bar)
            found[name] = _compare(stores, name, bar, tell)
        bar.clear()
        _print(options, found)
    return SOUND


class _Ids:
    """Takes the ids of rows that differ, if they are asked for: prints them, or keeps them for a document."""

    def __init__(self, options: argparse.Namespace, table: str, bar: ProgressBar) -> None:
        self._options = options
        self._table = printable(table)
        self._bar = bar

    def __call__(self, found: "_Found", some: Differences) -> None:
        """Takes some more of a table."""
        if not self._options.ids:
            return
        self._bar.clear()
        for what in ("added", "gone", "changed"):
            ids = getattr(some, what).tolist()
            if self._options.json:
                found.ids[what] += ids
            else:
                for i in ids:
                    print(f"{self._table} {i} {what}")


def _compare(stores: Sequence[EmbeddingStore], name: str, progress: Progress, tell: _Ids) -> _Found:
    """One table's. Where one of the two stores has none of this name, as if it had one without rows."""
    entries = [
        store.session.catalog.entry(name, store.session.engine) if name in store.session.catalog.names() else None
        for store in stores
    ]
    schemas = [entry.schema for entry in entries if entry is not None]
    other = [what for what in SHAPING if getattr(schemas[0], what) != getattr(schemas[-1], what)]
    found = _Found(
        schema=[f"{what} was {getattr(schemas[0], what)}, is {getattr(schemas[-1], what)}" for what in other]
    )
    weights = not {"dim", "row_dtype"} & {*other}
    found.changed = 0 if weights else None
    advance = counting(progress, f"rows of table {name!r}", sum(entry.rows for entry in entries if entry is not None))
    scans = [
        iter(()) if entry is None else _counted(scan_rows(store.session, table_of(store, name)), advance)
        for store, entry in zip(stores, entries, strict=True)
    ]
    for some in compare(*scans, weights=weights, all_else=not other):
        found.gone += len(some.gone)
        found.added += len(some.added)
        if found.changed is not None:
            found.changed += len(some.changed)
        found.largest_change = max(found.largest_change, some.largest_change)
        tell(found, some)
    return found


def _counted(scan: Iterator[Rows], advance: Callable[[int], None]) -> Iterator[Rows]:
    for rows in scan:
        advance(len(rows))
        yield rows


def _print(options: argparse.Namespace, found: Mapping[str, _Found]) -> None:
    if options.json:
        tables = {
            name: {
                "added": one.added,
                "gone": one.gone,
                "changed": one.changed,
                "largest_change": finite(one.largest_change),
                "schema": one.schema,
                **({"ids": one.ids} if options.ids else {}),
            }
            for name, one in found.items()
        }
        print_json(options, {"before": options.first, "after": options.second, "tables": tables})
        return
    lines = [("table", "added", "gone", "changed", "largest change")]
    for name, one in found.items():
        changed = "-" if one.changed is None else str(one.changed)
        lines.append((printable(name), str(one.added), str(one.gone), changed, f"{one.largest_change:.4g}"))
    print_columns(lines)
    for name, one in found.items():
        for difference in one.schema:
            print(f"table {printable(name)}: {difference}")


COMMAND = Command(
    name="diff",
    help="how the rows of two checkpoints differ, by table",
    description="Reads two checkpoints side by side, in the order of ids: rows that came, went, and are not the same "
    "bits: weights, optimizer state, count of updates or last step.",
    add_arguments=_add_arguments,
    run=_run,
)
