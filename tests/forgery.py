"""Deltas and checkpoints that somebody changed who knows the format: with checksums that match."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from damo_torchrec.checkpoints.document import digest_of

Change = Callable[[dict[str, Any]], object]


def forge(delta: Path, change: Change = lambda body: None) -> None:
    """Has ``delta.json`` agree with the files that are there, and then changes it."""

    def agree(body: dict[str, Any]) -> None:
        for name in body["files"]:
            if (delta / name).is_file():
                body["files"][name] = _entry(delta / name)
        change(body)

    _rewrite(delta / "delta.json", "delta", agree)


def forge_file(checkpoint: Path, name: str, content: bytes) -> None:
    """Has a checkpoint hold another file in place of one."""
    (checkpoint / name).write_bytes(content)
    _rewrite(
        checkpoint / "manifest.json", "manifest", lambda body: body["files"].update({name: _entry(checkpoint / name)})
    )


def _entry(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _rewrite(file: Path, name: str, change: Change) -> None:
    document = json.loads(file.read_text())
    change(document[name])
    document["sha256"] = digest_of(document[name])
    file.write_text(json.dumps(document))


def forged_copy(delta: Path, copy: Path, change: Callable[[Path], object]) -> Path:
    """A copy of a delta whose files were changed."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(delta, copy)
    change(copy)
    forge(copy)
    return copy
