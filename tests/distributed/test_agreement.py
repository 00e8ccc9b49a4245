"""The end of a backward pass: all ranks update their rows, or none does."""

import dataclasses

import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

import damo_torchrec as damo
import spread
from spread import Case, batch_of, new_store

_CASE = Case({"t": (["f"], "SUM")}, batch=8)


class Spoiled:
    """A model of `_CASE` over this rank's store, and what happens to it."""

    def __init__(self, rank: int, size: int, **options: object) -> None:
        self.rank, self.size = rank, size
        self.store = new_store(**options)
        wrapped = spread.Wrapped(spread.collection(_CASE, self.store))
        self.model = DistributedModelParallel(wrapped, sharders=damo.distributed.sharders())

    def step(self, number: int, factor: float = 1.0) -> str:
        """One step, with a loss multiplied by a factor. Returns what it raised, or an empty string."""
        begin, end = spread.share(_CASE, self.rank, self.size)
        values = self.model(batch_of(_CASE, number, begin, end))
        try:
            (values.sum() * factor).backward()
        except damo.DamoError as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def state(self) -> tuple[dict, int]:
        return spread.rows_of(self.store), self.store.table("t").iter


def same(one: tuple[dict, int], other: tuple[dict, int]) -> bool:
    rows, others = one[0], other[0]
    return one[1] == other[1] and rows.keys() == others.keys() and all(rows[k].equal(others[k]) for k in rows)


def nan_on_one_rank(rank: int, size: int, policy: str) -> tuple[str, bool, int, str, int]:
    spoiled = Spoiled(rank, size, on_nonfinite=policy)
    with spoiled.store as store:
        spoiled.step(0)
        before = spoiled.state()
        told = spoiled.step(1, factor=float("nan") if rank == size - 1 else 1.0)
        unchanged = same(before, spoiled.state())
        skipped = store.stats().skipped_backwards
        after = spoiled.step(2)
        return told, unchanged, skipped, after, spoiled.state()[1]


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(two_ranks, policy):
    for told, unchanged, skipped, after, iterations in two_ranks(nan_on_one_rank, 2, policy):
        assert told.startswith("NonFiniteGradientError") == (policy == "raise")
        assert unchanged
        assert skipped == (1 if policy == "skip" else 0)
        assert (after, iterations) == ("", 2)


def overflow_in_a_row_of_one_rank(rank: int, size: int) -> tuple[str, bool]:
    spoiled = Spoiled(rank, size)
    with spoiled.store:
        spoiled.step(0)
        row = next(iter(spread.rows_of(spoiled.store)))[1]
        if rank == 1:
            spoiled.store.table("t").set([row], torch.full((1, 4), 3.39e38))
        before = spoiled.state()
        # Each gradient is finite, and so are their sums: the row after the update is not.
        told = spoiled.step(0, factor=-1e38)
        return told, same(before, spoiled.state())


def test_a_row_that_overflows_on_one_rank_stops_all(two_ranks):
    for told, unchanged in two_ranks(overflow_in_a_row_of_one_rank, 2):
        assert told.startswith("NonFiniteGradientError")
        assert unchanged


def learning_rates_that_differ(rank: int, size: int) -> tuple[str, bool, str]:
    spoiled = Spoiled(rank, size)
    with spoiled.store:
        spoiled.step(0)
        before = spoiled.state()
        group = spoiled.model.fused_optimizer.param_groups[0]
        group["lr"] = 0.1 + rank
        told = spoiled.step(1)
        unchanged = same(before, spoiled.state())
        group["lr"] = 0.1
        return told, unchanged, spoiled.step(1)


def test_ranks_that_differ_in_a_learning_rate_are_told(two_ranks):
    for told, unchanged, after in two_ranks(learning_rates_that_differ, 2):
        assert "learning rate" in told
        assert unchanged
        assert after == ""


