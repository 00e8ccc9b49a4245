"""A step of pooled tables whose rows are spread over ranks, and TorchRec's, sharded by rows, in turns."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchrec
from torch import distributed, nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, get_default_sharders, row_wise
from torchrec.distributed.types import ShardingPlan

import damo_torchrec as damo
from parts.distributed.traffic import Traffic

OURS, TORCHRECS = "damo_torchrec", "TorchRec, row-wise"


@dataclass(frozen=True)
class Case:
    """What is trained: `batch_size` samples of each rank, each with `bag` ids of each table."""

    tables: int
    rows: int
    dim: int
    batch_size: int
    bag: int
    turns: int
    steps: int

    def configs(self) -> list[EmbeddingBagConfig]:
        names = [f"t{i}" for i in range(self.tables)]
        return [
            EmbeddingBagConfig(name=name, embedding_dim=self.dim, num_embeddings=self.rows, feature_names=[name])
            for name in names
        ]

    def batch(self, rank: int, step: int) -> KeyedJaggedTensor:
        rng = np.random.default_rng((rank, step))
        bags = self.tables * self.batch_size
        return KeyedJaggedTensor(
            keys=[f"t{i}" for i in range(self.tables)],
            values=torch.from_numpy(rng.integers(0, self.rows, bags * self.bag)),
            lengths=torch.full((bags,), self.bag, dtype=torch.int32),
        )

    def formula(self, ranks: int) -> float:
        """Bytes that a rank sends in a step: ids, lengths, sums and their gradients, and 32 at its end."""
        bags = self.tables * self.batch_size
        others = ranks - 1
        return others * (8 * bags * self.bag / ranks + 4 * bags + 2 * 4 * bags * self.dim)


class Holder(nn.Module):
    """`DistributedModelParallel` replaces what is below a module."""

    def __init__(self, sparse: nn.Module) -> None:
        super().__init__()
        self.sparse = sparse

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.sparse(features).values()


def ours(case: Case, store: damo.EmbeddingStore) -> nn.Module:
    ebc = damo.EmbeddingBagCollection(case.configs(), torchrec.optim.RowWiseAdagrad, {"lr": 0.01}, store=store)
    return DistributedModelParallel(Holder(ebc), sharders=damo.distributed.sharders())


def torchrecs(case: Case, ranks: int) -> nn.Module:
    ebc = torchrec.EmbeddingBagCollection(case.configs())
    apply_optimizer_in_backward(torchrec.optim.RowWiseAdagrad, ebc.parameters(), {"lr": 0.01})
    tables = {config.name: row_wise() for config in case.configs()}
    plan = construct_module_sharding_plan(
        ebc, tables, EmbeddingBagCollectionSharder(), local_size=ranks, world_size=ranks, device_type="cpu"
    )
    return DistributedModelParallel(Holder(ebc), plan=ShardingPlan({"sparse": plan}), sharders=get_default_sharders())


def step(model: nn.Module, features: KeyedJaggedTensor) -> None:
    model(features).square().sum().backward()


def serve(rank: int, ranks: int, meet: str, case: Case, results: Any) -> None:
    """One rank's part. Rank 0 puts seconds of each step by contestant and turn, and bytes of a step, into `results`."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=ranks)
    options = damo.StoreOptions(backend="memory", num_threads=1)
    with damo.EmbeddingStore(memory_budget="2GiB", options=options) as store:
        contestants = {OURS: ours(case, store), TORCHRECS: torchrecs(case, ranks)}
        sent = {}
        for name, model in contestants.items():
            for number in range(case.steps):  # every id has its row then, or most
                step(model, case.batch(rank, number))
            with Traffic() as traffic:
                step(model, case.batch(rank, 0))
            sent[name] = traffic.sent
        seconds: dict[str, list[Sequence[float]]] = {name: [] for name in contestants}
        for _ in range(case.turns):
            for name, model in contestants.items():
                seconds[name].append(take_turn(model, case, rank))
        if rank == 0:
            results.put((seconds, sent))
        distributed.barrier()
    distributed.destroy_process_group()


def take_turn(model: nn.Module, case: Case, rank: int) -> Sequence[float]:
    """Seconds of each step; a step ends when this rank's does, which needs all others."""
    batches = [case.batch(rank, number) for number in range(case.steps)]
    distributed.barrier()
    seconds = []
    for features in batches:
        began = time.perf_counter()
        step(model, features)
        seconds.append(time.perf_counter() - began)
    return seconds
