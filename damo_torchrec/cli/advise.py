"""``damo-torchrec advise``: how large a store's memory budget should be."""

import argparse
from dataclasses import asdict
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.advice import Advice, budget_text, percent
from damo_torchrec.checkpoints.cache_profile import CacheProfile, no_profile
from damo_torchrec.checkpoints.listing import checkpoints_of
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.cli.command import Command, absolute_path
from damo_torchrec.cli.ending import SOUND
from damo_torchrec.cli.output import note, print_columns, print_json
from damo_torchrec.cli.reading import why_ahead


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "store", type=absolute_path, metavar="STORE", help="a store that was trained with profile_cache=True"
    )


def _run(options: argparse.Namespace) -> int:
    store: Path = options.store
    checkpoints = checkpoints_of(store)
    if checkpoints == [store]:
        raise ValueError(f"{store} is a checkpoint, which has no profile: give the store's directory")
    profile = CacheProfile.read(store)
    if profile is None:
        raise ValueError(no_profile(store))
    if why := why_ahead(store):
        note(options, f"the store {store} {why}: this is its profile as of its newest checkpoint")
    advice = profile.advise()
    payload = _row_bytes(checkpoints[-1]) if checkpoints else None
    rows = [None if payload is None else _core.rows_within(p.memory_budget, payload) for p in advice.points]
    if options.json:
        points = [{**asdict(point), "rows": n} for point, n in zip(advice.points, rows, strict=True)]
        figures = {name: getattr(advice, name) for name in ("memory_budget", "advised", "new_ids", "first_ids")}
        said = {"too_short": advice.too_short, "advice": str(advice), "budgets": points}
        print_json(options, {"store": store, **figures, **said})
    else:
        _print(advice, rows)
    return SOUND


def _row_bytes(checkpoint: Path) -> int | None:
    """What a row has on the average, without its key; None while there are none."""
    tables = Manifest.read(checkpoint).tables
    rows = sum(table.rows for table in tables.values())
    return round(sum(table.bytes_of_rows(name) for name, table in tables.items()) / rows) if rows else None


def _print(advice: Advice, rows: list[int | None]) -> None:
    lines = [("budget", "in memory", "error", "rows read a step", "rows that fit", "")]
    for point, fit in zip(advice.points, rows, strict=True):
        marks = [
            "this store's" if point.memory_budget == advice.memory_budget else "",
            "enough" if point.memory_budget == advice.best.memory_budget else "",
        ]
        lines.append(
            (
                budget_text(point.memory_budget),
                percent(point.hit_rate),
                percent(point.error),
                f"{point.rows_read:,.0f}",
                "-" if fit is None else f"{fit:,}",
                ", ".join(filter(None, marks)),
            )
        )
    print_columns(lines)
    print(advice)


COMMAND = Command(
    name="advise",
    help="how large the memory budget should be",
    description="Tells of memory budgets of some sizes what share of the ids they would have in memory, by what was "
    "found out while the store was trained with StoreOptions(profile_cache=True).",
    add_arguments=_add_arguments,
    run=_run,
)
