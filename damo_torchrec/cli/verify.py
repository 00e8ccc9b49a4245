"""``damo-torchrec verify``: all damage, and how much is sound."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from damo_torchrec.checkpoints.file_entry import Finding
from damo_torchrec.checkpoints.listing import is_checkpoint
from damo_torchrec.cli.command import Command, absolute_path
from damo_torchrec.cli.ending import DAMAGED, SOUND
from damo_torchrec.progress import ProgressBar
from damo_torchrec.rescue.deltas import delta_findings, deltas_in
from damo_torchrec.rescue.verification import Verified, verify


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=absolute_path,
        metavar="PATH",
        help="a store, with all its checkpoints, a checkpoint, a delta, a directory of deltas, or an exported model",
    )


def _run(options: argparse.Namespace) -> int:
    path: Path = options.path
    if not is_checkpoint(path):
        if deltas := deltas_in(path):
            return _verify_deltas(deltas)
        graph = path if path.suffix == ".onnx" else path / "model.onnx"
        if graph.is_file():
            return _verify_export(graph)
    return _verify_checkpoints(path)


def _verify_checkpoints(path: Path) -> int:
    status = SOUND
    checkpoints: list[Verified] = []
    with ProgressBar() as bar:
        for finding in verify(path, bar, checkpoints.append):
            bar.clear()
            print(finding)
            status = DAMAGED
    for checkpoint in checkpoints:
        print(checkpoint)
    sound = sum(checkpoint.findings == 0 for checkpoint in checkpoints)
    print(f"{sound} of {len(checkpoints)} checkpoints are sound")
    return status


def _verify_deltas(deltas: list[Path]) -> int:
    damaged = sum(_print(delta_findings(delta)) > 0 for delta in deltas)
    print(f"{len(deltas) - damaged} of {len(deltas)} deltas are sound")
    return DAMAGED if damaged else SOUND


def _verify_export(path: Path) -> int:
    try:
        from damo_torchrec.onnx.verification import export_findings  # needs packages that the tool does not
    except ImportError as error:
        raise ValueError(f"{path} is an exported model: {error}") from error
    damage = _print(export_findings(path))
    print(f"{path}: {'damaged' if damage else 'sound'}")
    return DAMAGED if damage else SOUND


def _print(findings: Iterable[Finding]) -> int:
    count = 0
    for finding in findings:
        print(finding)
        count += 1
    return count


COMMAND = Command(
    name="verify",
    help="find all damage",
    description="Reads everything and prints what is damaged, a line each, and for each checkpoint how much of it is "
    "sound; likewise of deltas and exported models. Writes nothing; the store may be open.",
    add_arguments=_add_arguments,
    run=_run,
)
