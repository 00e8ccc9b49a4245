import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import damo_torchrec as damo
import ranked_training as training
from damo_torchrec.checkpoints.layout import RANK_FILE, RANKS_FILE
from rank_processes import Raised, run_ranks, values
from support import needs_onnxruntime


def test_ranks_go_on_from_where_all_were_closed(tmp_path: Path) -> None:
    root = tmp_path / "store"
    first = values(run_ranks(training.session, 2, tmp_path, root, 6))
    again = values(run_ranks(training.session, 2, tmp_path, root, 6))
    assert again == first
    both = values(run_ranks(training.session, 2, tmp_path, root, 12))
    alone = values(run_ranks(training.session, 1, tmp_path, tmp_path / "alone", 12))
    assert training.joined(both) == training.joined(alone)


# ---------------------------------------------------------------- what is refused


def _swap(root: Path) -> None:
    (root / "rank-0-of-2").rename(root / "aside")
    (root / "rank-1-of-2").rename(root / "rank-0-of-2")
    (root / "aside").rename(root / "rank-1-of-2")


def _lose_part(root: Path) -> None:
    shutil.rmtree(_newest(root) / "rank-1-of-2")


def _damage(name: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        file = _newest(root) / name
        content = file.read_bytes()
        file.write_bytes(content[:40] + b"?" + content[41:])

    return damage


def _mix_steps(root: Path) -> None:
    part = _newest(root) / "rank-1-of-2"
    shutil.rmtree(part)
    shutil.copytree(root / "checkpoints" / "step_0" / "rank-1-of-2", part)


def _mix_groups(root: Path) -> None:
    file = root / "rank-1-of-2" / RANK_FILE
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content).replace(content["rank"]["group"], "0" * 32))


def _single_store(root: Path) -> None:
    (root / "rank-1-of-2" / RANK_FILE).unlink()


def _newest(root: Path) -> Path:
    return root / "checkpoints" / "step_4"


REFUSED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "swapped": (_swap, "SchemaMismatchError", "is the store of rank 1 of 2"),
    "a part is lost": (_lose_part, "CorruptionError", "lacks the part of rank 1"),
    "ranks.json": (_damage(RANKS_FILE), "CorruptionError", "ranks.json is damaged"),
    "manifest.json": (_damage("rank-1-of-2/manifest.json"), "CorruptionError", "manifest.json is damaged"),
    "mixed steps": (_mix_steps, "CorruptionError", "is of another checkpoint"),
    "another group": (_mix_groups, "CorruptionError", "checksum does not match"),
    "a single store": (_single_store, "SchemaMismatchError", "which no rank has made"),
}


def _try_all(rank: int, roots: dict[str, Path]) -> dict[str, tuple[str, str]]:
    found = {}
    for name, root in roots.items():
        try:
            store = damo.distributed.open_store(root, memory_budget="64MiB", seed=rank if name == "seed" else None)
        except Exception as error:
            found[name] = (type(error).__name__, str(error))
        else:
            store.close()
            found[name] = ("nothing", "")
    return found


def _save_and_crash(rank: int, store: damo.EmbeddingStore, model: Any, optimizer: torch.optim.Optimizer) -> None:
    damo.distributed.save_model(model, optimizer=optimizer)
    training.crash(store)


