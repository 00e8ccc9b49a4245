"""Sharded collections as modules: beside others, in eval mode, frozen, on the meta device, and what is refused."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torchrec
from torch import nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan

import damo_torchrec as damo
import spread
from spread import Case, batch_of, new_store

_CASE = Case({"t": (["f"], "SUM"), "u": (["g"], "MEAN")})


def spread_model(model: nn.Module, **more: Any) -> DistributedModelParallel:
    return DistributedModelParallel(model, sharders=damo.distributed.sharders(), **more)


class Mixed(nn.Module):
    """Ours, pooled and not, and TorchRec's, which the planner shards as it likes, under dense layers."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        made = (torch.optim.SGD, {"lr": 0.5})
        self.bags = damo.EmbeddingBagCollection([_bags("t", "f")], *made, store=store)
        self.sequences = damo.EmbeddingCollection(
            [EmbeddingConfig(name="s", embedding_dim=4, num_embeddings=10, feature_names=["g"])], *made, store=store
        )
        self.theirs = torchrec.EmbeddingBagCollection([_bags("w", "h")])
        self.dense = nn.Linear(12, 1)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        rows = self.sequences(features)["g"]
        summed = torch.segment_reduce(rows.values(), "sum", lengths=rows.lengths(), unsafe=True)
        return self.dense(torch.cat([self.bags(features)["f"], summed, self.theirs(features)["h"]], dim=1))


def _bags(name: str, feature: str) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(name=name, embedding_dim=4, num_embeddings=8, feature_names=[feature])


def train_mixed(rank: int, size: int, group: bool = True) -> tuple[list[float], Any]:
    torch.manual_seed(1)
    case = Case({name: ([name], "SUM") for name in "fgh"}, ids=8)
    with new_store() as store:
        model: nn.Module = Mixed(store)
        with torch.no_grad():
            model.theirs.embedding_bags["w"].weight.fill_(0.1)
        if group:
            model = spread_model(model)
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "theirs" in name:
                        weight.fill_(0.1)
        dense = [p for name, p in model.named_parameters() if "dense" in name]
        with torch.no_grad():
            for weight in dense:
                weight.fill_(0.2)
        optimizer = torch.optim.SGD(dense, lr=0.1)
        begin, end = spread.share(case, rank, size)
        losses = []
        for step in range(3):
            features = batch_of(case, step, begin, end)
            features = KeyedJaggedTensor(features.keys(), features.values().abs() % 8, lengths=features.lengths())
            optimizer.zero_grad()
            loss = model(features).pow(2).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, spread.rows_of(store)


def test_it_stands_beside_torchrecs_collections_and_dense_layers(two_ranks):
    # What TorchRec's own would be trained with is left out: its weights stay.
    _, alone = train_mixed(0, 1, group=False)
    of_ranks = two_ranks(train_mixed, 2)
    spread.assert_same_rows(spread.as_one([rows for _, rows in of_ranks]), alone, within=1e-5)


def evaluate(rank: int, size: int) -> None:
    with new_store() as store:
        model = spread_model(spread.Wrapped(spread.collection(_CASE, store)))
        features = batch_of(_CASE, 0, *spread.share(_CASE, rank, size))
        model.eval()
        assert not model(features).any()
        model.train()
        model(features).sum().backward()
        rows = spread.rows_of(store)
        assert rows
        model.eval()
        assert model(features).any()
        assert not model(features).requires_grad
        model.train()
        model.requires_grad_(False)
        assert not model(batch_of(_CASE, 1, 0, 8)).requires_grad
        model.requires_grad_(True)
        with torch.no_grad():
            model(batch_of(_CASE, 2, 0, 8))
        assert rows.keys() == spread.rows_of(store).keys()
        model.module.sparse.prefetch(
            model.module.sparse.input_dist(ctx := _context(model), features).wait().wait(), ctx=ctx
        )
        state = model.state_dict()
        assert list(state) == ["sparse._extra_state"]
        model.load_state_dict(state)
        assert list(model.state_dict()) == list(state)
        rates = model.fused_optimizer.state_dict()
        model.fused_optimizer.param_groups[0]["lr"] = 7.0
        model.fused_optimizer.load_state_dict(rates)
        assert model.fused_optimizer.param_groups[0]["lr"] == 0.1


def _context(model: DistributedModelParallel) -> Any:
    return model.module.sparse.create_context()


def test_eval_mode_and_frozen_rows(two_ranks):
    two_ranks(evaluate, 2)


def bags_of_their_own(rank: int, size: int) -> tuple[dict, dict]:
    """Features whose number of bags differs, between ranks too, and the same batch with a bag for each sample."""
    generator = torch.Generator().manual_seed(rank)
    bags, samples = {"f": 2 + rank, "g": 3}, 6
    lengths = torch.randint(0, 4, (sum(bags.values()),), generator=generator)
    ids = torch.randint(0, 30, (int(lengths.sum()),), generator=generator)
    which = torch.stack([torch.randint(0, n, (samples,), generator=generator) for n in bags.values()])
    variable = KeyedJaggedTensor(
        keys=["f", "g"],
        values=ids,
        lengths=lengths,
        stride_per_key_per_rank=[[n] for n in bags.values()],
        inverse_indices=(["f", "g"], which),
    )
    of_bags = torch.split(ids, lengths.tolist())
    chosen = [of_bags[first + int(i)] for first, row in zip((0, bags["f"]), which, strict=True) for i in row]
    plain = KeyedJaggedTensor(["f", "g"], torch.cat(chosen), lengths=torch.tensor([len(bag) for bag in chosen]))
    rows, values = [], []
    for features in (variable, plain):
        with new_store() as store:
            model = spread_model(spread.Wrapped(spread.collection(_CASE, store)))
            for step in range(2):
                found = model(features)
                (found * torch.sin(torch.arange(found.numel()) + step).view_as(found)).sum().backward()
            values.append(found.detach())
            rows.append(spread.rows_of(store))
    torch.testing.assert_close(values[0], values[1])
    return rows[0], rows[1]


