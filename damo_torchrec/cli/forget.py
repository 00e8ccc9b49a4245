"""``damo-torchrec forget``: rows of which no byte is to be left."""

import argparse
from dataclasses import asdict

import numpy as np

from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.cli.command import Command, absolute_path, add_ids, ids_of
from damo_torchrec.cli.ending import DAMAGED, SOUND, after
from damo_torchrec.cli.output import print_json
from damo_torchrec.erasing.eraser import Eraser
from damo_torchrec.erasing.places import Places
from damo_torchrec.erasing.report import ForgetReport
from damo_torchrec.errors import StoreLockedError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=absolute_path, metavar="STORE", help="a store, which nobody has open")
    parser.add_argument("table", metavar="TABLE", help="the table's name")
    add_ids(parser, "what to forget")
    parser.add_argument(
        "--checkpoints",
        choices=("rewrite", "remove"),
        default="rewrite",
        help="what becomes of checkpoints inside the store that have such rows: they are written anew (the default), "
        "or go, but for the newest, the newest with a dense part, and what was exported last",
    )
    more = {
        "--export": "an export of onnx.export or serving.export, a checkpoint elsewhere, or a directory of checkpoints",
        "--deltas": "a delta, or a directory of deltas",
        "--working-copy": "a server's working copy, which is removed unless a server uses it",
    }
    for option, what in more.items():
        parser.add_argument(
            option, type=absolute_path, action="append", default=[], metavar="PATH", help=f"{what}; may be repeated"
        )
    parser.add_argument("--dry-run", action="store_true", help="say what there is to do, and do nothing")


def _run(options: argparse.Namespace) -> int:
    ids = ids_of(options)
    if not ids:
        raise ValueError("nothing to forget: give ids, or --ids-file")
    if not options.store.is_dir() or not StoreDirectory.is_store(options.store):
        raise ValueError(f"{options.store} is no store")
    places = Places(options.checkpoints, options.export, options.deltas, options.working_copy)
    report = ForgetReport({options.table: len(set(ids))}, options.dry_run)
    try:
        directory = StoreDirectory(options.store)
    except StoreLockedError as error:
        raise ValueError(f"{error}. Where it is open, store.forget() does the same") from None
    try:
        line = CheckpointLine.of_store(options.store)
        eraser = Eraser(options.store, line, {options.table: np.array(ids, np.int64)}, None, report)
        eraser.remove_left(closed=True)
        eraser.erase_checkpoints(places.checkpoints)
        eraser.erase_shown(places)
        report.note_other_names()
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    finally:
        directory.release()
    with after("nothing was done" if options.dry_run else "what could be forgotten is"):
        if options.json:
            print_json(
                options,
                {
                    "store": options.store,
                    "asked": report.asked,
                    "dry_run": report.dry_run,
                    "erased": [asdict(one) for one in report.erased],
                    "remaining": [asdict(one) for one in report.remaining],
                },
            )
        else:
            print(report)
    return DAMAGED if report.remaining else SOUND


COMMAND = Command(
    name="forget",
    help="delete rows so that none of their bytes is left",
    description="Deletes rows from all checkpoints of a store, and from exports, deltas and working copies that are "
    "named, so that none of their bytes is left; prints what had them, and what has them still. Their ids stay in "
    "records that say that they were deleted, by which servers hear of it.",
    add_arguments=_add_arguments,
    run=_run,
)
