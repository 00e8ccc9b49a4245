"""`EmbeddingStore.forget`: rows of which no byte is to be left, in an open store and in all that was made of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from damo_torchrec.checkpoints.layout import LIVE
from damo_torchrec.erasing.eraser import Eraser
from damo_torchrec.erasing.places import Places
from damo_torchrec.erasing.report import Erased, ForgetReport
from damo_torchrec.erasing.wanted import Ids
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.store.session import Session
from damo_torchrec.tensors import address
from damo_torchrec.torch_at_use import torch

_log = logging.getLogger(__name__)


def forget(session: Session, ids: Mapping[str, torch.Tensor], places: Places, *, dry_run: bool) -> ForgetReport:
    """What `EmbeddingStore.forget` does.

    Args:
        session: the open store.
        ids: int64 ``(n,)``, by table.
        places: besides the store's directory.
        dry_run: whether nothing is changed.
    """
    with session.alone("forget rows of"):
        engine, directory = session.engine, session.writable_directory()
        session.waiting.check_none("forget rows")
        session.wait_for_checkpoint()
        distinct: dict[str, Ids] = {name: np.unique(of_table.numpy()) for name, of_table in ids.items()}
        report = ForgetReport({name: len(of_table) for name, of_table in distinct.items()}, dry_run)
        numbers = {name: session.catalog.entry(name, engine).number for name in session.catalog.names()}
        eraser = Eraser(session.path, session.catalog.checkpoints, distinct, numbers, report)
        eraser.remove_left(closed=False)
        for name in distinct.keys() & numbers.keys():
            _forget_live(session, session.catalog.open_stored(name, engine), torch.from_numpy(distinct[name]), report)
        eraser.erase_checkpoints(places.checkpoints)
        eraser.erase_shown(places)
        report.note_other_names()
    _log.info("%s rows of the store %s:\n%s", "would forget" if dry_run else "forgot", directory.path, report)
    return report


def _forget_live(session: Session, table: OpenTable, ids: torch.Tensor, report: ForgetReport) -> None:
    engine, name = session.engine, table.definition.name
    found = torch.empty(len(ids), dtype=torch.bool, device="cpu")
    headers = torch.empty(len(ids), 2, dtype=torch.int32, device="cpu")
    engine.describe(table.index, address(ids), len(ids), state=0, headers=address(headers), contains=address(found))
    report.deleted[name] = int(found.sum())
    known = int((found | (headers[:, 1] != 0)).sum())  # ids that were only seen have a count, and no row
    if known:
        report.erased.append(Erased(session.path / LIVE, "live rows", "rewritten", known))
    if report.dry_run:
        return
    if known:
        session.note_change()
        table.edited_after = session.catalog.manifest.sequence
    left = engine.erase(table.index, address(ids), len(ids))
    if left:
        report.leave(
            session.path / LIVE,
            "live rows",
            f"{len(left)} rows of table {name!r}: an iteration over a table, an export or a delta that has begun reads "
            "them still. Forget again once that has ended",
        )
