"""``damo-torchrec verify``: all damage, and how much is sound."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from damo_torchrec.checkpoints.file_entry import Finding
from damo_torchrec.checkpoints.listing import is_checkpoint
from damo_torchrec.cli.command import Command, absolute_path
from damo_torchrec.cli.ending import DAMAGED, SOUND
from damo_torchrec.cli.output import print_json, shown_progress
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
            return _verify_deltas(options, deltas)
        graph = path if path.suffix == ".onnx" else path / "model.onnx"
        if graph.is_file():
            return _verify_export(options, graph)
    return _verify_checkpoints(options)


def _verify_checkpoints(options: argparse.Namespace) -> int:
    checkpoints: list[Verified] = []
    with shown_progress(options) as bar:
        found = _collect(options, verify(options.path, bar, checkpoints.append), bar)
    sound = sum(checkpoint.findings == 0 for checkpoint in checkpoints)
    if options.json:
        _print_document(options, "checkpoints", [asdict(checkpoint) for checkpoint in checkpoints], found)
    else:
        for checkpoint in checkpoints:
            print(checkpoint)
        print(f"{sound} of {len(checkpoints)} checkpoints are sound")
    return DAMAGED if found else SOUND


def _verify_deltas(options: argparse.Namespace, deltas: list[Path]) -> int:
    by_delta = {delta: _collect(options, delta_findings(delta)) for delta in deltas}
    damaged = sum(bool(found) for found in by_delta.values())
    if options.json:
        checked = [{"delta": delta, "findings": len(found)} for delta, found in by_delta.items()]
        _print_document(options, "deltas", checked, [one for found in by_delta.values() for one in found])
    else:
        print(f"{len(deltas) - damaged} of {len(deltas)} deltas are sound")
    return DAMAGED if damaged else SOUND


def _verify_export(options: argparse.Namespace, path: Path) -> int:
    try:
        from damo_torchrec.onnx.verification import export_findings  # needs packages that the tool does not
    except ImportError as error:
        raise ValueError(f"{path} is an exported model: {error}") from error
    found = _collect(options, export_findings(path))
    if options.json:
        _print_document(options, "exports", [{"export": path, "findings": len(found)}], found)
    else:
        print(f"{path}: {'damaged' if found else 'sound'}")
    return DAMAGED if found else SOUND


def _collect(options: argparse.Namespace, findings: Iterable[Finding], bar: ProgressBar | None = None) -> list[Finding]:
    """All findings, each printed as soon as it is known, unless a document is to have them."""
    found = []
    for finding in findings:
        found.append(finding)
        if not options.json:
            if bar is not None:
                bar.clear()
            print(finding)
    return found


def _print_document(
    options: argparse.Namespace, what: str, checked: Sequence[Mapping[str, object]], found: Sequence[Finding]
) -> None:
    document = {"path": options.path, "sound": not found, what: checked, "findings": [asdict(one) for one in found]}
    print_json(options, document)


COMMAND = Command(
    name="verify",
    help="find all damage",
    description="Reads everything and prints what is damaged, a line each, and for each checkpoint how much of it is "
    "sound; likewise of deltas and exported models. Writes nothing; the store may be open.",
    add_arguments=_add_arguments,
    run=_run,
)
