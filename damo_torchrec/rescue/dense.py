"""The dense part of a checkpoint, for the program: torch is imported where there is one, and only there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from damo_torchrec import versions
from damo_torchrec.checkpoints.manifest import Manifest


def load_dense(path: Path, manifest: Manifest) -> dict[str, Any]:
    """`checkpoints.dense_part.load_dense`. Raises ImportError with what to install where torch is missing."""
    with versions.explained():
        from damo_torchrec.checkpoints import dense_part
    return dense_part.load_dense(path, manifest)


def dump_dense(dense: Mapping[str, Any]) -> bytes:
    """`checkpoints.dense_part.dump_dense`. Raises ImportError with what to install where torch is missing."""
    with versions.explained():
        from damo_torchrec.checkpoints import dense_part
    return dense_part.dump_dense(dense)
