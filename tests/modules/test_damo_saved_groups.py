"""Groups of Embeddings that were given none, where an earlier start or a saved model says which they had."""

import pytest
import torch
from torch import nn

import damo_torchrec as damo
from damo_torchrec import Embedding
from support import small_store

UNIFORM, ADAM = {"name": "uniform"}, {"name": "adam", "gamma": 0.01}
SGD = {"name": "sgd", "gamma": 1.0}


def train(module, key=5):
    module(torch.tensor([[key]])).sum().backward()


def named(*names, optimizers=None):
    return nn.ModuleDict({name: Embedding(4, optimizer=(optimizers or {}).get(name, SGD)) for name in names})


def groups(model):
    return {name: module.group for name, module in model.items()}


def rows(model):
    return {name: module(torch.tensor([5])).flatten().tolist() for name, module in model.items()}


def test_a_start_that_is_run_again_with_its_model_changes_nothing(tmp_path):
    model = named("a", "b")
    with damo.damo_embedding_init(model, tmp_path / "rows") as store:
        train(model["b"])
        expected = model["b"](torch.tensor([5])).detach()
        model["c"] = Embedding(4, optimizer=SGD)
        assert damo.damo_embedding_init(model, tmp_path / "rows") is store
        assert groups(model) == {"a": 0, "b": 1, "c": 2}
        assert torch.equal(model["b"](torch.tensor([5])).detach(), expected)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of the modules user, item and shop, and their rows."""
    model = named("user", "item", "shop")
    with damo.damo_embedding_init(model, tmp_path / "first"):
        for module in model.values():
            train(module)
        return damo.save_model(model, tmp_path / "saved"), rows(model)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_modules_in_another_order_have_their_own_rows(tmp_path, saved, strict, used):
    path, expected = saved
    model = named("item", "user", "shop")
    with damo.damo_embedding_init(model, tmp_path / "second"):
        if used:
            train(model["item"], 6)
        damo.load_model(path, model, strict=strict)
        assert groups(model) == {"item": 1, "user": 0, "shop": 2}
        assert rows(model) == {name: expected[name] for name in model}
        train(model["item"])
        assert {name for name, row in rows(model).items() if row != expected[name]} == {"item"}


@pytest.mark.parametrize(
    ("names", "missing", "unexpected"),
    [
        (("user", "shop"), [], ["group_1_dim_4"]),
        (("user", "new", "shop"), ["group_3_dim_4"], ["group_1_dim_4"]),
        (("new", "user", "item", "shop"), ["group_4_dim_4"], []),
    ],
)
@pytest.mark.parametrize("started", [False, True])
def test_a_model_of_other_modules_is_refused_or_has_the_right_rows(
    tmp_path, saved, names, missing, unexpected, started
):
    path, expected = saved
    model = named(*names)
    with small_store(tmp_path / "second") as store:
        damo.set_default_store(store)
        if started:
            damo.damo_embedding_init(model, tmp_path / "second")
        before = groups(model)
        with pytest.raises(damo.SchemaMismatchError, match=r"differs from the one saved .*strict=False"):
            damo.load_model(path, model)
        assert groups(model) == before
        found = damo.load_model(path, model, strict=False)
        if not started:  # then the start has made a table that the model has no more
            assert (found.missing_tables, found.unexpected_tables) == (missing, unexpected)
        assert len(found.missing_tables) == len(missing)
        now = rows(model)
        assert now == {**now, **{name: expected[name] for name in names if name != "new"}}
        assert "new" not in names or model["new"].group not in (0, 1, 2)


def test_rows_that_are_reloaded_are_of_the_modules_that_had_them(tmp_path, saved, caplog):
    path, expected = saved
    model = named("new", "shop", "user")
    with damo.damo_embedding_init(model, tmp_path / "second", reload=path):
        assert groups(model) == {"new": 3, "shop": 2, "user": 0}
        now = rows(model)
        assert now == {**now, "shop": expected["shop"], "user": expected["user"]}
    assert f"the model saved in {path} has no new: these begin without rows" in caplog.messages
    places = nn.ModuleList(named("user", "item", "shop").values())  # none of whose names was saved
    with damo.damo_embedding_init(places, tmp_path / "third", reload=path):
        assert [module.group for module in places] == [0, 1, 2]


def test_groups_that_a_store_cannot_have_any_more_are_refused(tmp_path):
    optimizers = {"a": SGD, "b": ADAM}
    model = named("a", "b", optimizers=optimizers)
    with damo.damo_embedding_init(model, tmp_path / "first"):
        train(model["b"])
        path, expected = damo.save_model(model, tmp_path / "saved"), rows(model)
    model = named("b", "a", optimizers=optimizers)
    with damo.damo_embedding_init(model, tmp_path / "second"):
        with pytest.raises(damo.SchemaMismatchError, match="takes the checkpoint as reload, with a new workdir"):
            damo.load_model(path, model)
        assert groups(model) == {"b": 0, "a": 1}
        train(model["b"])
    model = named("b", "a", optimizers=optimizers)
    with damo.damo_embedding_init(model, tmp_path / "third", reload=path):
        damo.load_model(path, model)
        assert rows(model) == {name: expected[name] for name in model}
