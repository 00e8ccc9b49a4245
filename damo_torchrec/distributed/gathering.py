"""`gather`: a store of one process, with the rows and the model of a checkpoint of several ranks."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

from damo_torchrec.checkpoints.atomic_directory import build_directory
from damo_torchrec.checkpoints.dense_part import dump_dense
from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.checkpoints.layout import CHECKPOINTS, MANIFEST_FILE, MODEL_FILE, RANKS_FILE, checkpoint_name
from damo_torchrec.checkpoints.manifest import Manifest, new_id
from damo_torchrec.checkpoints.origin import Origin
from damo_torchrec.distributed.dense import read_others, read_states
from damo_torchrec.distributed.group_checkpoint import RanksCheckpoint
from damo_torchrec.distributed.respreading import Share, spread
from damo_torchrec.distributed.starting_point import check_is_of_ranks, newest_checkpoint
from damo_torchrec.distributed.store_checkpoint import closed_stores_of_others
from damo_torchrec.files import write_file
from damo_torchrec.options import parse_budget
from damo_torchrec.progress import Progress, reporting

_log = logging.getLogger(__name__)


def gather(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    memory_budget: int | str = "1GiB",
    progress: Progress | bool = True,
) -> Path:
    """Makes the directory `path` a store of one process with all rows of several ranks. One process calls it.

    The store goes on as these would: with the rows, their optimizer state and counts, to the bit, and the tables as
    they are; where `save_model` made the checkpoint, `damo_torchrec.load_model` loads the model from it. So a model
    that several ranks have trained is exported, or trained on, in one process. The ranks' stores stay as they are.

    Args:
        source: a checkpoint of several ranks; or the directory given to `open_store`: where all ranks' stores were
            closed at one step, or the newest checkpoint of all of them.
        path: a new directory.
        memory_budget: bytes to do with, about, as of `EmbeddingStore`.
        progress: as of `StoreOptions`.

    Returns:
        `path`.

    Raises:
        ValueError: `source` is neither, or `path` exists.
        CorruptionError: a part of the checkpoint is missing, damaged, or of another step than the others.
        StoreLockedError: a rank's store is open.
        OutOfSpaceError, DamoError: the disk is full or refuses; nothing is left behind.
    """
    parse_budget(memory_budget)
    checkpoint = _checkpoint_at(Path(source).absolute())
    line = new_id()

    def fill(staged: Path) -> None:
        where = staged / CHECKPOINTS
        where.mkdir()
        Origin(line).write(staged)
        with reporting(progress) as tell:
            share = Share(0, 1, memory_budget, line, tell)
            made = spread(checkpoint, share, where / checkpoint_name(checkpoint.manifest.step))
        if checkpoint.has_dense_part:
            _add_dense(checkpoint, made)

    target = build_directory(Path(path).absolute(), "store", fill)
    _log.info("made the store %s of the %d ranks of %s", target, checkpoint.world_size, checkpoint.path)
    return target


def _checkpoint_at(source: Path) -> RanksCheckpoint:
    if (source / RANKS_FILE).is_file():
        return RanksCheckpoint.read(source)
    check_is_of_ranks(source)
    newest = newest_checkpoint(source, None) if (source / CHECKPOINTS).is_dir() else None
    if newest is None:
        raise ValueError(f"{source} is neither a checkpoint of several ranks nor a directory with their stores")
    return closed_stores_of_others(source, newest)


def _add_dense(checkpoint: RanksCheckpoint, made: Path) -> None:
    """Adds the dense part to a checkpoint of one process that is being made."""
    manifest = Manifest.read(made)
    states = read_states(checkpoint, read_others(checkpoint, 0), {})
    write_file(made / MODEL_FILE, dump_dense({**states, "checkpoint_id": manifest.id}))
    (made / MANIFEST_FILE).unlink()
    replace(manifest, files={**manifest.files, MODEL_FILE: FileEntry.of(made / MODEL_FILE)}).write(made)
