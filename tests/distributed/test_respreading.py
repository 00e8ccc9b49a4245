from pathlib import Path
from typing import Any

import pytest
import torch

import damo_torchrec as damo
import ranked_training as training
from damo_torchrec.checkpoints.layout import journal_bytes
from damo_torchrec.distributed import respreading
from damo_torchrec.distributed.mixing import rank_of
from rank_processes import run_ranks, values
from ranked_training import Model

OPTIONS = damo.TableOptions(admit=damo.Admit(sightings=2), expire=[damo.Idle(steps=6)])


def _save(rank: int, store: damo.EmbeddingStore, model: Model, optimizer: torch.optim.Optimizer) -> Any:
    found = training.rows_of(store), training.dense_of(model, optimizer)
    damo.distributed.save_model(model, optimizer=optimizer, step=70, extra={"rank": rank})
    store.close()
    return found


def _load(rank: int, store: damo.EmbeddingStore, model: Model, optimizer: torch.optim.Optimizer) -> Any:
    info = damo.distributed.load_model(model, optimizer=optimizer)
    found = training.rows_of(store), training.dense_of(model, optimizer)
    store.close()
    return found, info.step


def _here(path: Path, load: bool = True) -> Any:
    """The rows and the dense part of a store of one process."""
    with damo.EmbeddingStore(path, memory_budget="64MiB") as store:
        model = Model(store)
        optimizer = torch.optim.Adam(model.over.parameters(), lr=0.5)
        if load:
            damo.load_model(path, model, optimizer=optimizer)
        return training.rows_of(store), training.dense_of(model, optimizer)


@pytest.mark.parametrize("options", [None, OPTIONS], ids=["plain", "with lives"])
def test_rows_are_spread_over_other_ranks_and_gathered_to_the_bit(
    tmp_path: Path, options: damo.TableOptions | None
) -> None:
    root = tmp_path / "store"
    two = values(run_ranks(training.session, 2, tmp_path, root, 12, _save, options))
    rows = training.joined([found for found, _ in two])
    dense = two[0][1]
    assert all(len(table[2]) > 20 for table in rows.values())
    assert (options is None) == all(row[0] for table in rows.values() for row in table[2].values())  # else sightings

    damo.distributed.gather(root, tmp_path / "one", memory_budget="64MiB")
    assert _here(tmp_path / "one") == (rows, dense)

    three = values(run_ranks(training.respread, 3, tmp_path, root, 12, _load, options))
    for rank, ((found, its_dense), step) in enumerate(three):
        ids = torch.tensor([id_ for table in found.values() for id_ in table[2]])
        assert rank_of(ids, 3).unique().tolist() == [rank]
        assert (its_dense, step) == (dense, 70)
    assert training.joined([found for (found, _), _ in three]) == rows


def test_a_large_journal_is_brought_into_files_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "store"
    (found,) = values(run_ranks(training.session, 1, tmp_path, root, 12, _save, OPTIONS))
    assert journal_bytes(root / "checkpoints" / "step_70" / "rank-0-of-1" / "rows") > 0
    monkeypatch.setattr(respreading, "_SMALL_JOURNAL", 0)
    damo.distributed.gather(root, tmp_path / "one", memory_budget="64MiB")
    assert _here(tmp_path / "one") == found


def test_a_damaged_part_is_found_and_nothing_is_made_of_it(tmp_path: Path) -> None:
    root = tmp_path / "store"
    values(run_ranks(training.session, 1, tmp_path, root, 6))
    damo.distributed.gather(root, tmp_path / "sound", memory_budget="64MiB")
    newest = root / "checkpoints" / "step_6"
    (file, *_) = newest.rglob("*.sst")
    content = bytearray(file.read_bytes())
    content[100] ^= 255
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(damo.CorruptionError):
        damo.distributed.gather(newest, tmp_path / "one", memory_budget="64MiB")
    assert not (tmp_path / "one").exists()
    with pytest.raises(ValueError, match="a store of one process"):
        damo.distributed.gather(tmp_path / "sound", tmp_path / "one")


@pytest.mark.slow
def test_rows_go_on_over_any_numbers_of_ranks(tmp_path: Path) -> None:
    root = tmp_path / "store"
    values(run_ranks(training.session, 2, tmp_path, root, 6))
    values(run_ranks(training.respread, 3, tmp_path, root, 9))
    values(run_ranks(training.respread, 2, tmp_path, root, 12))
    values(run_ranks(training.session, 2, tmp_path, root, 13))
    last = values(run_ranks(training.respread, 1, tmp_path, root, 15))
    assert training.joined(last) == training.joined(
        values(run_ranks(training.session, 1, tmp_path, tmp_path / "alone", 15))
    )
