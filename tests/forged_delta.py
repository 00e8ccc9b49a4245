"""Deltas that somebody changed who knows the format: with checksums that match."""

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
    file = delta / "delta.json"
    document = json.loads(file.read_text())
    body = document["delta"]
    for name in body["files"]:
        if (delta / name).is_file():
            content = (delta / name).read_bytes()
            body["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(body)
    document["sha256"] = digest_of(body)
    file.write_text(json.dumps(document))


def forged_copy(delta: Path, copy: Path, change: Callable[[Path], object]) -> Path:
    """A copy of a delta whose files were changed."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(delta, copy)
    change(copy)
    forge(copy)
    return copy
