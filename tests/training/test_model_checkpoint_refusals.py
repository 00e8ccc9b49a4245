"""What `save_model` and `load_model` refuse, and that nothing changes then."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchrec.optim.keyed import KeyedOptimizerWrapper

import damo_torchrec as damo
from mixed_run import SmallModel, collection, look_up, rows_of, update
from processes import run


@pytest.fixture
def saved(tmp_path) -> Path:
    """After one step, with the optimizer."""
    with damo.EmbeddingStore(tmp_path / "saved-from") as store:
        model = SmallModel(store)
        model.step()
        return damo.save_model(model, tmp_path / "saved", optimizer=model.optimizer)


def wider(model: SmallModel) -> None:
    model.dense = nn.Linear(4, 2)


def with_a_parameter_more(model: SmallModel) -> None:
    model.more = nn.Linear(1, 1)


def with_a_parameter_less(model: SmallModel) -> None:
    model.dense = nn.Linear(4, 1, bias=False)


def with_another_table(model: SmallModel) -> None:
    store = model.ebc.store
    model.ebc = collection(store, "u", dim=4, optimizer=torch.optim.Adam, lr=0.1)


def with_two_optimizer_groups(model: SmallModel) -> None:
    model.optimizer = torch.optim.Adam([{"params": [model.dense.weight]}, {"params": [model.dense.bias]}])


def with_another_optimizers_parameters(model: SmallModel) -> None:
    model.optimizer = torch.optim.Adam([model.dense.weight])


def with_another_optimizer(model: SmallModel) -> None:
    model.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def with_an_optimizer_that_has_no_state_yet(model: SmallModel) -> None:
    model.optimizer = KeyedOptimizerWrapper(dict(model.named_parameters()), lambda p: torch.optim.Adam(p, lr=0.1))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (wider, damo.SchemaMismatchError, r"dense\.weight: \(1, 4\) saved, \(2, 4\) in the model"),
        (with_a_parameter_more, damo.SchemaMismatchError, r"more\.bias: None saved"),
        (with_a_parameter_less, damo.SchemaMismatchError, r"dense\.bias: \(1,\) saved, None in the model"),
        (with_two_optimizer_groups, (damo.SchemaMismatchError, ValueError), "parameter group"),
        (with_another_optimizers_parameters, (damo.SchemaMismatchError, ValueError), "parameter group"),
        (
            with_another_optimizer,
            damo.SchemaMismatchError,
            r"had \['amsgrad', .*: SGD has \['dampening', 'mom",
        ),
    ],
)
def test_another_model_is_refused_before_anything_changes(saved, tmp_path, change, error, message):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        model.step()
        model.step()
        change(model)
        before = (rows_of(store), [p.tolist() for p in model.parameters()], torch.get_rng_state().tolist())
        with pytest.raises(error, match=message):
            damo.load_model(saved, model, optimizer=model.optimizer)
        assert (rows_of(store), [p.tolist() for p in model.parameters()], torch.get_rng_state().tolist()) == before
        assert store.step == 2


def test_what_only_the_optimizer_itself_refuses_changes_nothing(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        with_an_optimizer_that_has_no_state_yet(model)
        model.step()
        path = damo.save_model(model, optimizer=model.optimizer)
        model.step()
        before = (rows_of(store), [p.tolist() for p in model.parameters()], torch.get_rng_state().tolist())
        with_an_optimizer_that_has_no_state_yet(model)  # TorchRec's wants init_state() first
        with pytest.raises(ValueError, match="Different parameter count"):
            damo.load_model(path, model, optimizer=model.optimizer)
        assert (rows_of(store), [p.tolist() for p in model.parameters()], torch.get_rng_state().tolist()) == before
        assert store.step == 2


def test_rows_that_cannot_be_restored_leave_the_dense_part_as_it_was(saved, tmp_path, monkeypatch):
    def fails(*_):
        raise damo.OutOfSpaceError("no space")

    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        model.step()
        model.step()
        schedule = torch.optim.lr_scheduler.StepLR(model.optimizer, 1)
        before = (model.state(), model.optimizer.state_dict(), schedule.state_dict())
        monkeypatch.setattr("damo_torchrec.training.loading.restore_unless_at", fails)
        with pytest.raises(damo.OutOfSpaceError):
            damo.load_model(saved, model, optimizer=model.optimizer)
        after = (model.state(), model.optimizer.state_dict(), schedule.state_dict())
        torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_what_is_no_optimizer_or_no_path_is_refused(saved, tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        for call in (damo.save_model, damo.save_model_async):
            with pytest.raises(TypeError, match=r"several as a torchrec\.optim\.CombinedOptimizer, got list"):
                call(model, optimizer=[model.optimizer])
        with pytest.raises(TypeError, match="got list"):
            damo.load_model(saved, model, optimizer=[model.optimizer])
        with pytest.raises(TypeError, match=f"give its path, {store.path}"):
            damo.load_model(store, model)


def test_an_optimizer_that_is_not_loaded_is_told(saved, tmp_path, caplog):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        damo.load_model(saved, model.eval())
        assert "with an optimizer" not in caplog.text
        damo.load_model(saved, model.train())
        assert f"{saved} was saved with an optimizer, whose state is not loaded" in caplog.text


def test_a_table_with_another_schema_is_refused_before_anything_changes(saved, tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        with damo.EmbeddingStore(tmp_path / "other") as other:
            model.ebc = collection(other, "t", dim=4)  # SGD, and the model has no tensor that tells
            update(model.ebc, {"t": [[1]]})
            before = (rows_of(other), model.dense.weight.tolist())
            with pytest.raises(damo.SchemaMismatchError, match=r"'t' of the checkpoint .*ADAM.*SGD"):
                damo.load_model(saved, model, optimizer=model.optimizer)
            assert (rows_of(other), model.dense.weight.tolist()) == before


def test_another_seed_is_refused_before_anything_changes(saved, tmp_path):
    with damo.EmbeddingStore(tmp_path / "store", seed=5) as store:
        model = SmallModel(store)
        model.step()
        before = model.state()
        with pytest.raises(damo.SchemaMismatchError, match="has the seed 0, got seed=5"):
            damo.load_model(saved, model, optimizer=model.optimizer)
        assert model.state() == before


def test_an_optimizer_that_was_not_saved_is_refused(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        path = damo.save_model(model)
        model.step()
        before = model.state()
        with pytest.raises(ValueError, match="was saved without an optimizer"):
            damo.load_model(path, model, optimizer=model.optimizer)
        assert model.state() == before
        damo.load_model(path, model)
        assert store.step == 0


NOT_EXTRA = {
    "a function": lambda: {"f": look_up},
    "a lambda": lambda: {"f": lambda: None},
    "an object": lambda: {"o": SmallModel},
    "a path": lambda: {"path": Path("x")},
    "an array": lambda: {"nested": [np.arange(3)]},
    "an open file": lambda: {"file": open(__file__)},  # noqa: SIM115 - that it cannot be saved is the point
}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("extra", NOT_EXTRA.values(), ids=NOT_EXTRA)
def test_an_extra_that_needs_pickle_is_refused_and_leaves_nothing(tmp_path, extra):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        model.step()
        for path in (None, tmp_path / "elsewhere"):
            with pytest.raises(ValueError, match="keep to tensors, numbers, strings"):
                damo.save_model(model, path, extra=extra())
        assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]
        assert [p.name for p in (store.path / "checkpoints").iterdir()] == ["step_0"]
        damo.save_model(model)


def save_on_a_full_disk(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with damo.EmbeddingStore(path) as store:
        model = SmallModel(store)
        model.large = nn.Linear(1000, 1000)
        model.step()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))  # the rows fit, the dense part does not
        for target in (None, path / "elsewhere"):
            with pytest.raises(damo.OutOfSpaceError, match=r"cannot write \d+ bytes to .*model\.pt"):
                damo.save_model(model, target)
        assert [p.name for p in (path / "checkpoints").iterdir()] == ["step_0"]
        assert not (path / "elsewhere").exists()
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        damo.load_model(damo.save_model(model), model)


def test_a_full_disk_leaves_nothing_of_the_checkpoint_and_the_model_as_it_was(tmp_path):
    run(save_on_a_full_disk, tmp_path / "store")


def test_what_is_there_is_not_overwritten(saved, tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        contents = {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()}
        with pytest.raises(ValueError, match="exists already"):
            damo.save_model(model, saved)
        with pytest.raises(ValueError, match="needs an existing parent"):
            damo.save_model(model, tmp_path / "no" / "such")
        assert {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()} == contents


@pytest.mark.parametrize("name", ["model.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["shortened", "emptied", "a byte changed"])
def test_a_damaged_part_is_refused_before_anything_changes(saved, tmp_path, name, damage):
    contents = bytearray((saved / name).read_bytes())
    if damage == "a byte changed":
        weight = torch.load(saved / "model.pt", weights_only=True)["model"]["dense.weight"]
        contents[contents.find(weight.numpy().tobytes() if name == "model.pt" else b'"rows": 3') + 8] ^= 1
    (saved / name).write_bytes(contents[: {"shortened": len(contents) // 2, "emptied": 0}.get(damage)])
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        model.step()
        before = model.state()
        with pytest.raises(damo.CorruptionError, match=name):
            damo.load_model(saved, model, optimizer=model.optimizer)
        assert model.state() == before


@pytest.mark.parametrize("missing", ["no such", "empty", "file"])
def test_a_path_that_holds_neither_is_refused(tmp_path, missing):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with damo.EmbeddingStore(tmp_path / "store") as store:
        with pytest.raises(ValueError, match="is neither a checkpoint nor a store"):
            damo.load_model(tmp_path / missing, SmallModel(store))
        with pytest.raises(ValueError, match="is neither a checkpoint nor a store"):
            damo.checkpoint_info(tmp_path / missing)


def test_a_model_without_a_collection_or_over_two_stores_is_refused(saved, tmp_path):
    with damo.EmbeddingStore(tmp_path / "one") as one, damo.EmbeddingStore(tmp_path / "two") as two:
        over_two = nn.ModuleList([collection(one, "a"), collection(two, "b")])
        for model, found in ((nn.Linear(1, 1), "none"), (over_two, "one.*two|two.*one")):
            with pytest.raises(ValueError, match=f"must be over one store, found .*({found})"):
                damo.save_model(model, tmp_path / "x")
        with pytest.raises(ValueError, match="must be over one store"):
            damo.load_model(saved, nn.ModuleDict({"dense": nn.Linear(4, 1)}))
    assert not (tmp_path / "x").exists()


def test_a_model_for_serving_is_not_made_here(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store, pytest.raises(ValueError, match="training=False"):
        damo.save_model(SmallModel(store), tmp_path / "x", training=False)