def schedule(rank: int, case: Case, size: int, group: bool = True) -> spread.Trained:
    with new_store() as store:
        model: nn.Module = spread.Wrapped(spread.collection(case, store))
        optimizer = model.sparse.fused_optimizer
        if group:
            model = DistributedModelParallel(model, sharders=damo.distributed.sharders())
            optimizer = model.fused_optimizer
        schedules = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        accumulated = dataclasses.replace(case, steps=2)
        store.accumulate(2)
        store.grad_scale = 4.0
        trained = []
        for _ in range(3):
            trained.append(spread.steps(model, store, accumulated, rank, size, scale=4.0))
            optimizer.step()
            schedules.step()
        return trained[-1]


def test_schedules_accumulation_and_loss_scales(two_ranks):
    case = Case({"t": (["f"], "MEAN")}, optimizer=(torch.optim.Adam, {"lr": 0.1}))
    alone = schedule(0, case, 1, group=False)
    of_ranks = two_ranks(schedule, case, 2)
    spread.assert_same_rows(spread.as_one([trained.rows for trained in of_ranks]), alone.rows, within=1e-5)
    assert [trained.iters for trained in of_ranks] == [{"t": 3}] * 2


def a_disk_that_is_full_on_one_rank(rank: int, size: int, directory: str) -> tuple[str, bool]:
    on_disk = {"backend": "rocksdb", "path": f"{directory}/{rank}"}
    before = Spoiled(rank, size, **on_disk)
    with before.store:
        before.step(0)
    spoiled = Spoiled(rank, size, **on_disk, **({"disk_budget": 1} if rank == 1 else {}))
    with spoiled.store:
        rows = spoiled.state()
        told = spoiled.step(1)
        return told, same(rows, spoiled.state())


def test_a_disk_that_is_full_on_one_rank_stops_all(two_ranks, tmp_path):
    for rank, (told, unchanged) in enumerate(two_ranks(a_disk_that_is_full_on_one_rank, 2, str(tmp_path))):
        assert told.startswith("OutOfSpaceError")
        assert ("no rank has updated its rows, as rank 1 could not" in told) == (rank == 0)
        assert unchanged


class RowsAndDense(nn.Module):
    """A sum of rows, and dense layers on either side of the lookup in the graph, which have finite gradients."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.sparse = spread.collection(_CASE, store)
        self.after = nn.Linear(4, 4)

    def forward(self, features: KeyedJaggedTensor, of_rows: float, of_dense: float) -> torch.Tensor:
        ones = self.before(torch.ones(1, 4)).sum()
        rows = self.sparse(features).values().sum() * of_rows
        return ones + rows + self.after(torch.ones(1, 4) * of_dense).sum()


def scaled(rank: int, size: int, overflows: str) -> tuple[bool, bool, float, int, bool]:
    with new_store() as store:
        torch.manual_seed(0)
        model = DistributedModelParallel(RowsAndDense(store), sharders=damo.distributed.sharders())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        damo.follow_grad_scaler(store, scaler, optimizer)

        def step(number: int, **factors: float) -> tuple[dict, list[torch.Tensor]]:
            given = {"of_rows": 1.0, "of_dense": 1.0, **factors}
            features = batch_of(_CASE, number, *spread.share(_CASE, rank, size))
            optimizer.zero_grad()
            scaler.scale(model(features, **given)).backward()
            scaler.step(optimizer)
            scaler.update()
            return spread.rows_of(store), [weight.detach().clone() for weight in model.parameters()]

        rows, dense = step(0)
        odd_rows, odd_dense = step(1, **({f"of_{overflows}": float("inf")} if rank == 1 else {}))
        same_dense = all(one.equal(two) for one, two in zip(dense, odd_dense, strict=True))
        skipped, scale = store.stats().skipped_backwards, scaler.get_scale()
        _, after = step(2)
        return same((rows, 0), (odd_rows, 0)), same_dense, scale, skipped, not after[0].equal(dense[0])


@pytest.mark.parametrize("overflows", ["rows", "dense"])
def test_all_ranks_skip_both_parts_of_a_step_that_one_overflows_in(two_ranks, overflows):
    assert two_ranks(scaled, 2, overflows) == [(True, True, 512.0, 1, True)] * 2
