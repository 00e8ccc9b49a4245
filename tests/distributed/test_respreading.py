from pathlib import Path
from typing import Any

import pytest
import torch

import damo_torchrec as damo
import ranked_training as training
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

    damo.distributed.gather(root, tmp_path / "one", memory_budget="64MiB")
    assert _here(tmp_path / "one") == (rows, dense)

    three = values(run_ranks(training.respread, 3, tmp_path, root, 12, _load, options))
    for rank, ((found, its_dense), step) in enumerate(three):
        ids = torch.tensor([id_ for table in found.values() for id_ in table[2]])
        assert rank_of(ids, 3).unique().tolist() == [rank]
        assert (its_dense, step) == (dense, 70)
    assert training.joined([found for (found, _), _ in three]) == rows
