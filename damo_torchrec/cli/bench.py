"""``damo-torchrec bench``: a short measured training step on this machine."""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from damo_torchrec import versions
from damo_torchrec.cli.command import Command, absolute_path, positive, positive_seconds
from damo_torchrec.cli.ending import SOUND
from damo_torchrec.cli.output import note, print_columns, print_json, shown_bytes, shown_progress
from damo_torchrec.options import parse_bytes

if TYPE_CHECKING:
    from damo_torchrec.cli.bench_step import Case, Result

_SPARE = 128 << 20  # of a budget that holds all rows: batches, RocksDB's buffers


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    shown = "(default: %(default)s)"
    parser.add_argument(
        "directory",
        nargs="?",
        type=absolute_path,
        metavar="DIRECTORY",
        help="on whose disk a temporary store is made; by default where temporary files are",
    )
    parser.add_argument("--budget", metavar="BYTES", help="measure also with so much memory, as of EmbeddingStore")
    parser.add_argument("--rows", type=positive, default=400_000, metavar="N", help=f"of all 8 tables {shown}")
    parser.add_argument("--dim", type=positive, default=64, metavar="N", help=f"of a row {shown}")
    parser.add_argument("--batch-size", type=positive, default=2048, metavar="N", help=f"samples of a step {shown}")
    parser.add_argument(
        "--seconds",
        type=positive_seconds,
        default=3.0,
        metavar="S",
        help=f"of each measurement, and of its warm-up {shown}",
    )


def _run(options: argparse.Namespace) -> int:
    budget = None if options.budget is None else parse_bytes(options.budget)
    if options.directory is not None and not options.directory.is_dir():
        raise ValueError(f"{options.directory} is no directory")
    with versions.explained():
        import torch

        from damo_torchrec.cli.bench_step import Case, check_budget, fill_and_measure, measure

    case = Case(options.rows, options.dim, options.batch_size, options.seconds)
    enough = case.bytes_of_rows * 5 // 4 + _SPARE
    with tempfile.TemporaryDirectory(prefix="damo-bench-", dir=options.directory) as name:
        store = Path(name) / "store"
        if budget is not None:
            check_budget(Path(name) / "trial", budget)
        note(options, f"{case.rows:,} rows are made; each measurement takes {2 * options.seconds:g} seconds")
        with shown_progress(options) as bar:
            results = [fill_and_measure(store, case, enough, bar)]
        if budget is not None:
            results.append(measure(store, case, budget))
    _print(options, case, torch.get_num_threads(), results)
    return SOUND


def _print(options: argparse.Namespace, case: "Case", threads: int, results: "list[Result]") -> None:
    from damo_torchrec.cli.bench_step import FEATURES

    if options.json:
        fields = {
            "rows": case.rows_each * FEATURES,
            "dim": case.dim,
            "batch_size": case.batch_size,
            "tables": FEATURES,
            "bytes_of_rows": case.bytes_of_rows,
            "threads": threads,
        }
        print_json(options, {**fields, "results": [asdict(result) for result in results]})
        return
    print(
        f"forward and backward, row-wise Adagrad, {FEATURES} tables of {case.rows_each:,} rows of {case.dim}, "
        f"{shown_bytes(case.bytes_of_rows)} in memory;\n"
        f"{case.batch_size:,} samples a step, an id of each table by Zipf's law; {threads} threads"
    )
    lines = [("budget", "samples/s", "ms/step", "p99", "ids a step", "rows read a step", "steps")]
    lines.extend(
        (
            shown_bytes(result.memory_budget),
            f"{result.samples_per_second:,.0f}",
            f"{1000 * result.step_seconds:.2f}",
            f"{1000 * result.step_seconds_p99:.2f}",
            f"{result.ids_in_step:,.0f}",
            f"{result.rows_read_in_step:,.1f}",
            str(result.steps),
        )
        for result in results
    )
    print_columns(lines)


COMMAND = Command(
    name="bench",
    help="how fast this machine trains rows, within some 20 seconds",
    description="Trains an EmbeddingBagCollection alone, without a dense part, over a temporary store whose rows all "
    "fit in memory, and with --budget besides within so much; prints samples a second, milliseconds of a step, and "
    "rows read. It needs torch and TorchRec.",
    add_arguments=_add_arguments,
    run=_run,
)
