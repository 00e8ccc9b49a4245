"""`kill -9` while rows are forgotten: each checkpoint is as it was or as it is to be, and a second call goes on."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

import damo_torchrec as damo
from damo_torchrec import _core
from damo_torchrec.checkpoints import atomic_directory, temporary_directory
from damo_torchrec.checkpoints.delta import DeltaManifest
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.cli import main as cli
from damo_torchrec.erasing import checkpoint as erasing_checkpoint
from damo_torchrec.erasing import eraser
from damo_torchrec.rescue.verification import verify
from forgotten import PERSON, Traces, days
from processes import kill_this_process, run_until_killed
from raw_records import decode_key, opened

# What is called in turn: where, its name, and how many calls of it there are before that which dies.
PLACES = {
    "live rows are erased": (eraser.Eraser, "erase_checkpoints", 0),
    "rows are written anew": (_core, "erase_rows", 0),
    "rows of the third are written anew": (_core, "erase_rows", 2),
    "the manifest is written": (Manifest, "write", 1),
    "it takes its place": (atomic_directory, "exchange", 0),
    "the third takes its place": (atomic_directory, "exchange", 2),
    "what it replaces is removed": (temporary_directory.shutil, "rmtree", 1),
    "a checkpoint is removed": (erasing_checkpoint, "remove_directory", 1),
    "a delta is written": (DeltaManifest, "write", 0),
}


def dying(function: Callable[..., object], calls: int, *, after: bool) -> Callable[..., object]:
    """The function, which kills this process in a call: before it does anything, or when it has."""
    count = itertools.count()

    def called(*args: object, **keywords: object) -> object:
        dies = next(count) == calls
        if dies and not after:
            kill_this_process()
        result = function(*args, **keywords)
        if dies:
            kill_this_process()
        return result

    return called


def forget_and_die(path: Path, place: str, after: bool) -> None:
    store = damo.EmbeddingStore(path / "store", memory_budget="64MiB")
    where, name, calls = PLACES[place]
    setattr(where, name, dying(getattr(where, name), calls, after=after))
    kept = "remove" if place == "a checkpoint is removed" else "rewrite"
    store.forget({"t": PERSON}, checkpoints=kept, deltas=path / "deltas")


def records(checkpoint: Path, scratch: Path) -> dict[tuple[int, int], bytes]:
    scratch.mkdir(parents=True)
    with opened(checkpoint, scratch) as rows:
        return {decode_key(key): value for key, value in rows.items()}


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("place", PLACES)
def test_killed_while_rows_are_forgotten(tmp_path, place, after):
    traces = Traces()
    with days(tmp_path / "store", traces) as store:
        (tmp_path / "deltas").mkdir()
        store.export_delta(tmp_path / "deltas" / "delta-1", since=1)
    where = tmp_path / "store" / "checkpoints"
    before = {path.name: records(path, tmp_path / "before" / path.name) for path in where.iterdir()}
    run_until_killed(forget_and_die, tmp_path, place, after)
    assert not [str(finding) for finding in verify(tmp_path / "store", lambda *_: None)]
    for path in where.glob("[!.]*"):
        rows, now = before[path.name], records(path, tmp_path / "after" / path.name)
        others = {key: value for key, value in rows.items() if key[1] not in PERSON}
        assert now == rows or {key: value for key, value in now.items() if key[1] not in PERSON} == others
        assert now == rows or not any(number == 1 and i in PERSON for number, i in now)
    arguments = ["--deltas", str(tmp_path / "deltas")]
    assert cli.main(["forget", str(tmp_path / "store"), "t", *map(str, PERSON), *arguments]) == 0
    assert traces.files(tmp_path / "store", tmp_path / "deltas") == []
    assert not [*where.glob(".*"), *(tmp_path / "deltas").glob(".*")]
    if place != "a checkpoint is removed":
        assert {path.name for path in where.iterdir()} == before.keys()
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        assert not store.table("t").contains(PERSON).any()
