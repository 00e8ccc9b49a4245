"""``damo-torchrec info``: what a store or a checkpoint holds."""

import argparse
from pathlib import Path

from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.layout import MODEL_FILE
from damo_torchrec.checkpoints.listing import checkpoints_of
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.cli.command import Command, absolute_path
from damo_torchrec.cli.ending import DAMAGED, SOUND
from damo_torchrec.errors import DamoError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=absolute_path, metavar="PATH", help="a store or a checkpoint")


def _run(options: argparse.Namespace) -> int:
    checkpoints = checkpoints_of(options.path)
    if checkpoints == [options.path]:
        _print_checkpoint(options.path, Manifest.read(options.path))
        return SOUND
    manifests, unreadable = {}, []
    for checkpoint in checkpoints:
        try:
            manifests[checkpoint] = Manifest.read(checkpoint)
        except DamoError as error:
            print(error)
            unreadable.append(checkpoint)
    listed, _ = CheckpointLine.of_store(options.path).read()
    print(f"store {options.path}")
    print(f"checkpoints, oldest first: {', '.join(checkpoint.path.name for checkpoint in listed) or 'none'}")
    if others := sorted(path.name for path in manifests.keys() - {checkpoint.path for checkpoint in listed}):
        print(f"of another line of states, or damaged: {', '.join(others)}")
    if listed:
        _print_checkpoint(listed[-1].path, listed[-1].manifest)
    return DAMAGED if unreadable else SOUND


def _print_checkpoint(checkpoint: Path, manifest: Manifest) -> None:
    print(f"checkpoint {checkpoint}")
    size = sum(file.size for file in manifest.files.values())
    dense = "with" if MODEL_FILE in manifest.files else "without"
    print(f"step {manifest.step}, seed {manifest.seed}, {size} bytes, {dense} a dense part")
    lines: list[tuple[str, ...]] = [("table", "rows", "dim", "weights", "optimizer", "updates")]
    for table_name, table in manifest.tables.items():
        schema = table.schema
        optimizer = str(schema.optimizer["name"])
        lines.append(
            (_printable(table_name), str(table.rows), str(schema.dim), schema.row_dtype, optimizer, str(table.iter))
        )
    _print_columns(lines)
    for table_name, table in manifest.tables.items():
        if table.life is not None:
            print(f"rows of {_printable(table_name)} live by: {table.life}")


def _printable(name: str) -> str:
    """A table's name as a terminal may have it, which obeys some characters."""
    return name if name.isprintable() else repr(name)


def _print_columns(lines: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


COMMAND = Command(
    name="info",
    help="what a store or a checkpoint holds",
    add_arguments=_add_arguments,
    run=_run,
)
