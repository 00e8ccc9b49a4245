"""State dicts: small, bound to a store of the same schema, and a way in for TorchRec's weights."""

import copy
import io
import logging

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torchrec
from torch import nn
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

import damo_torchrec as damo
from support import config, kjt, random_kjt, small_store


def model(store, name="t", dim=4, seed_lr=0.1):
    return nn.ModuleDict(
        {
            "ebc": damo.EmbeddingBagCollection([config(name, dim)], torch.optim.SGD, {"lr": seed_lr}, store=store),
            "linear": nn.Linear(2, 1),
        }
    )


def test_it_holds_no_rows_and_some_kilobytes_of_tensors(memory_store):
    m = model(memory_store)
    m["ebc"](kjt({"t": [range(1000)]})).values().sum().backward()
    state = m.state_dict()
    assert list(state) == ["ebc._extra_state", "linear.weight", "linear.bias"]
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert state["ebc._extra_state"].numel() < 4000
    m.load_state_dict(state)
    assert list(m["ebc"].parameters()) == []


def test_a_store_of_another_model_is_refused(memory_store):
    state = model(memory_store).state_dict()
    with small_store(seed=1) as other, pytest.raises(damo.SchemaMismatchError, match=r"seed 0, but .* 1"):
        model(other).load_state_dict(state)
    with small_store() as other, pytest.raises(damo.SchemaMismatchError, match="tables"):
        model(other, dim=8).load_state_dict(state)
    with small_store() as other, pytest.raises(damo.SchemaMismatchError, match="tables"):
        model(other, "u").load_state_dict(state)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # what no_dist says
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch 2.9's writer
def test_distributed_checkpoints_are_loaded_over_another_store_and_at_another_step(tmp_path):
    with small_store(tmp_path / "one", seed=0) as store:
        saved = model(store)
        for i in range(12):
            saved["ebc"](kjt({"t": [[i]]})).values().sum().backward()
        dcp.save({"model": saved.state_dict()}, checkpoint_id=tmp_path / "dcp", no_dist=True)
        expected = saved["linear"].weight.detach().clone()
    with small_store(tmp_path / "another-with-a-longer-name", seed=0) as store:
        fresh = model(store)
        state = {"model": fresh.state_dict()}
        dcp.load(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
        fresh.load_state_dict(state["model"])
        assert torch.equal(fresh["linear"].weight, expected)


def test_a_saved_state_dict_warns_that_it_has_no_rows_and_loads_as_any(memory_store):
    m, file = model(memory_store), io.BytesIO()
    with pytest.warns(UserWarning, match="has no rows: .*save_model and load_model keep a model with its rows"):
        torch.save({"model": copy.deepcopy(m.state_dict())}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)["model"]
    assert type(state["ebc._extra_state"]) is torch.Tensor
    m.load_state_dict(state)
    torch.save(state, io.BytesIO())  # whoever has it has been told


def test_copies_of_a_state_dict_in_memory_and_our_own_checkpoints_are_not_warned_of(tmp_path):
    with small_store(tmp_path / "store") as store:
        m = model(store)
        kept = copy.deepcopy(m.state_dict())
        torch.testing.assert_close(kept["ebc._extra_state"], m.state_dict()["ebc._extra_state"])
        m.load_state_dict(kept)
        damo.load_model(damo.save_model(m), m)


@pytest.mark.parametrize("extra", [torch.tensor([1, 2], dtype=torch.uint8), "x", torch.tensor(list(b"{}"))])
def test_an_extra_state_of_something_else_is_refused(memory_store, extra):
    with pytest.raises(ValueError, match="_extra_state is none of a collection's"):
        model(memory_store)["ebc"].load_state_dict({"_extra_state": extra})


def test_another_step_is_logged(memory_store, caplog):
    m = model(memory_store)
    state = m.state_dict()
    m["ebc"](kjt({"t": [[1]]})).values().sum().backward()
    with caplog.at_level(logging.WARNING):
        m.load_state_dict(state)
    assert "of step 0" in caplog.text
    assert "of step 1" in caplog.text


def test_without_ours_a_strict_load_misses_it(memory_store):
    m = model(memory_store)
    state = {name: value for name, value in m.state_dict().items() if "ebc" not in name}
    with pytest.raises(RuntimeError, match=r"Missing key.*ebc._extra_state"):
        m.load_state_dict(state)
    m.load_state_dict(state, strict=False)


@pytest.mark.parametrize("sequence", [False, True])
def test_a_torchrec_models_weights_become_rows(store, sequence):
    if sequence:
        configs = [torchrec.EmbeddingConfig(name=n, embedding_dim=4, num_embeddings=70_000) for n in "ab"]
        theirs, ours = torchrec.EmbeddingCollection(configs), damo.EmbeddingCollection(configs, store=store)
        weights = theirs.embeddings
    else:
        configs = [config(n, 4, num_embeddings=70_000) for n in "ab"]
        theirs, ours = torchrec.EmbeddingBagCollection(configs), damo.EmbeddingBagCollection(configs, store=store)
        weights = theirs.embedding_bags
    wrapped = nn.ModuleDict({"tables": theirs, "linear": nn.Linear(2, 1)})
    assert nn.ModuleDict({"tables": ours, "linear": nn.Linear(2, 1)}).load_state_dict(wrapped.state_dict())
    for table in ours.tables():
        ids, rows = table.to_torch()
        assert torch.equal(ids, torch.arange(70_000))
        assert torch.equal(rows, weights[table.name].weight.detach())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.ones(3, 5), r"b.weight must be floating point \(n, 4\), got torch.float32 \(3, 5\)"),
        (torch.ones(3, 4).long(), r"b.weight must be floating point"),
        (torch.full((3, 4), float("nan")), r"b.weight must be finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_no_table(memory_store, bad, message):
    ours = damo.EmbeddingBagCollection([config("a", 4), config("b", 4)], store=memory_store)
    with pytest.raises(RuntimeError, match=message):
        ours.load_state_dict({"embedding_bags.a.weight": torch.ones(3, 4), "embedding_bags.b.weight": bad})
    assert [len(memory_store.table(name)) for name in "ab"] == [0, 0]


@pytest.mark.parametrize(
    ("names", "message"),
    [("a", r"Missing key.*embedding_bags.b.weight"), ("abc", r"Unexpected key.*embedding_bags.c.weight")],
)
def test_a_strict_load_tells_of_tables_too_few_or_too_many(memory_store, names, message):
    ours = damo.EmbeddingBagCollection([config("a", 4), config("b", 4)], store=memory_store)
    weights = {f"embedding_bags.{name}.weight": torch.ones(3, 4) for name in names}
    with pytest.raises(RuntimeError, match=message):
        ours.load_state_dict(weights)
    ours.load_state_dict(weights, strict=False)
    assert len(memory_store.table("a")) == 3


def test_to_torch_of_an_empty_table(memory_store):
    damo.EmbeddingBagCollection([config("a", 4)], store=memory_store)
    ids, rows = memory_store.table("a").to_torch()
    assert (ids.shape, rows.shape) == ((0,), (0, 4))


@pytest.mark.parametrize("optimizer_type", [torch.optim.Adagrad, torchrec.optim.RowWiseAdagrad])
def test_a_fused_torchrec_models_training_goes_on(store, optimizer_type):
    """Weights and optimizer state move along: the next steps are the same."""
    configs = [config(name, 4, num_embeddings=30) for name in "ab"]
    theirs = FusedEmbeddingBagCollection(configs, optimizer_type, {"lr": 0.3}, device=torch.device("cpu"))
    ours = damo.EmbeddingBagCollection(configs, optimizer_type, {"lr": 0.3, "eps": 1e-8}, store=store)
    generator = torch.Generator().manual_seed(0)

    def step(*collections):
        features = random_kjt(generator, ["a", "b"], 8, 30)
        grad = torch.randn(8, 8, generator=generator)
        for collection in collections:
            collection(features).values().backward(grad)

    for _ in range(5):
        step(theirs)
    ours.load_state_dict(theirs.state_dict())
    ours.fused_optimizer.load_state_dict(theirs.fused_optimizer().state_dict())
    for _ in range(5):
        step(theirs, ours)
    for table in ours.tables():
        weight = theirs.embedding_bags[table.name].weight.detach()
        torch.testing.assert_close(table.get(torch.arange(30)), weight, rtol=1e-4, atol=1e-5)


def test_optimizer_state_that_does_not_fit_is_refused(memory_store):
    configs = [config(name, 4, num_embeddings=30) for name in "ab"]
    theirs = FusedEmbeddingBagCollection(configs, torch.optim.Adagrad, {"lr": 0.3}, device=torch.device("cpu"))
    state = theirs.fused_optimizer().state_dict()
    rowwise = damo.EmbeddingBagCollection(configs, torchrec.optim.RowWiseAdagrad, store=memory_store)
    with pytest.raises(ValueError, match="a row has 1 floats of state, got 4"):
        rowwise.fused_optimizer.load_state_dict(state)
    with small_store() as other:
        adam = damo.EmbeddingBagCollection(configs, torchrec.optim.Adam, store=other)
        with pytest.raises(ValueError, match="ADAM has no state of TorchRec's momentum_1"):
            adam.fused_optimizer.load_state_dict(state)
    with small_store() as other:
        one = damo.EmbeddingBagCollection(configs[:1], torch.optim.Adagrad, store=other)
        with pytest.raises(KeyError, match=r"\['a', 'b'\], needed is \['a'\]"):
            one.fused_optimizer.load_state_dict(state)


class Other(nn.Module):
    """Has a state of its own beside its parameters."""

    def __init__(self):
        super().__init__()
        self.my_extra_state = nn.Parameter(torch.ones(1))
        self.count = 0

    def get_extra_state(self):
        return {"count": self.count}

    def set_extra_state(self, state):
        self.count = state["count"]


def test_other_modules_extra_state_is_saved_and_loaded(tmp_path):
    with small_store(tmp_path / "store") as store:
        m = nn.ModuleDict({"ebc": model(store)["ebc"], "other": Other()})
        m["other"].count = 5
        m["other"].my_extra_state.data.fill_(3)
        damo.save_model(m, tmp_path / "saved")
    with small_store(tmp_path / "again") as store:
        m = nn.ModuleDict({"ebc": model(store)["ebc"], "other": Other()})
        damo.load_model(tmp_path / "saved", m)
        assert (m["other"].count, m["other"].my_extra_state.item()) == (5, 3)


def test_a_closed_store_leaves_the_dense_state_readable(memory_store):
    m = model(memory_store)
    memory_store.close()
    assert m.state_dict()["linear.weight"].shape == (1, 2)
