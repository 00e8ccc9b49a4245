"""A model on several ranks that goes on with a feature more and another less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

import damo_torchrec as damo
import spread
from spread import Case

OLD, NEW = ("a", "b"), ("b", "c")


def case_of(tables: tuple[str, ...], **options: Any) -> Case:
    return Case({name: ([name], "SUM") for name in tables}, batch=8, **options)


class Ranker(nn.Module):
    """A layer for each table."""

    def __init__(self, store: damo.EmbeddingStore, tables: tuple[str, ...]) -> None:
        super().__init__()
        torch.manual_seed(len(store.tables()))
        self.sparse = spread.collection(case_of(tables), store)
        self.over = nn.ModuleDict({name: nn.Linear(4, 1) for name in tables})

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        pooled = self.sparse(features)
        return torch.cat([layer(pooled[name]) for name, layer in self.over.items()], dim=1)


class Trained:
    """A model of some tables over this rank's store, with its optimizer."""

    def __init__(self, rank: int, root: Path, tables: tuple[str, ...]) -> None:
        self.rank, self.case = rank, case_of(tables)
        self.store = damo.distributed.open_store(root, memory_budget="64MiB")
        self.model = DistributedModelParallel(Ranker(self.store, tables), sharders=damo.distributed.sharders())
        dense = [weight for name, weight in self.model.named_parameters() if ".over." in f".{name}"]
        self.optimizer = torch.optim.Adam(dense, lr=0.01)

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last):
            self.optimizer.zero_grad()
            batch = spread.batch_of(self.case, step, *spread.share(self.case, self.rank, 2))
            self.model(batch).square().sum().backward()
            self.optimizer.step()

    def layer(self, name: str) -> dict[str, list[Any]]:
        """What there is of a table's layer, its optimizer's state included."""
        named = {n: weight for n, weight in self.model.named_parameters() if f"over.{name}." in n}
        return {
            n.rpartition(".")[2]: [weight.tolist(), self.optimizer.state[weight]["exp_avg"].tolist()]
            for n, weight in named.items()
        }

    def rows(self, name: str) -> dict[tuple[str, int], list[float]]:
        return {key: row.tolist() for key, row in spread.rows_of(self.store).items() if key[0] == name}


def saved(rank: int, root: Path) -> Any:
    trained = Trained(rank, root, OLD)
    trained.steps(0, 4)
    damo.distributed.save_model(trained.model, optimizer=trained.optimizer, step=4)
    found = trained.layer("b"), trained.rows("a"), trained.rows("b")
    trained.store.close()
    return found


def changed(rank: int, root: Path) -> Any:
    trained = Trained(rank, root, NEW)
    refused = ""
    try:
        damo.distributed.load_model(trained.model, optimizer=trained.optimizer)
    except damo.SchemaMismatchError as error:
        refused = str(error)
    info = damo.distributed.load_model(trained.model, optimizer=trained.optimizer, strict=False)
    found = trained.layer("b"), trained.rows("a"), trained.rows("b")
    empty = len(trained.store.table("c"))
    trained.steps(4, 6)
    path = damo.distributed.save_model(trained.model, optimizer=trained.optimizer)
    again = damo.distributed.load_model(trained.model, path, optimizer=trained.optimizer)
    known = len(trained.store.table("c"))
    trained.store.close()
    return refused, info.incompatible, found, empty, (again.incompatible, again.rows["c"], known)


