import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import damo_torchrec as damo
import ranked_training as training
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.distributed import dense
from rank_processes import run_ranks, values
from ranked_training import Model


def _save(rank: int, store: damo.EmbeddingStore, model: Model, optimizer: torch.optim.Optimizer) -> Any:
    """Saves in the background, trains on, and is left as by a crash; returns what was saved."""
    found = training.rows_of(store), training.dense_of(model, optimizer)
    saving = damo.distributed.save_model_async(model, optimizer=optimizer, step=70, extra={"rank": rank})
    training.train(model, optimizer, store.step, store.step + 3)
    path = saving.result()
    training.crash(store)
    return found, path.name


def _load(rank: int, root: Path) -> Any:
    store = damo.distributed.open_store(root, memory_budget="64MiB")
    model = Model(store)
    with torch.no_grad():
        model.over.weight.zero_()
    optimizer = torch.optim.Adam(model.over.parameters(), lr=0.5)
    info = damo.distributed.load_model(model, optimizer=optimizer)
    found = training.rows_of(store), training.dense_of(model, optimizer)
    store.close()
    return found, (info.step, info.store_step, info.extra, info.rows)


def test_a_model_goes_on_from_where_it_was_saved(tmp_path: Path) -> None:
    root = tmp_path / "store"
    saved = values(run_ranks(training.session, 2, tmp_path, root, 5, _save))
    loaded = values(run_ranks(_load, 2, tmp_path, root))
    assert [found for found, _ in loaded] == [found for found, _ in saved]
    rows = {name: sum(found[0][name][1] for found, _ in saved) for name in ("a", "b")}
    assert [info for _, info in loaded] == [(70, 5, {"rank": rank}, rows) for rank in range(2)]
    assert sorted(path.name for path in (root / "checkpoints").iterdir()) == ["step_0", "step_70"]


# ---------------------------------------------------------------- what goes wrong


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _error(call: Any) -> tuple[str, str]:
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def _save_in_spite_of(rank: int, store: damo.EmbeddingStore, model: Model, optimizer: torch.optim.Optimizer) -> Any:
    """What each of some faults on one rank raises, and what is left; then the same without them."""
    where = store.path.parent / "checkpoints"
    found = {}

    def attempt(name: str, **arguments: Any) -> None:
        error = _error(lambda: damo.distributed.save_model(model, optimizer=optimizer, **arguments))
        found[name] = error, sorted(os.listdir(where))

    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(dense, "write_file", _full)
        attempt("full")
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(Manifest, "write", _full)
        attempt("rows")
    with pytest.MonkeyPatch.context() as patch:
        if rank == 0:
            patch.setattr(damo.distributed.group_checkpoint.RanksManifest, "write", _full)
        attempt("first")
    attempt("extra", extra={"what": object() if rank == 1 else 1})
    attempt("path", path=where.parent / f"of-{rank}")
    store.accumulate(2)
    if rank == 1:
        model.sparse(training.batch_of(torch.tensor([1]))).values().sum().backward()
    attempt("waiting")
    store.apply_accumulated()
    store.accumulate(1)
    attempt("steps")
    if rank == 0:
        model.sparse(training.batch_of(torch.tensor([1]))).values().sum().backward()
    attempt("well")
    store.close()
    return found


def test_what_goes_wrong_on_one_rank_is_one_error_on_all_and_leaves_nothing(tmp_path: Path) -> None:
    results = values(run_ranks(training.session, 2, tmp_path, tmp_path / "store", 3, _save_in_spite_of))
    assert results[0] == results[1]
    kinds = {name: error[0] for name, (error, _) in results[0].items()}
    assert kinds == {
        "full": "OutOfSpaceError",
        "rows": "OutOfSpaceError",
        "first": "OutOfSpaceError",
        "extra": "ValueError",
        "path": "ValueError",
        "waiting": "ValueError",
        "steps": "SchemaMismatchError",
        "well": "nothing",
    }
    left = {name: names for name, (_, names) in results[0].items()}
    assert left.pop("well") == ["step_0", "step_4"]
    assert set(map(tuple, left.values())) == {("step_0",)}
    assert "rank 1" in results[0]["full"][0][1]


def _manage(rank: int, store: damo.EmbeddingStore, model: Model, optimizer: torch.optim.Optimizer) -> Any:
    with damo.distributed.CheckpointManager(model, every_steps=2, keep=2) as manager:
        begun = []
        for step in range(7):
            training.train(model, optimizer, step, step + 1)
            begun.append(manager.step(step, optimizer=optimizer))
    names = [path.name for path in manager.checkpoints()]
    training.train(model, optimizer, 7, 9)
    info = manager.restore(optimizer=optimizer)
    step = store.step
    store.close()
    return begun, names, info.step, step


def test_a_manager_keeps_the_newest_checkpoints(tmp_path: Path) -> None:
    results = values(run_ranks(training.session, 2, tmp_path, tmp_path / "store", 0, _manage))
    assert results == [([False, True] * 3 + [False], ["step_3", "step_5"], 5, 6)] * 2


def _save_slowly(rank: int, store: damo.EmbeddingStore, model: Model, optimizer: torch.optim.Optimizer) -> str:
    with pytest.MonkeyPatch.context() as patch:
        write = Manifest.write
        if rank == 1:
            patch.setattr(Manifest, "write", lambda *arguments: (time.sleep(9), write(*arguments)))
        path = damo.distributed.save_model(model, optimizer=optimizer)
    store.close()
    return path.name


@pytest.mark.slow
def test_a_rank_may_write_for_longer_than_others_wait_for_an_answer(tmp_path: Path) -> None:
    results = run_ranks(training.session, 2, tmp_path, tmp_path / "store", 2, _save_slowly, timeout=6)
    assert values(results) == ["step_2"] * 2
