"""Deltas without rows, which say that they lead from some states to another."""

from pathlib import Path
from typing import Any

from damo_torchrec.checkpoints.delta import DeltaManifest


def make_delta(path: Path, name: str, line: list[int], to: int, **fields: Any) -> Path:
    """A delta without rows, from any of the states `line` to another, of so many steps."""
    ids = [f"{state:032x}" for state in line]
    (path / name).mkdir(parents=True)
    DeltaManifest(f"{to:032x}", ids[0], ids, 0, line[0], to, {}, {}, **{"sequence": to, **fields}).write(path / name)
    return path / name
