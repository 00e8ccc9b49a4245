"""A run that goes on after its tables were renamed, dropped or converted: dense part, optimizer and learning rates."""

import pytest
import torch

import damo_torchrec as damo
from support import config, kjt, small_store


class Model(torch.nn.Module):
    def __init__(self, store, names, optimizer=torch.optim.Adagrad, lr=0.1, dim=4):
        super().__init__()
        tables = [config(name, dim) for name in names]
        self.ebc = damo.EmbeddingBagCollection(tables, optimizer, {"lr": lr}, store=store)
        self.dense = torch.nn.Linear(dim, 1)

    def forward(self, ids):
        out = self.ebc(kjt({table.name: ids for table in self.ebc.embedding_bag_configs()}))
        return self.dense(sum(out.to_dict().values()))


def step(model, optimizer):
    optimizer.zero_grad()
    model([[1], [2]]).sum().backward()
    optimizer.step()


@pytest.fixture
def saved(tmp_path):
    """A store's path, its checkpoint of two steps with other learning rates than at first, and its dense part."""
    path = tmp_path / "store"
    with small_store(path) as store:
        model = Model(store, ["a", "old"])
        optimizer = torch.optim.Adam(model.parameters())
        for group in model.ebc.fused_optimizer.param_groups:
            group["lr"] = 0.025
        for _ in range(2):
            step(model, optimizer)
        checkpoint = damo.save_model(model, optimizer=optimizer)
        return path, checkpoint, {name: value.clone() for name, value in model.dense.state_dict().items()}


def resume(store, checkpoint, *args, **options):
    model = Model(store, *args, **options)
    optimizer = torch.optim.Adam(model.parameters())
    damo.load_model(checkpoint, model, optimizer=optimizer)
    return model, optimizer


def test_after_a_conversion_the_dense_part_is_loaded_and_rows_stay_converted(saved):
    path, checkpoint, dense = saved
    with small_store(path) as store:
        weights = store.table("a").get([1, 2])
        for name in ("a", "old"):
            store.convert_table(name, optimizer=torch.optim.AdamW)
        model, optimizer = resume(store, checkpoint, ["a", "old"], torch.optim.AdamW)
        assert all(torch.equal(value, dense[name]) for name, value in model.dense.state_dict().items())
        assert torch.equal(store.table("a").get([1, 2]), weights)
        assert {group["lr"] for group in model.ebc.fused_optimizer.param_groups} == {0.025}
        assert store.step == 2
        step(model, optimizer)
        again = damo.save_model(model, optimizer=optimizer)
    with small_store(path) as store:
        model, optimizer = resume(store, again, ["a", "old"], torch.optim.AdamW)
        assert store.step == 3


def test_after_a_rename_learning_rates_follow(saved):
    path, checkpoint, _ = saved
    with small_store(path) as store:
        rows = store.table("old").get([1, 2])
        store.rename_table("old", "between")
        store.rename_table("between", "new")
        model, _ = resume(store, checkpoint, ["a", "new"])
        assert {group["lr"] for group in model.ebc.fused_optimizer.param_groups} == {0.025}
        assert torch.equal(store.table("new").get([1, 2]), rows)


def test_after_a_drop_the_feature_is_gone(saved):
    path, checkpoint, _ = saved
    with small_store(path) as store:
        store.drop_table("old")
        model, optimizer = resume(store, checkpoint, ["a"])
        assert list(store.tables()) == ["a"]
        step(model, optimizer)


def test_once_rows_have_changed_it_goes_back_or_is_refused(saved):
    path, checkpoint, _ = saved
    with small_store(path) as store:
        store.convert_table("a", optimizer="ADAM")
        store.convert_table("old", optimizer="ADAM")
        model, optimizer = resume(store, checkpoint, ["a", "old"], torch.optim.Adam)
        step(model, optimizer)
        with pytest.raises(
            damo.SchemaMismatchError, match=r"optimizer .*ADAGRAD.*, got .*ADAM.*convert_table\('a', optimizer='ADAM'\)"
        ):
            damo.load_model(checkpoint, model, optimizer=optimizer)
        assert store.step == 3


@pytest.mark.parametrize("strict", [True, False])
def test_rows_of_a_dropped_table_come_back_to_one_that_was_made_anew(saved, strict):
    path, checkpoint, _ = saved
    with small_store(path) as store:
        before = store.table("old").get([1, 2])
        store.drop_table("old")
        model = Model(store, ["a", "old"])
        damo.load_model(checkpoint, model, strict=strict)
        assert torch.equal(store.table("old").get([1, 2]), before)
        assert store.table("old").contains([1, 2]).all()


def test_a_state_dict_of_a_renamed_table_is_that_of_its_name(saved):
    path, _, _ = saved
    with small_store(path) as store:
        model = Model(store, ["a", "old"])
        before = model.state_dict()
        del model
        store.rename_table("old", "between")
        store.rename_table("a", "old")
        store.rename_table("between", "a")
        Model(store, ["a", "old"]).load_state_dict(before)
