"""The dense part of a checkpoint, as bytes: what `save_model` adds to the rows. docs/format.md describes it."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from damo_torchrec.checkpoints.layout import MODEL_FILE
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.errors import CorruptionError


def dump_dense(dense: Mapping[str, Any]) -> bytes:
    """The contents of `MODEL_FILE`. Raises ValueError if `load_dense` could not read them."""
    buffer = io.BytesIO()  # torch hides the system's errors where it writes a file itself
    try:
        torch.save(dense, buffer)
        buffer.seek(0)
        torch.load(buffer, map_location="meta", weights_only=True)
    except Exception as error:
        raise ValueError(
            "extra, or a state dict, holds something that cannot be loaded without pickle: keep to tensors, "
            f"numbers, strings, and lists and dicts of them ({error})"
        ) from error
    return buffer.getvalue()


def load_dense(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Reads `MODEL_FILE` of the checkpoint `path`.

    Raises:
        CorruptionError: it cannot be read, or is of another checkpoint than `manifest`.
    """
    file = path / MODEL_FILE
    try:
        dense: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        checkpoint_id = dense["checkpoint_id"]
    except Exception as error:  # torch has no one exception for a damaged file
        raise CorruptionError(f"{file} is damaged: {error}") from error
    if checkpoint_id != manifest.id:
        raise CorruptionError(f"{file} belongs to another checkpoint than the rows beside it")
    return dense
