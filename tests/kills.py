"""Where a process can be killed while it makes a checkpoint."""

import os
from collections.abc import Callable
from pathlib import Path

from damo_torchrec.checkpoints.manifest import Manifest
from processes import kill_this_process


def then_die(function: Callable[..., object]) -> Callable[..., object]:
    def wrapped(*args: object, **keywords: object) -> None:
        function(*args, **keywords)
        kill_this_process()

    return wrapped


# What dies where it is called next, and whether the checkpoint under way is complete by then.
PLACES: dict[str, tuple[Callable[[], None], bool]] = {
    "before its directory is made": (lambda: setattr(Path, "mkdir", kill_this_process), False),
    "when the rows are written": (lambda: setattr(Manifest, "write", kill_this_process), False),
    "when the manifest is written": (lambda: setattr(Manifest, "write", then_die(Manifest.write)), False),
    "before it gets its name": (lambda: setattr(os, "rename", kill_this_process), False),
    "when it has its name": (lambda: setattr(os, "rename", then_die(os.rename)), True),
}