def test_what_fits_is_loaded_and_all_ranks_say_alike_what_does_not(two_ranks, tmp_path):
    before = two_ranks(saved, tmp_path / "store")
    after = two_ranks(changed, tmp_path / "store")
    assert [found for _, _, found, _, _ in after] == before
    rows = sum(known for *_, (_, _, known) in after)
    assert rows > 0
    for refused, incompatible, _, empty, again in after:
        assert "no tables ['c']" in refused
        assert "strict=False loads what fits" in refused
        assert incompatible.missing_keys == ["over.c.bias", "over.c.weight"]
        assert incompatible.unexpected_keys == ["over.a.bias", "over.a.weight"]
        assert (incompatible.missing_tables, incompatible.unexpected_tables) == (["c"], ["a"])
        assert [name.rpartition("over.")[2] for name in incompatible.missing_optimizer_keys] == ["c.bias", "c.weight"]
        assert [name.rpartition("over.")[2] for name in incompatible.unexpected_optimizer_keys] == [
            "a.bias",
            "a.weight",
        ]
        assert empty == 0
        assert again[:2] == (None, rows)


def differing(rank: int, root: Path) -> str:
    trained = Trained(rank, root, NEW)
    if rank == 1:
        trained.model.module.more = nn.Parameter(torch.zeros(2))
    try:
        damo.distributed.load_model(trained.model, strict=False)
    except damo.SchemaMismatchError as error:
        told = str(error)
    trained.store.close()
    return told


def test_ranks_whose_models_differ_are_refused(two_ranks, tmp_path):
    two_ranks(saved, tmp_path / "store")
    first, second = two_ranks(differing, tmp_path / "store")
    assert first == second
    assert first.startswith("ranks differ in what of ")


CHANGES: dict[str, Any] = {
    "rename": (lambda store: store.rename_table("a", "z"), ("z", "b"), {}),
    "drop": (lambda store: store.drop_table("a"), ("b",), {}),
    "convert": (
        lambda store: [store.convert_table(name, optimizer=torch.optim.Adam) for name in OLD],
        OLD,
        {"optimizer": (torch.optim.Adam, {"lr": 0.1})},
    ),
}


def with_tables_changed(rank: int, root: Path, what: str, setting: tuple[int, ...] = ()) -> Any:
    """Ranks that are `setting` set a row as well."""
    change, tables, options = CHANGES[what]
    store = damo.distributed.open_store(root, memory_budget="64MiB")
    change(store)
    if rank in setting:
        ids = [id for _, id in spread.rows_of(store)][:1]
        store.table("b").set(ids, torch.zeros(1, 4))
    model = nn.ModuleDict({"over": nn.ModuleDict({"b": nn.Linear(4, 1)})})
    model["sparse"] = spread.collection(case_of(tables, **options), store)
    sharded = DistributedModelParallel(model, sharders=damo.distributed.sharders())
    before = {key: row.tolist() for key, row in spread.rows_of(store).items()}
    told = ""
    try:
        info = damo.distributed.load_model(sharded, strict=False)
    except ValueError as error:
        told = str(error)
    after = {key: row.tolist() for key, row in spread.rows_of(store).items()}
    weight = model["over"]["b"].weight.tolist()
    if told:
        store.close()
        return told, before == after, weight
    path = damo.distributed.save_model(sharded, step=5)
    again = damo.distributed.load_model(sharded, path)
    store.close()
    return before == after, {name for name, _ in after}, info.incompatible.missing_tables, weight, again.step


@pytest.mark.parametrize("what", CHANGES)
def test_tables_that_were_changed_after_it_stay_so(what, two_ranks, tmp_path):
    layers = [layer for layer, _, _ in two_ranks(saved, tmp_path / "store")]
    for rank, (same, tables, missing, weight, step) in enumerate(
        two_ranks(with_tables_changed, tmp_path / "store", what)
    ):
        assert same
        assert tables == set(CHANGES[what][1])
        assert missing == []
        assert weight == layers[rank]["weight"][0]
        assert step == 5


def test_rows_that_would_stay_on_one_rank_alone_are_refused_on_all(two_ranks, tmp_path):
    two_ranks(saved, tmp_path / "store")
    (told, same, _), (other, same_there, _) = two_ranks(with_tables_changed, tmp_path / "store", "drop", (1,))
    assert told == other
    assert "nothing else was done, on the ranks [0] of 2 alone" in told
    assert same
    assert same_there
