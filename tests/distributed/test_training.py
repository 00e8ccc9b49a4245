"""DLRM under `DistributedModelParallel`: several ranks train what one process trains, on the same global batches."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan

import damo_torchrec as damo
import spread
from damo_torchrec.distributed import ShardedEmbeddingBagCollection, rank_of
from distributed_dlrm import FEATURES, GLOBAL_BATCH, Run, batch_of, model_over


def distributed(model: nn.Module, run: Run, size: int) -> DistributedModelParallel:
    sharders = damo.distributed.sharders()
    if run.plan == "default":
        return DistributedModelParallel(model, sharders=sharders)
    if run.plan == "by hand":
        by_rows = ParameterSharding("row_wise", "customized_kernel", list(range(size)))
        of_module = EmbeddingModuleShardingPlan({f"t_{name}": by_rows for name in FEATURES})
        plan = ShardingPlan({"sparse_arch.embedding_bag_collection": of_module})
    else:
        budget = model.sparse_arch.embedding_bag_collection.store.session.memory_budget
        topology = Topology(world_size=size, compute_device="cpu", ddr_cap=budget)
        planner = EmbeddingShardingPlanner(topology=topology)
        plan = planner.collective_plan(model, sharders, torch.distributed.group.WORLD)
    return DistributedModelParallel(model, sharders=sharders, plan=plan)


def train(rank: int, run: Run, size: int, group: bool = True) -> tuple[list[float], Any, Any]:
    """Losses by step, rows, and dense weights."""
    torch.set_num_threads(run.threads)
    with spread.new_store(**run.store) as store:
        model = model_over(store)
        if group:
            model = distributed(model, run, size)
            assert isinstance(model.module.sparse_arch.embedding_bag_collection, ShardedEmbeddingBagCollection)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        begin, end = GLOBAL_BATCH * rank // size, GLOBAL_BATCH * (rank + 1) // size
        losses = []
        for step in range(run.steps):
            dense, features, labels = batch_of(run, step, begin, end)
            optimizer.zero_grad()
            loss = binary_cross_entropy_with_logits(model(dense, features).squeeze(-1), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        torch.set_num_threads(1)
        return losses, spread.rows_of(store), [weight.detach() for weight in model.parameters()]


@pytest.mark.parametrize("plan", ["default", "planner", "by hand"])
def test_losses_and_rows_are_those_of_one_process(ranks, plan):
    run = Run(plan)
    alone, rows, weights = train(0, run, 1, group=False)
    of_ranks = ranks(train, run, ranks.size)
    losses = torch.tensor([losses for losses, _, _ in of_ranks]).mean(dim=0)
    torch.testing.assert_close(losses, torch.tensor(alone), rtol=0, atol=1e-5)
    spread.assert_same_rows(spread.as_one([rows for _, rows, _ in of_ranks]), rows, within=1e-5)
    for _, _, dense in of_ranks:
        for found, expected in zip(dense, weights, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_row_is_on_the_rank_of_its_id_alone(ranks):
    for rank, (_, rows, _) in enumerate(ranks(train, Run(), ranks.size)):
        ids = torch.tensor([id for _, id in rows], dtype=torch.int64)
        assert len(ids) > 0
        assert (rank_of(ids, ranks.size) == rank).all()


def test_budgets_and_threads_change_no_bit(two_ranks, tmp_path):
    runs = [
        Run(ids=3000),
        Run(ids=3000, threads=2, store={"num_threads": 2}),
        Run(ids=3000, store={"path": None, "cache_bytes": 1 << 17}),
    ]
    plain, *others = [two_ranks(train, run, 2) for run in runs]
    for other in others:
        for (losses, rows, dense), (losses_2, rows_2, dense_2) in zip(plain, other, strict=True):
            assert losses == losses_2
            assert rows.keys() == rows_2.keys()
            assert all(torch.equal(row, rows_2[key]) for key, row in rows.items())
            assert all(torch.equal(one, two) for one, two in zip(dense, dense_2, strict=True))
