"""``damo-torchrec info``: what a store or a checkpoint holds."""

import argparse
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.layout import MANIFEST_FILE, MODEL_FILE
from damo_torchrec.checkpoints.listing import Listed, checkpoints_of
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.cli.command import Command, absolute_path
from damo_torchrec.cli.ending import DAMAGED, SOUND
from damo_torchrec.cli.output import print_columns, print_json
from damo_torchrec.errors import DamoError
from damo_torchrec.printable import printable


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=absolute_path, metavar="PATH", help="a store or a checkpoint")


def _run(options: argparse.Namespace) -> int:
    checkpoints = checkpoints_of(options.path)
    if checkpoints == [options.path]:
        manifest = Manifest.read(options.path)
        if options.json:
            print_json(
                options, {"path": options.path, "kind": "checkpoint", "checkpoint": _described(options.path, manifest)}
            )
        else:
            _print_checkpoint(options.path, manifest)
        return SOUND
    manifests, unreadable = {}, {}
    for checkpoint in checkpoints:
        try:
            manifests[checkpoint] = Manifest.read(checkpoint)
        except DamoError as error:
            unreadable[checkpoint] = str(error)
    listed, _ = CheckpointLine.of_store(options.path).read()
    others = sorted(path.name for path in manifests.keys() - {checkpoint.path for checkpoint in listed})
    if options.json:
        document = {
            "path": options.path,
            "kind": "store",
            "checkpoints": [_described(checkpoint.path, checkpoint.manifest) for checkpoint in listed],
            "others": others,
            "unreadable": [{"path": path, "error": error} for path, error in unreadable.items()],
        }
        print_json(options, document)
    else:
        _print_store(options.path, listed, others, list(unreadable.values()))
    return DAMAGED if unreadable else SOUND


def _described(checkpoint: Path, manifest: Manifest) -> dict[str, object]:
    """A checkpoint as a document has it."""
    return {
        "path": checkpoint,
        "name": checkpoint.name,
        "made": _made(checkpoint),
        "step": manifest.step,
        "seed": manifest.seed,
        "bytes": _size(manifest),
        "dense_part": MODEL_FILE in manifest.files,
        "tables": {
            name: {
                "rows": table.rows,
                "dim": table.schema.dim,
                "row_dtype": table.schema.row_dtype,
                "optimizer": table.schema.optimizer,
                "updates": table.iter,
                "bytes_of_rows": table.bytes_of_rows(name),
                "life": None if table.life is None else str(table.life),
            }
            for name, table in manifest.tables.items()
        },
    }


def _made(checkpoint: Path) -> str:
    """When its manifest was written, as ISO 8601 has it."""
    seconds = (checkpoint / MANIFEST_FILE).stat().st_mtime
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _size(manifest: Manifest) -> int:
    return sum(file.size for file in manifest.files.values())


def _print_store(store: Path, listed: Sequence[Listed], others: Sequence[str], errors: Sequence[str]) -> None:
    for error in errors:
        print(error)
    print(f"store {store}")
    print(f"checkpoints, oldest first: {', '.join(checkpoint.path.name for checkpoint in listed) or 'none'}")
    if others:
        print(f"of another line of states, or damaged: {', '.join(others)}")
    if listed:
        _print_checkpoint(listed[-1].path, listed[-1].manifest)


def _print_checkpoint(checkpoint: Path, manifest: Manifest) -> None:
    print(f"checkpoint {checkpoint}")
    print(f"made {_made(checkpoint)}")
    dense = "with" if MODEL_FILE in manifest.files else "without"
    print(f"step {manifest.step}, seed {manifest.seed}, {_size(manifest)} bytes, {dense} a dense part")
    lines = [("table", "rows", "dim", "weights", "optimizer", "updates")]
    for table_name, table in manifest.tables.items():
        schema = table.schema
        optimizer = str(schema.optimizer["name"])
        lines.append(
            (printable(table_name), str(table.rows), str(schema.dim), schema.row_dtype, optimizer, str(table.iter))
        )
    print_columns(lines)
    for table_name, table in manifest.tables.items():
        if table.life is not None:
            print(f"rows of {printable(table_name)} live by: {table.life}")


COMMAND = Command(
    name="info",
    help="what a store or a checkpoint holds",
    add_arguments=_add_arguments,
    run=_run,
)
