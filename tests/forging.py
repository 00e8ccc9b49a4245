"""Checkpoints as somebody else might make them: with other contents, and checksums that fit them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from damo_torchrec.checkpoints.document import digest_of
from damo_torchrec.checkpoints.file_entry import file_digest


def body_of(file: Path) -> Any:
    """What a document says."""
    return json.loads(file.read_text())[file.stem]


def forge_body(file: Path, body: Any) -> None:
    """Gives a document another body, with its checksum."""
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, file.stem: body, "sha256": digest_of(body)}))


def forge(checkpoint: Path, change: Callable[[dict], object]) -> None:
    """Changes a checkpoint's manifest."""
    body = body_of(checkpoint / "manifest.json")
    change(body)
    forge_body(checkpoint / "manifest.json", body)


def rehash(checkpoint: Path, name: str) -> None:
    """Has the manifest say what a file is now."""
    file = checkpoint / name
    entry = {"size": file.stat().st_size, "sha256": file_digest(file)}
    forge(checkpoint, lambda manifest: manifest["files"].update({name: entry}))


def forge_dense(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes what `model.pt` holds, and what the manifest says of it."""
    dense = torch.load(checkpoint / "model.pt", weights_only=True)
    change(dense)
    torch.save(dense, checkpoint / "model.pt")
    rehash(checkpoint, "model.pt")
