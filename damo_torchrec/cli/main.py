"""The command-line tool: what it takes and what it prints."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from damo_torchrec.checkpoints.layout import MODEL_FILE
from damo_torchrec.checkpoints.listing import checkpoints_of
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.errors import DamoError
from damo_torchrec.rescue.repair import repair
from damo_torchrec.rescue.verification import verify

SOUND, DAMAGED, WRONG_USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool with the arguments of the command line, or these. Returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except ValueError as error:
        print(f"damo-torchrec: {error}", file=sys.stderr)
        return WRONG_USAGE
    except (DamoError, OSError) as error:
        print(f"damo-torchrec: {error}", file=sys.stderr)
        return DAMAGED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="damo-torchrec",
        description="Looks after stores of embedding tables and their checkpoints.",
        epilog="Exit status: 0 sound, 1 damage found or something lost, 2 wrong usage.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("info", help="what a store or a checkpoint holds")
    command.add_argument("path", type=_path, metavar="PATH", help="a store or a checkpoint")
    command.set_defaults(run=_info)

    command = commands.add_parser(
        "verify",
        help="find all damage",
        description="Reads everything and prints what is damaged, a line each. Writes nothing; the store may be open.",
    )
    command.add_argument("path", type=_path, metavar="PATH", help="a store, with all its checkpoints, or a checkpoint")
    command.set_defaults(run=_verify)

    command = commands.add_parser(
        "repair",
        help="save what can be read of a damaged checkpoint",
        description="Writes every row that can be read with certainty into a new checkpoint, and prints what is lost.",
    )
    command.add_argument("path", type=_path, metavar="PATH", help="a checkpoint, or a store: its newest checkpoint")
    command.add_argument("out", type=_path, metavar="OUT", help="the new checkpoint's directory")
    command.add_argument(
        "--schema",
        type=_path,
        metavar="CHECKPOINT",
        help="says what the tables are if PATH's manifest is damaged; by default the store's other checkpoints do",
    )
    command.set_defaults(run=_repair)
    return parser


def _path(text: str) -> Path:
    return Path(text).absolute()


def _info(options: argparse.Namespace) -> int:
    checkpoints = checkpoints_of(options.path)
    if checkpoints == [options.path]:
        _print_checkpoint(options.path, Manifest.read(options.path))
        return SOUND
    status = SOUND
    manifests = {}
    for path in checkpoints:
        try:
            manifests[path] = Manifest.read(path)
        except DamoError as error:
            print(error)
            status = DAMAGED
    by_age = sorted(manifests, key=lambda path: manifests[path].sequence)
    print(f"store {options.path}")
    print(f"checkpoints, oldest first: {', '.join(path.name for path in by_age) or 'none'}")
    if by_age:
        _print_checkpoint(by_age[-1], manifests[by_age[-1]])
    return status


def _print_checkpoint(path: Path, manifest: Manifest) -> None:
    print(f"checkpoint {path}")
    size = sum(file.size for file in manifest.files.values())
    dense = "with" if MODEL_FILE in manifest.files else "without"
    print(f"step {manifest.step}, seed {manifest.seed}, {size} bytes, {dense} a dense part")
    lines = [("table", "rows", "dim", "weights", "optimizer", "updates")]
    for name, table in manifest.tables.items():
        schema = table.schema
        optimizer = str(schema.optimizer["name"])
        lines.append((name, str(table.rows), str(schema.dim), schema.row_dtype, optimizer, str(table.iter)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _verify(options: argparse.Namespace) -> int:
    status = SOUND
    with _ProgressLine() as line:
        for finding in verify(options.path, line.show):
            line.clear()
            print(finding)
            status = DAMAGED
    return status


def _repair(options: argparse.Namespace) -> int:
    with _ProgressLine() as line:
        done = repair(options.path, options.out, line.show, options.schema)
    for lost in [*done.findings, *done.losses]:
        print(lost)
    print(f"{done.source} is repaired in {done.target}")
    for name, rows in done.rows.items():
        of = f" of {done.expected[name]}" if name in done.expected else ""
        print(f"table {name!r}: {rows}{of} rows")
    return DAMAGED if done.losses or done.findings else SOUND


class _ProgressLine:
    """A line on a terminal that says how far the work is; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = False
        self._enabled = sys.stderr.isatty()

    def show(self, what: str, done: int, total: int) -> None:
        if self._enabled:
            print(f"\r\x1b[K{what}: {done} of {total}", end="", file=sys.stderr, flush=True)
            self._shown = True

    def clear(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False

    def __enter__(self) -> "_ProgressLine":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
