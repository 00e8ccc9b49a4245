"""The dense part of a checkpoint, as bytes: what `save_model` adds to the rows. docs/format.md describes it."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from damo_torchrec.checkpoints.dense_rules import check_container, check_dense
from damo_torchrec.checkpoints.layout import MODEL_FILE
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.errors import CorruptionError, DamoError

# Earlier ones run what a file's author put in, weights_only or not (CVE-2025-32434).
LEAST_TORCH = (2, 6)


def dump_dense(dense: Mapping[str, Any]) -> bytes:
    """The contents of `MODEL_FILE`. Raises ValueError if `load_dense` could not read them."""
    buffer = io.BytesIO()  # torch hides the system's errors where it writes a file itself
    try:
        torch.save(dense, buffer)
        buffer.seek(0)
        torch.load(buffer, map_location="meta", weights_only=True)
        check_dense(dense, buffer.getbuffer().nbytes)
    except Exception as error:
        raise ValueError(
            "extra, or a state dict, holds something that cannot be loaded without pickle: keep to tensors, "
            f"numbers, strings, and lists and dicts of them ({error})"
        ) from error
    return buffer.getvalue()


def load_dense(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Reads `MODEL_FILE` of the checkpoint `path`. No code that is in the file is run.

    Raises:
        CorruptionError: it cannot be read, is not what `save_model` writes, or of another checkpoint than `manifest`.
        DamoError: the torch that is installed is older than `LEAST_TORCH`.
    """
    file = path / MODEL_FILE
    dense = parse_dense(manifest.read_file(path, MODEL_FILE), file)
    if dense["checkpoint_id"] != manifest.id:
        raise CorruptionError(f"{file} belongs to another checkpoint than the rows beside it")
    return dense


def parse_dense(content: bytes, file: Path) -> dict[str, Any]:
    """What is in the contents of `file`, which `dump_dense` gave; raises as `load_dense`."""
    _check_torch()
    try:
        check_container(content)
        with torch.sparse.check_sparse_tensor_invariants():  # type: ignore[no-untyped-call]  # torch's
            dense: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        check_dense(dense, len(content))
    except Exception as error:  # torch has no one exception for a damaged file
        raise CorruptionError(f"{file} is damaged: {error}") from error
    return dense


def _check_torch() -> None:
    """Raises DamoError if torch is too old to read a file of somebody else."""
    version = re.match(r"(\d+)\.(\d+)", str(torch.__version__))
    if version is None or (int(version[1]), int(version[2])) < LEAST_TORCH:
        raise DamoError(
            f"torch {torch.__version__} runs code of a {MODEL_FILE} that somebody else made, even with weights_only: "
            f"reading one takes torch {LEAST_TORCH[0]}.{LEAST_TORCH[1]} or later"
        )
