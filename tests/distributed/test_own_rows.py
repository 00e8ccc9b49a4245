"""Rows that a program sets and reads by itself: each rank has those that are its own, whoever shows them to it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

import damo_torchrec as damo
import ranked_training as training
from rank_processes import Raised, run_ranks, values

IDS = torch.arange(20)


class Net(nn.Module):
    """Sums of rows."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        tables = [EmbeddingBagConfig(name="t", embedding_dim=2, num_embeddings=20, feature_names=["f"])]
        self.bags = damo.EmbeddingBagCollection(tables, torch.optim.Adagrad, {"lr": 0.1}, store=store)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.bags(features).values()


def batch() -> KeyedJaggedTensor:
    return KeyedJaggedTensor(["f"], IDS, lengths=torch.ones(len(IDS), dtype=torch.int64))


def weights() -> torch.Tensor:
    return torch.arange(40, dtype=torch.float32).reshape(20, 2)


def set_rows(rank: int, root: Path) -> Any:
    with damo.distributed.open_store(root, memory_budget="64MiB") as store:
        net = Net(store)
        net.load_state_dict({"bags.embedding_bags.t.weight": weights()}, strict=False)
        table = store.table("t")
        table.set(IDS[:6], -weights()[:6])
        table.set_state(IDS, {"sum": weights()})
        model = DistributedModelParallel(net, sharders=damo.distributed.sharders())
        model.eval()
        read = model(batch()).tolist()
        damo.distributed.save_model(model)
        ids, _ = table.to_torch()
        return ids.tolist(), table.get_state(ids)["sum"].tolist(), read


def test_rows_that_all_ranks_set_are_on_one(tmp_path: Path) -> None:
    found = values(run_ranks(set_rows, 2, tmp_path, tmp_path / "store"))
    expected = weights()
    state = {id: row for ids, states, _ in found for id, row in zip(ids, states, strict=True)}
    assert sorted(id for ids, _, _ in found for id in ids) == IDS.tolist()
    assert state == dict(enumerate(expected.tolist()))
    expected[:6] *= -1
    for _, _, read in found:
        assert read == expected.tolist()
    damo.distributed.gather(tmp_path / "store", tmp_path / "one", memory_budget="64MiB")
    with damo.EmbeddingStore(tmp_path / "one", memory_budget="64MiB") as store:
        np.testing.assert_array_equal(store.table("t").get(IDS).numpy(), expected.numpy())


def read_alone(rank: int, root: Path) -> Any:
    with damo.distributed.open_store(root, memory_budget="64MiB") as store:
        net = Net(store)
        net.eval()
        return net(batch())


def test_a_collection_that_is_not_sharded_reads_no_rows_of_a_rank(tmp_path: Path) -> None:
    for outcome in run_ranks(read_alone, 2, tmp_path, tmp_path / "store"):
        assert isinstance(outcome, Raised)
        assert "DistributedModelParallel(model, sharders=damo_torchrec.distributed.sharders())" in outcome.message


def save_twice(rank: int, root: Path) -> Any:
    def then(rank: int, store: Any, model: Any, optimizer: Any) -> Any:
        for name in ("first", "second"):
            damo.distributed.save_model(model, step=7, extra={"name": name})
        found = damo.distributed.load_model(model, 7)
        try:
            damo.distributed.save_model(model, step=8 + rank)
        except ValueError as error:
            return found.extra["name"], str(error)
        return None

    return training.session(rank, root, 3, then)


def test_a_step_that_was_saved_twice_is_the_newer_and_ranks_save_the_same_step(tmp_path: Path) -> None:
    for name, message in values(run_ranks(save_twice, 2, tmp_path, tmp_path / "store")):
        assert name == "second"
        assert "ranks ask for different things" in message
