"""Collections whose rows are spread over ranks, beside the same ones in a single process: the same steps of both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torchrec
from torch import nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

import damo_torchrec as damo
from damo_torchrec.modules.jagged_input import by_key


@dataclass(frozen=True)
class Case:
    """Tables, and how they are trained.

    Attributes:
        tables: by name, (features, pooling).
        options: by table.
        sequences: whether rows are not pooled.
        weights: "" for none, "given" or "learned".
        idle: ranks whose share of each batch is empty, where there are others.
        between: called with the module and the store's session before each step.
    """

    tables: Mapping[str, tuple[Sequence[str], str]] = field(default_factory=lambda: {"t": (["f"], "SUM")})
    optimizer: tuple[type[torch.optim.Optimizer], Mapping[str, Any]] = (torch.optim.SGD, {"lr": 0.1})
    options: Mapping[str, damo.TableOptions] = field(default_factory=dict)
    store: Mapping[str, Any] = field(default_factory=dict)
    sequences: bool = False
    weights: str = ""
    batch: int = 8
    steps: int = 3
    dim: int = 4
    ids: int = 40
    longest: int = 4
    idle: Sequence[int] = ()
    between: Callable[[nn.Module, damo.EmbeddingStore, int], None] | None = None

    def features(self) -> list[str]:
        return list(dict.fromkeys(f for features, _ in self.tables.values() for f in features))

    def outputs(self) -> int:
        return sum(len(features) for features, _ in self.tables.values())


@dataclass(frozen=True)
class Trained:
    """What came of it: outputs and gradients of weights by step, and rows ``(weights, iter)`` by table and id."""

    outputs: list[torch.Tensor]
    weight_grads: list[torch.Tensor]
    rows: dict[tuple[str, int], torch.Tensor]
    iters: dict[str, int]


def new_store(**more: Any) -> damo.EmbeddingStore:
    options = {"backend": "memory", "num_threads": 1, **more}
    budget = options.pop("memory_budget", "64MiB")
    path = options.pop("path", None)
    return damo.EmbeddingStore(path, memory_budget=budget, options=damo.StoreOptions(**options))


def collection(case: Case, store: damo.EmbeddingStore) -> nn.Module:
    kind, config = (
        (damo.EmbeddingCollection, EmbeddingConfig)
        if case.sequences
        else (damo.EmbeddingBagCollection, EmbeddingBagConfig)
    )
    tables = []
    for name, (features, pooling) in case.tables.items():
        pooled = {} if case.sequences else {"pooling": torchrec.PoolingType[pooling]}
        made = config(name=name, embedding_dim=case.dim, num_embeddings=100, feature_names=list(features), **pooled)
        tables.append(made)
    more = {} if case.sequences else {"is_weighted": bool(case.weights)}
    return kind(tables, *case.optimizer, store=store, table_options=case.options, **more)


class Wrapped(nn.Module):
    """A model that is nothing but its collection: `DistributedModelParallel` replaces what is below a module."""

    def __init__(self, sparse: nn.Module) -> None:
        super().__init__()
        self.sparse = sparse

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """All outputs as one matrix, or one list of rows."""
        found = self.sparse(features)
        if hasattr(found, "values") and not isinstance(found, dict) and hasattr(found, "keys"):
            values = found.values()
            if isinstance(values, torch.Tensor):
                return values
        return torch.cat([jagged.values() for jagged in found.values()])


def share(case: Case, rank: int, size: int) -> tuple[int, int]:
    """Which samples of a batch a rank has."""
    busy = [r for r in range(size) if size == 1 or r not in case.idle]
    if rank not in busy:
        return 0, 0
    n = len(busy)
    place = busy.index(rank)
    return case.batch * place // n, case.batch * (place + 1) // n


def batch_of(case: Case, step: int, begin: int = 0, end: int | None = None) -> KeyedJaggedTensor:
    """Some samples of a step's batch."""
    generator = torch.Generator().manual_seed(1000 + step)
    end = case.batch if end is None else end
    ids: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    lengths: list[int] = []
    for _ in case.features():
        for sample in range(case.batch):
            n = int(torch.randint(0, case.longest + 1, (), generator=generator))
            bag = torch.randint(0, case.ids, (n,), generator=generator) * 64 - 320
            its_weights = torch.rand(n, generator=generator) + 0.5
            if begin <= sample < end:
                ids.append(bag)
                weights.append(its_weights)
                lengths.append(n)
    none = torch.empty(0)
    return KeyedJaggedTensor(
        keys=case.features(),
        values=torch.cat([torch.empty(0, dtype=torch.int64), *ids]),
        lengths=torch.tensor(lengths, dtype=torch.int64),
        weights=torch.cat([none, *weights]) if case.weights else None,
        stride=end - begin,
    )


def coefficients(case: Case, step: int, begin: int, end: int, features: KeyedJaggedTensor) -> torch.Tensor:
    """What the outputs of some samples are multiplied by in the loss."""
    if case.sequences:  # by the ids themselves, as rows stand by feature, then sample
        ids, _ = by_key(features)
        values = torch.cat([ids[f].float() for fs, _ in case.tables.values() for f in fs])
        return torch.sin(values + step).unsqueeze(1) * torch.arange(1, case.dim + 1)
    generator = torch.Generator().manual_seed(2000 + step)
    return torch.randn(case.batch, case.outputs() * case.dim, generator=generator)[begin:end]


def train(rank: int, case: Case, size: int = 1, group: bool = True) -> Trained:
    """Trains on this rank's share of each batch."""
    with new_store(**case.store) as store:
        model = Wrapped(collection(case, store))
        if group:
            model = DistributedModelParallel(model, sharders=damo.distributed.sharders())
        return steps(model, store, case, rank, size)


def steps(
    model: nn.Module, store: damo.EmbeddingStore, case: Case, rank: int, size: int, scale: float = 1.0
) -> Trained:
    outputs, grads = [], []
    begin, end = share(case, rank, size)
    for step in range(case.steps):
        if case.between is not None:
            case.between(model, store, step)
        features = batch_of(case, step, begin, end)
        if case.weights == "learned":
            features.weights().requires_grad_()
        values = model(features)
        outputs.append(values.detach().clone())
        loss = (values * coefficients(case, step, begin, end, features)).sum()
        (loss * size * scale).backward()
        if case.weights == "learned":
            grads.append(features.weights().grad / size / scale)
    return Trained(outputs, grads, rows_of(store), {name: store.table(name).iter for name in store.tables()})


def rows_of(store: damo.EmbeddingStore) -> dict[tuple[str, int], torch.Tensor]:
    rows = {}
    for name in store.tables():
        for ids, weights in store.table(name).items():
            rows.update({(name, int(i)): row.clone() for i, row in zip(ids, weights, strict=True)})
    return rows


def as_one(parts: Sequence[Mapping[tuple[str, int], torch.Tensor]]) -> dict[tuple[str, int], torch.Tensor]:
    """The rows of all ranks. Each row is on one of them alone."""
    rows: dict[tuple[str, int], torch.Tensor] = {}
    for part in parts:
        assert not rows.keys() & part.keys()
        rows.update(part)
    return rows


def assert_same_rows(
    found: Mapping[tuple[str, int], torch.Tensor], expected: Mapping[tuple[str, int], torch.Tensor], within: float
) -> None:
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        torch.testing.assert_close(found[key], row, rtol=within, atol=within, msg=lambda m, k=key: f"{k}: {m}")
