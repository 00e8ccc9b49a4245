"""Checkpoints of models whose tables are sharded, ours and TorchRec's, beside a dense layer."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torchrec
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

import damo_torchrec as damo
import ranked_training as training
from damo_torchrec.training.model_checkpoint import dense_state
from rank_processes import run_ranks, values

pytestmark = pytest.mark.slow

BATCH, WIDTH, PLAIN_IDS = 24, 8, 60


class Model(nn.Module):
    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        torch.manual_seed(5)
        tables = [
            EmbeddingBagConfig(name=name, embedding_dim=4, num_embeddings=training.IDS, feature_names=[name])
            for name in ("a", "b")
        ]
        plain = EmbeddingBagConfig(name="c", embedding_dim=WIDTH, num_embeddings=PLAIN_IDS, feature_names=["c"])
        self.sparse = damo.EmbeddingBagCollection(tables, torch.optim.Adam, {"lr": 0.05}, store=store)
        self.plain = torchrec.EmbeddingBagCollection([plain], device=torch.device("cpu"))
        self.over = nn.Linear(2 * WIDTH, 1)

    def forward(self, batch: KeyedJaggedTensor) -> torch.Tensor:
        return self.over(torch.cat([self.sparse(batch).values(), self.plain(batch).values()], 1))


def _sharded(store: damo.EmbeddingStore) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    model, size = Model(store), dist.get_world_size()
    apply_optimizer_in_backward(torch.optim.Adagrad, model.plain.parameters(), {"lr": 0.1})
    sharders = [*damo.distributed.sharders(), EmbeddingBagCollectionSharder()]
    topology = Topology(world_size=size, compute_device="cpu", local_world_size=size)
    plan = EmbeddingShardingPlanner(topology=topology).collective_plan(model, sharders, dist.group.WORLD)
    plan.plan["plain"] = construct_module_sharding_plan(
        model.plain,
        {"c": row_wise(compute_kernel="fused")},
        sharder=sharders[-1],
        local_size=size,
        world_size=size,
        device_type="cpu",
    )
    sharded = DistributedModelParallel(model, device=torch.device("cpu"), sharders=sharders, plan=plan)
    parameters = dict(in_backward_optimizer_filter(sharded.named_parameters()))
    dense = KeyedOptimizerWrapper(parameters, lambda p: torch.optim.Adam(p, lr=0.01))
    dense.init_state()  # as TorchRec's optimizers want it before a state is loaded
    return sharded, CombinedOptimizer([sharded.fused_optimizer, dense])


def _share(step: int) -> KeyedJaggedTensor:
    """This rank's of a global batch."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(-training.IDS, training.IDS, (BATCH,), generator=generator)
    plain = torch.randint(0, PLAIN_IDS, (BATCH,), generator=generator)
    rank, size = training.world()
    own = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    lengths = torch.ones(3 * BATCH // size, dtype=torch.int64)
    return KeyedJaggedTensor(["a", "b", "c"], torch.cat([ids[own], ids[own], plain[own]]), lengths=lengths)


def _plain(value: Any) -> Any:
    """To be compared, and sent."""
    if hasattr(value, "local_shards"):
        return [shard.tensor.tolist() for shard in value.local_shards()]
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _run(rank: int, root: Path, last: int, respread: bool = False) -> Any:
    store = damo.distributed.open_store(root, memory_budget="64MiB", respread=respread)
    model, optimizer = _sharded(store)
    found = damo.distributed.load_model(model, optimizer=optimizer)
    for step in range(found.step if found else 0, last):
        optimizer.zero_grad()
        model(_share(step)).mean().backward()
        optimizer.step()
    damo.distributed.save_model(model, optimizer=optimizer, step=last)
    result = training.rows_of(store), _plain(dense_state(model)), _plain(optimizer.state_dict())
    store.close()
    return result


def test_sharded_models_go_on_and_are_gathered_to_the_bit(tmp_path: Path) -> None:
    root = tmp_path / "store"
    values(run_ranks(_run, 2, tmp_path, root, 3))
    resumed = values(run_ranks(_run, 2, tmp_path, root, 6))
    assert resumed == values(run_ranks(_run, 2, tmp_path, tmp_path / "straight", 6))
    rows = training.joined([found for found, _, _ in resumed])
    key = "plain.embedding_bags.c.weight"
    weights = [row for _, dense, _ in resumed for shard in dense[key] for row in shard]

    three = values(run_ranks(_run, 3, tmp_path, root, 6, True))
    assert training.joined([found for found, _, _ in three]) == rows
    assert [row for _, dense, _ in three for shard in dense[key] for row in shard] == weights

    damo.distributed.gather(root / "checkpoints" / "step_6", tmp_path / "one", memory_budget="64MiB", progress=False)
    with damo.EmbeddingStore(tmp_path / "one", memory_budget="64MiB") as store:
        model = Model(store).eval()
        damo.load_model(tmp_path / "one", model)
        assert training.rows_of(store) == rows
        assert model.plain.state_dict()["embedding_bags.c.weight"].tolist() == weights
        assert model.over.weight.tolist() == resumed[0][1]["over.weight"]