def _digests(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "LOCK"]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stores of two ranks that saved after 4 steps, and crashed."""
    directory = tmp_path_factory.mktemp("saved")
    values(run_ranks(training.session, 2, directory, directory / "store", 4, _save_and_crash))
    return directory / "store"


def test_what_does_not_belong_together_is_refused_on_all_ranks_and_changes_nothing(tmp_path: Path, saved: Path) -> None:
    roots = {}
    for name, (harm, _, _) in REFUSED.items():
        roots[name] = tmp_path / name
        shutil.copytree(saved, roots[name])
        harm(roots[name])
    roots["seed"] = tmp_path / "seed"
    before = {name: _digests(root) for name, root in roots.items()}
    one, other = values(run_ranks(_try_all, 2, tmp_path, roots))
    assert one == other
    assert one["seed"][0] == "ValueError"
    for name, (_, kind, message) in REFUSED.items():
        assert one[name][0] == kind, one[name]
        assert message in one[name][1], one[name]
    assert {name: _digests(root) for name, root in roots.items()} == before


def test_another_world_size_is_refused_with_the_call_to_make(tmp_path: Path, saved: Path) -> None:
    shutil.copytree(saved, root := tmp_path / "store")
    before = _digests(root)
    with pytest.raises(damo.DamoError, match=r"made by 2 ranks, and there are 1.*respread=True"):
        damo.distributed.open_store(root, memory_budget="64MiB")
    with pytest.raises(damo.SchemaMismatchError, match="has the seed 0, got seed=1"):
        damo.distributed.open_store(root, memory_budget="64MiB", seed=1, respread=True)
    with pytest.raises(ValueError, match=r"of several ranks.*open_store"):
        damo.EmbeddingStore(root, memory_budget="64MiB")
    assert _digests(root) == before


def test_a_store_of_one_process_is_refused(tmp_path: Path) -> None:
    damo.EmbeddingStore(tmp_path / "one", memory_budget="64MiB").close()
    before = _digests(tmp_path)
    with pytest.raises(ValueError, match="is a store of one process"):
        damo.distributed.open_store(tmp_path / "one", memory_budget="64MiB")
    assert _digests(tmp_path) == before


def test_a_store_that_is_open_is_refused_on_all_ranks(tmp_path: Path, saved: Path) -> None:
    shutil.copytree(saved, root := tmp_path / "store")
    with damo.EmbeddingStore(root / "rank-1-of-2", memory_budget="64MiB"):
        results = run_ranks(training.session, 2, tmp_path, root, 4)
    assert {result.kind for result in results if isinstance(result, Raised)} == {"StoreLockedError"}
    assert len({result.message for result in results}) == 1


@needs_onnxruntime
def test_no_model_is_exported_of_one_rank_of_several(tmp_path: Path, saved: Path) -> None:
    part = _newest(saved) / "rank-0-of-2"
    with damo.EmbeddingStore(part, memory_budget="64MiB", read_only=True) as store:
        model = training.Model(store).eval()
        with pytest.raises(ValueError, match=r"rows of one rank of several.*gather"):
            damo.onnx.export(model, training.batch_of(torch.tensor([1])), tmp_path / "graph")


def test_no_delta_is_exported_of_one_rank_of_several(tmp_path: Path, saved: Path) -> None:
    shutil.copytree(saved, root := tmp_path / "store")
    with (
        damo.EmbeddingStore(root / "rank-0-of-2", memory_budget="64MiB") as store,
        pytest.raises(ValueError, match=r"rows of one rank of several.*gather"),
    ):
        store.export_delta(tmp_path / "delta", since=4)


def test_a_rank_that_has_lost_its_disk_gets_its_rows_back(tmp_path: Path, saved: Path) -> None:
    shutil.copytree(saved, whole := tmp_path / "whole")
    shutil.copytree(saved, root := tmp_path / "store")
    shutil.rmtree(root / "rank-1-of-2")
    last = values(run_ranks(training.session, 2, tmp_path, root, 6))
    assert last == values(run_ranks(training.session, 2, tmp_path, whole, 6))


def test_rows_are_forgotten_in_checkpoints_of_all_ranks_too(tmp_path: Path, saved: Path) -> None:
    shutil.copytree(saved, root := tmp_path / "store")
    values(run_ranks(_forget, 2, tmp_path, root))
    damo.distributed.gather(_newest(root), tmp_path / "one", memory_budget="64MiB")
    with damo.EmbeddingStore(tmp_path / "one", memory_budget="64MiB") as store:
        assert not store.table("a").contains(training.ids_at(0)).any()
        assert store.table("b").contains(training.ids_at(0)).all()


def _forget(rank: int, root: Path) -> None:
    with damo.distributed.open_store(root, memory_budget="64MiB") as store:
        report = store.forget({"a": training.ids_at(0)})
        assert not report.remaining
        assert report.deleted["a"] > 10


def test_rows_of_an_earlier_run_are_trained_on_with_a_warning(tmp_path: Path) -> None:
    damo_store = damo.distributed.open_store(tmp_path / "store", memory_budget="64MiB")
    training.train(training.Model(damo_store), torch.optim.SGD([torch.zeros(1)]), 0, 2)
    damo_store.close()
    store = damo.distributed.open_store(tmp_path / "store", memory_budget="64MiB")
    with pytest.warns(damo.ContinuedRowsWarning):
        training.train(training.Model(store), torch.optim.SGD([torch.zeros(1)]), 2, 3)
    store.close()
