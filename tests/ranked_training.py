"""A small model over this rank's rows, and what is left of them: for tests of what several ranks keep.

Until tables are sharded by modules, each rank trains the ids that are its own, in a collection that knows of no others.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec.distributed.mixing import rank_of
from damo_torchrec.modules import collection
from damo_torchrec.tensors import address

DIM, IDS = 4, 3000


class Model(nn.Module):
    """Two tables and a dense layer, whose gradients are averaged."""

    def __init__(self, store: damo.EmbeddingStore, options: damo.TableOptions | None = None) -> None:
        super().__init__()
        if dist.is_initialized():  # in a rank's own process, which trains rows of its own here
            collection._check_one_process = lambda: None
        self.sparse = damo.EmbeddingBagCollection(
            [EmbeddingBagConfig(name=n, embedding_dim=DIM, num_embeddings=IDS, feature_names=[n]) for n in ("a", "b")],
            store=store,
            optimizer_type=torch.optim.Adam,
            optimizer_kwargs={"lr": 0.05},
            table_options=None if options is None else {"a": options, "b": options},
        )
        torch.manual_seed(3)
        self.over = nn.Linear(2 * DIM, 1)

    def forward(self, batch: KeyedJaggedTensor) -> torch.Tensor:
        return self.over(self.sparse(batch).values())


def world() -> tuple[int, int]:
    """This rank and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def ids_at(step: int, n: int = 64) -> torch.Tensor:
    """Those of a global batch."""
    return torch.randint(-IDS, IDS, (n,), generator=torch.Generator().manual_seed(step))


def batch_of(ids: torch.Tensor) -> KeyedJaggedTensor:
    """One that looks each id up in both tables, by itself."""
    lengths = torch.ones(2 * len(ids), dtype=torch.int64)
    return KeyedJaggedTensor(["a", "b"], torch.cat([ids, ids]), lengths=lengths)


def train(model: Model, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """The steps from `first` up to `last`. Each row's updates depend on the global batches alone."""
    rank, size = world()
    for step in range(first, last):
        ids = ids_at(step)
        own = ids[rank_of(ids, size) == rank]
        optimizer.zero_grad()
        out = model.sparse(batch_of(own)).values()
        (out * (1 + step % 7)).sum().backward()
        model.over.weight.grad = torch.full_like(model.over.weight, 0.1 * step)
        model.over.bias.grad = torch.ones_like(model.over.bias)
        optimizer.step()


def rows_of(store: damo.EmbeddingStore) -> dict[str, Any]:
    """All that there is of the rows in a store: by table the iteration and, by id, weights, state, counts."""
    found: dict[str, Any] = {}
    ids = torch.arange(-IDS, IDS)
    for name, table in store.tables().items():
        metadata = table.metadata(ids)
        columns = (ids, metadata.exists, metadata.updates, metadata.last_step, metadata.sightings)
        numbers = zip(
            *(column.tolist() for column in columns), table.get(ids).tolist(), _state(table, ids), strict=True
        )
        rows = {number[0]: number[1:] for number in numbers if number[1] or number[3]}
        found[name] = (table.iter, len(table), rows)
    return found


def _state(table: damo.Table, ids: torch.Tensor) -> list[list[float]]:
    engine, index = table.session.engine, table.opened.index
    state = torch.empty(len(ids), engine.state_size(index))
    engine.describe(index, address(ids), len(ids), state=address(state), headers=0, contains=0)
    return state.tolist()


def joined(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all ranks: each id is on one of them."""
    tables = {}
    for name in found[0]:
        (iteration,) = {rank[name][0] for rank in found}
        rows: dict[int, Any] = {}
        for rank in found:
            assert not rows.keys() & rank[name][2].keys()
            rows.update(rank[name][2])
        tables[name] = (iteration, sum(rank[name][1] for rank in found), rows)
    return tables


def session(
    rank: int,
    root: Path,
    last: int,
    then: Callable[..., Any] | None = None,
    options: damo.TableOptions | None = None,
    **opening: Any,
) -> Any:
    """Opens the stores, trains up to `last` and closes them; returns the rows, or does `then` in place of that."""
    store = damo.distributed.open_store(root, memory_budget="64MiB", **opening)
    model = Model(store, options)
    optimizer = torch.optim.Adam(model.over.parameters(), lr=0.01)
    train(model, optimizer, store.step, last)
    if then is not None:
        return then(rank, store, model, optimizer)
    found = rows_of(store)
    store.close()
    return found


def respread(rank: int, root: Path, last: int, *args: Any) -> Any:
    """The same with rows of another number of ranks."""
    return session(rank, root, last, *args, respread=True)


def to_the_end(root: Path, last: int, before_step: Callable[[int], None] = lambda step: None) -> Any:
    """Goes on to `last` from what is there, with a checkpoint at every other step; returns what there is then."""
    store = damo.distributed.open_store(root, memory_budget="64MiB")
    model = Model(store)
    optimizer = torch.optim.Adam(model.over.parameters(), lr=0.01)
    manager = damo.distributed.CheckpointManager(model, every_steps=2, keep=2)
    found = manager.restore(optimizer=optimizer)
    with manager:
        for step in range(found.step if found else 0, last):
            before_step(step)
            train(model, optimizer, step, step + 1)
            if dist.is_initialized():
                dist.barrier()
            manager.step(step + 1, optimizer=optimizer)
    result = rows_of(store), dense_of(model, optimizer)
    store.close()
    return result


def dense_of(model: Model, optimizer: torch.optim.Optimizer) -> Any:
    """What of a model and its optimizer is no row, to be compared."""
    state = {k: {n: v.tolist() for n, v in s.items()} for k, s in optimizer.state_dict()["state"].items()}
    rates = [group["lr"] for group in optimizer.param_groups]
    return model.over.weight.tolist(), model.over.bias.tolist(), state, rates


def crash(store: damo.EmbeddingStore) -> None:
    """Leaves a store as a process that is killed does, but for its lock."""
    store.session.give_up_rows()
