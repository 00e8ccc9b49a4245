"""`load_model` without a model: from the pickle that `save_model` leaves, and only if it is told to."""

import importlib
import pickle
from pathlib import Path

import pytest
import torch
from torchrec import EmbeddingConfig

import damo_torchrec as damo
from damo_torchrec import pickled_module
from mixed_run import SmallModel
from support import config, random_kjt


class DamoModel(torch.nn.Module):
    """As Damo-Embedding's examples write it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = damo.Embedding(8, 3, {"name": "uniform"}, {"name": "adam", "gamma": 0.01})
        self.linear = torch.nn.Linear(16, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.linear(self.embedding(ids).flatten(1))


@pytest.fixture
def default_store(tmp_path, monkeypatch):
    """What a test makes the default store is closed, and is the default no longer."""
    monkeypatch.setattr(importlib.import_module("damo_torchrec.store.default_store"), "_default", None)
    yield
    damo.default_store().close()


def test_damo_embeddings_calls_save_and_load_a_model(tmp_path, monkeypatch, default_store):
    monkeypatch.chdir(tmp_path)
    model = DamoModel()
    damo.damo_embedding_init(model, "rows")
    ids = torch.tensor([[1, -5], [7, 1 << 40]])
    model(ids).sum().backward()
    damo.save_model(model, "train", True)
    expected = model(ids)
    model(ids).sum().backward()
    loaded = damo.load_model("train", allow_pickle=True)
    assert isinstance(loaded, DamoModel)
    assert torch.equal(loaded(ids), expected)
    assert loaded.embedding.store is damo.default_store()


def test_collections_parameters_and_modes_come_back(tmp_path, default_store):
    torch.manual_seed(0)
    with damo.EmbeddingStore(tmp_path / "store", seed=5) as store:
        options = {"t": damo.TableOptions(initializer=damo.init.Normal(0, 1), row_dtype=torch.float16)}
        ebc = damo.EmbeddingBagCollection(
            [config("t", 4), config("u", 4)], torch.optim.Adam, {"lr": 0.5}, store=store, table_options=options
        )
        sequences = damo.EmbeddingCollection(
            [EmbeddingConfig(name="v", embedding_dim=4, num_embeddings=9)], need_indices=True, store=store
        )
        model = torch.nn.ModuleDict(
            {"a": ebc, "same": ebc, "b": sequences, "dense": torch.nn.BatchNorm1d(8), "frozen": torch.nn.Linear(2, 2)}
        )
        model["frozen"].requires_grad_(False)
        model["dense"].eval()
        batch = random_kjt(torch.Generator().manual_seed(1), ["t", "u", "v"], 5, 30)
        model["a"](batch).values().sum().backward()
        model["b"](batch)["v"].values().sum().backward()
        path = damo.save_model(model)
        expected = model["a"](batch).values()
        damo.set_default_store(damo.EmbeddingStore(tmp_path / "other", seed=5))
        loaded = damo.load_model(path, allow_pickle=True)
    assert loaded["a"] is loaded["same"]
    assert loaded["a"].store.path == tmp_path / "other"
    assert loaded["b"].need_indices()
    assert [module.training for module in loaded.values()] == [True, True, True, False, True]
    assert [p.requires_grad for p in loaded["frozen"].parameters()] == [False, False]
    assert torch.equal(loaded["a"](batch).values(), expected)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model["dense"].state_dict().items():
        assert torch.equal(loaded["dense"].state_dict()[name], value)


def test_without_being_told_it_is_refused_with_the_reason(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        path = damo.save_model(SmallModel(store))
    with pytest.raises(ValueError, match=r"runs any code that its author put in.*allow_pickle=True"):
        damo.load_model(path)


def test_a_model_that_cannot_be_pickled_is_saved_without(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        model.hook = lambda: None
        path = damo.save_model(model)
        with pytest.raises(ValueError, match=r"holds no pickle of the model: .*lambda.*a model to load into"):
            damo.load_model(path, allow_pickle=True)
        assert damo.load_model(path, model) is model


def test_a_class_that_is_not_there_is_named(tmp_path, monkeypatch, default_store):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        path = damo.save_model(SmallModel(store))
    monkeypatch.delattr("mixed_run.SmallModel")
    with pytest.raises(ValueError, match=r"module\.pickle cannot be made here .*SmallModel"):
        damo.load_model(path, allow_pickle=True)


def test_the_pickle_holds_no_weights(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = torch.nn.Sequential(torch.nn.Linear(1000, 1000), SmallModel(store))
        path = damo.save_model(model)
    assert (path / "module.pickle").stat().st_size < 10_000


def test_a_collection_alone_still_is_no_pickle(tmp_path, memory_store):
    ebc = damo.EmbeddingBagCollection([config("t")], store=memory_store)
    with pytest.raises(TypeError, match="save_model"):
        pickle.dumps(ebc)


def test_a_pickle_of_an_earlier_release_still_loads(default_store):
    """Its modules were elsewhere. It was made by 0.1.0 of a ModuleDict with all kinds of collections."""
    model = pickled_module.load((Path(__file__).parent / "golden" / "model_0.1.0.pickle").read_bytes())
    assert [type(module) for module in model.values()] == [
        damo.EmbeddingBagCollection,
        damo.EmbeddingCollection,
        damo.Embedding,
        torch.nn.Linear,
    ]
    table = model["ebc"].tables()[0]
    assert (table.name, table.dim, model["ebc"].optimizer_type()) == ("t", 4, damo.optim.FTRL)
    assert type(model.optimizer) is type(model["ebc"].fused_optimizer)
    assert model.functions == [
        damo.load_model,
        damo.swap,
        damo.EmbeddingStore,
        damo.StoreOptions(num_threads=2),
        damo.CheckpointManager,
        damo.Table,
        damo.Delta,
        damo.PrefetchIterator,
        damo.default_store,
    ]
