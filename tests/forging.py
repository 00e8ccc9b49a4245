"""Checkpoints and deltas as somebody might make them who knows the format: changed, with checksums that fit."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from damo_torchrec.checkpoints.document import digest_of
from damo_torchrec.checkpoints.file_entry import FileEntry

Change = Callable[[dict[str, Any]], object]


def body_of(file: Path) -> Any:
    """What a document says."""
    return json.loads(file.read_text())[file.stem]


def forge_body(file: Path, body: Any) -> None:
    """Gives a document another body, with its checksum."""
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, file.stem: body, "sha256": digest_of(body)}))


# ------------------------------------------------------------------ checkpoints


def forge(checkpoint: Path, change: Change) -> None:
    """Changes a checkpoint's manifest."""
    _change(checkpoint / "manifest.json", change)


def rehash(checkpoint: Path, name: str) -> None:
    """Has the manifest say what a file is now."""
    entry = asdict(FileEntry.of(checkpoint / name))
    forge(checkpoint, lambda manifest: manifest["files"].update({name: entry}))


def forge_file(checkpoint: Path, name: str, content: bytes) -> None:
    """Has a checkpoint hold another file in place of one."""
    (checkpoint / name).write_bytes(content)
    rehash(checkpoint, name)


def forge_dense(checkpoint: Path, change: Change) -> None:
    """Changes what `model.pt` holds, and what the manifest says of it."""
    dense = torch.load(checkpoint / "model.pt", weights_only=True)
    change(dense)
    torch.save(dense, checkpoint / "model.pt")
    rehash(checkpoint, "model.pt")


# ------------------------------------------------------------------ deltas


def forge_delta(delta: Path, change: Change = lambda body: None) -> None:
    """Has ``delta.json`` agree with the files that are there, and then changes it."""

    def agree(body: dict[str, Any]) -> None:
        for name in body["files"]:
            if (delta / name).is_file():
                body["files"][name] = asdict(FileEntry.of(delta / name))
        change(body)

    _change(delta / "delta.json", agree)


def forged_copy(delta: Path, copy: Path, change: Callable[[Path], object]) -> Path:
    """A copy of a delta whose files were changed."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(delta, copy)
    change(copy)
    forge_delta(copy)
    return copy


def _change(file: Path, change: Change) -> None:
    body = body_of(file)
    change(body)
    forge_body(file, body)
