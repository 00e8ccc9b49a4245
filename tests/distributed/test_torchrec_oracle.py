"""TorchRec's own EmbeddingBagCollection, row-wise sharded over the same ranks, on the same weights."""

import pytest
import torch
import torchrec
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, get_default_sharders, row_wise
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import damo_torchrec as damo
import spread

_ROWS, _DIM, _LR = 40, 8, 0.5


def _tables(pooling: str) -> list[EmbeddingBagConfig]:
    of = PoolingType[pooling]
    return [
        EmbeddingBagConfig(name="t", embedding_dim=_DIM, num_embeddings=_ROWS, feature_names=["f", "g"], pooling=of),
        EmbeddingBagConfig(name="u", embedding_dim=_DIM, num_embeddings=_ROWS, feature_names=["h"], pooling=of),
    ]


def _weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(_ROWS, _DIM, generator=generator) for name in ("t", "u")}


def _features(rank: int, step: int, weighted: bool, variable: bool) -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    bags = {"f": 2, "g": 5, "h": 3} if variable else dict.fromkeys("fgh", 4)
    lengths = torch.randint(0, 4, (sum(bags.values()),), generator=generator)
    n = int(lengths.sum())
    samples = torch.stack([torch.randint(0, k, (5,), generator=generator) for k in bags.values()])
    return KeyedJaggedTensor(
        keys=["f", "g", "h"],
        values=torch.randint(0, _ROWS, (n,), generator=generator),
        weights=torch.rand(n, generator=generator) + 0.5 if weighted else None,
        lengths=lengths if variable or step == 0 else lengths.view(3, 4),  # TorchRec takes both
        stride_per_key_per_rank=[[k] for k in bags.values()] if variable else None,
        inverse_indices=(["f", "g", "h"], samples) if variable else None,
    )


def torchrecs(rank: int, size: int, weighted: bool, pooling: str) -> nn.Module:
    ebc = torchrec.EmbeddingBagCollection(_tables(pooling), is_weighted=weighted)
    apply_optimizer_in_backward(torch.optim.SGD, ebc.parameters(), {"lr": _LR})
    sharder = EmbeddingBagCollectionSharder()
    by_rows = construct_module_sharding_plan(
        ebc, {name: row_wise() for name in ("t", "u")}, sharder, local_size=size, world_size=size, device_type="cpu"
    )
    plan = ShardingPlan({"sparse": by_rows})
    model = DistributedModelParallel(spread.Wrapped(ebc), plan=plan, sharders=get_default_sharders())
    share = _ROWS // size
    with torch.no_grad():  # sharding has drawn new ones
        for name, rows in model.named_parameters():
            rows.copy_(_weights()[name.split(".")[-2]][rank * share : (rank + 1) * share])
    return model


def ours(store: damo.EmbeddingStore, rank: int, size: int, weighted: bool, pooling: str) -> nn.Module:
    made = (torch.optim.SGD, {"lr": _LR})
    ebc = damo.EmbeddingBagCollection(_tables(pooling), *made, is_weighted=weighted, store=store)
    ids = torch.arange(_ROWS)
    own = damo.distributed.rank_of(ids, size) == rank
    for name, rows in _weights().items():
        store.table(name).set(ids[own], rows[own])
    return DistributedModelParallel(spread.Wrapped(ebc), sharders=damo.distributed.sharders())


def compare(rank: int, size: int, weighted: bool, pooling: str, variable: bool) -> None:
    with spread.new_store() as store:
        theirs, mine = torchrecs(rank, size, weighted, pooling), ours(store, rank, size, weighted, pooling)
        for step in range(3):
            features = _features(rank, step, weighted, variable)
            expected, found = theirs(features), mine(features)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            # The rows after it are compared by the values of the next step.
            expected.pow(2).mean().backward()
            found.pow(2).mean().backward()


@pytest.mark.parametrize(
    ("weighted", "pooling", "variable"),
    [(False, "SUM", False), (False, "MEAN", False), (True, "SUM", False), (False, "SUM", True), (False, "MEAN", True)],
)
def test_values_and_updates_are_those_of_torchrecs(two_ranks, weighted, pooling, variable):
    two_ranks(compare, 2, weighted, pooling, variable)


def compare_sequences(rank: int, size: int) -> None:
    tables = [EmbeddingConfig(name="t", embedding_dim=_DIM, num_embeddings=_ROWS, feature_names=["f", "h"])]
    theirs = torchrec.EmbeddingCollection(tables)
    theirs.embeddings["t"].weight.data.copy_(_weights()["t"])
    ids = torch.arange(_ROWS)
    own = damo.distributed.rank_of(ids, size) == rank
    with spread.new_store() as store:
        collection = damo.EmbeddingCollection(tables, torch.optim.SGD, {"lr": _LR}, store=store)
        store.table("t").set(ids[own], _weights()["t"][own])
        mine = DistributedModelParallel(nn.Sequential(collection), sharders=damo.distributed.sharders())
        for step in range(2):  # lengths are a vector and then a matrix
            features = _features(rank, step, weighted=False, variable=False)
            expected, found = theirs(features), mine(features)
            for name in ("f", "h"):
                assert torch.equal(found[name].values(), expected[name].values())
                assert torch.equal(found[name].lengths(), expected[name].lengths())


def test_sequences_are_those_of_torchrec(two_ranks):
    two_ranks(compare_sequences, 2)