def test_features_with_bags_of_their_own(two_ranks):
    for variable, plain in two_ranks(bags_of_their_own, 2):
        spread.assert_same_rows(variable, plain, within=1e-5)


def refusal(rank: int, case: Case, odd_rank: int | None = None, plan: ShardingPlan | None = None) -> str:
    """What a module's sharding raises, on a rank; only one rank's options are odd if it is named."""
    if odd_rank is not None and rank != odd_rank:
        case = dataclasses.replace(case, options={})
    with new_store() as store:
        wrapped = spread.Wrapped(spread.collection(case, store))
        try:
            spread_model(wrapped, plan=plan)
        except ValueError as error:
            return str(error)
    return ""


def test_ranks_whose_tables_differ_are_refused(two_ranks):
    case = dataclasses.replace(_CASE, options={"t": damo.TableOptions(clip_grad_norm=math.pi)})
    for told in two_ranks(refusal, case, 1):
        assert "differs between ranks 0 and 1" in told


@pytest.mark.parametrize(
    "options",
    [
        damo.TableOptions(max_rows=10),
        damo.TableOptions(expire=[damo.Idle(steps=9), damo.Idle(days=1)], min_rows=3),
        damo.TableOptions(unseen_in_eval="mean", admit=damo.Admit(sightings=2)),
    ],
)
def test_whatever_decides_how_long_rows_live_may_be_asked(two_ranks, options):
    case = dataclasses.replace(_CASE, options={"t": options})
    assert two_ranks(refusal, case) == ["", ""]


@pytest.mark.parametrize(
    ("sharding", "message"),
    [
        (
            {"t": ParameterSharding("table_wise", "fused", [0]), "u": ParameterSharding("row_wise", "fused", [0, 1])},
            "table 't' must be sharded row_wise, got table_wise",
        ),
        (
            {"t": ParameterSharding("row_wise", "fused", [1]), "u": ParameterSharding("row_wise", "fused", [0, 1])},
            "table 't' must be on all 2 ranks, got [1]",
        ),
        ({"t": ParameterSharding("row_wise", "fused", [0, 1])}, "must name its tables ['t', 'u'], got ['t']"),
    ],
)
def test_plans_that_split_tables_otherwise_are_refused(two_ranks, sharding, message):
    plan = ShardingPlan({"sparse": EmbeddingModuleShardingPlan(sharding)})
    for told in two_ranks(refusal, _CASE, None, plan):
        assert message in told


def bad_input(rank: int, size: int) -> list[str]:
    told = []
    with new_store() as store:
        model = spread_model(spread.Wrapped(spread.collection(_CASE, store)))
        good = batch_of(_CASE, 0, 0, 4)
        for features in (
            KeyedJaggedTensor(["f"], torch.tensor([1]), lengths=torch.tensor([1])),
            KeyedJaggedTensor(["f", "g"], torch.tensor([1.0, 2.0]), lengths=torch.tensor([1, 1])),
            KeyedJaggedTensor(["f", "g"], torch.tensor([1, 2]), lengths=torch.tensor([3, -1])),
            KeyedJaggedTensor(["f", "g"], torch.tensor([1, 2]), lengths=torch.tensor([1, 2])),
            torch.ones(3),
            KeyedJaggedTensor(["f", "g", "f"], torch.tensor([1, 2, 3]), lengths=torch.tensor([1, 1, 1])),
        ):
            try:
                model(features)
            except (KeyError, TypeError, ValueError) as error:
                told.append(f"{type(error).__name__}: {error}")
        model(good)  # all ranks have refused alike, and go on
    return told


def test_bad_input_is_refused_before_anything_is_sent(two_ranks):
    for told in two_ranks(bad_input, 2):
        kinds = [message.split(":")[0] for message in told]
        assert kinds == ["KeyError", "TypeError", "ValueError", "ValueError", "TypeError", "ValueError"]
        assert "no feature 'g' in the input" in told[0]
        assert "lengths must not be negative" in told[2]
        assert "keys must be unique" in told[5]
        assert "sum to the number of values, 2, got 3" in told[3]


def top_level(rank: int, size: int) -> tuple[list[str], bool]:
    """A collection that is the whole model, as in TorchRec's own tests, and one that several modules have."""
    with new_store() as store:
        model = spread_model(spread.collection(_CASE, store))
        features = batch_of(_CASE, 0, *spread.share(_CASE, rank, size))
        found = model(features)
        found["f"].sum().backward()
        shared = spread.collection(_CASE, store)
        twice = spread_model(nn.ModuleList([spread.Wrapped(shared), spread.Wrapped(shared)]))
        again = twice.module[0](features) + twice.module[1](features)
        # TorchRec 1.4 shards it for each place.
        at_places = [place.sparse.collection for place in twice.module]
        return found.keys(), all(at_place is shared for at_place in at_places) and bool(again.any())


def test_a_collection_may_be_the_whole_model_or_at_two_places(two_ranks):
    assert two_ranks(top_level, 2) == [(["f", "g"], True)] * 2


def come_to_life(rank: int, size: int) -> int:
    with new_store() as store:
        ebc = damo.EmbeddingBagCollection([_bags("t", "f")], device="meta", store=store)
        model = spread_model(spread.Wrapped(ebc))
        model(batch_of(Case(), 0)).sum().backward()
        return len(store.table("t"))


def test_a_collection_on_the_meta_device_comes_to_life(two_ranks):
    assert all(two_ranks(come_to_life, 2))
