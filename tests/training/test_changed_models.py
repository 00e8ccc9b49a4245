"""`load_model(strict=False)`: a model goes on from its checkpoint with a feature more or less."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

import damo_torchrec as damo
from damo_torchrec.training import loading
from mixed_run import collection
from support import kjt, payloads

FEATURES = {name: [[1, 2], [3]] for name in "abc"}


class Towers(nn.Module):
    """A layer over each feature, and one over them all."""

    def __init__(self, store: damo.EmbeddingStore, names: str, seed: int = 0, dim: int = 4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.ebc = collection(store, *names, dim=dim, optimizer=torch.optim.Adam, lr=0.1)
        self.towers = nn.ModuleDict({name: nn.Linear(dim, 2) for name in names})
        self.norm = nn.BatchNorm1d(2)
        self.top = nn.Linear(2 * len(names), 1)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=0.1)

    def step(self, optimizer=None) -> None:
        optimizer = optimizer or self.optimizer
        out = self.ebc(kjt({name: FEATURES[name] for name in self.towers}))
        towers = [self.norm(tower(out[name])) for name, tower in self.towers.items()]
        optimizer.zero_grad()
        self.top(torch.cat(towers, 1)).square().sum().backward()
        optimizer.step()


@pytest.fixture
def saved(tmp_path):
    """Two features after three steps, with weights, states and rows of then."""
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Towers(store, "ab")
        for _ in range(3):
            model.step()
        damo.save_model(model, optimizer=model.optimizer)
        dense = {name: value.detach().clone() for name, value in model.named_parameters()}
        state = {name: model.optimizer.state[parameter] for name, parameter in model.named_parameters()}
        return dense, state, {name: payloads(store, name) for name in "ab"}


def assert_taken_over(model, names, saved):
    dense, state, _ = saved
    parameters = dict(model.named_parameters())
    for name in names:
        assert torch.equal(parameters[name], dense[name]), name
        torch.testing.assert_close(model.optimizer.state[parameters[name]], state[name], rtol=0, atol=0)


OF_A = ["towers.a.weight", "towers.a.bias", "norm.weight", "norm.bias", "top.bias"]


def test_a_feature_more(saved, tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Towers(store, "abc", seed=1)
        fresh = model.top.weight.detach().clone()
        with pytest.raises(damo.SchemaMismatchError, match=r"towers\.c\.\w+: None saved.*strict=False loads what fits"):
            damo.load_model(store.path, model, optimizer=model.optimizer)
        found = damo.load_model(store.path, model, optimizer=model.optimizer, strict=False)
        assert found == damo.IncompatibleKeys(
            missing_keys=["towers.c.weight", "towers.c.bias"],
            mismatched_keys={"top.weight": ((1, 4), (1, 6))},
            missing_tables=["c"],
            missing_optimizer_keys=["towers.c.weight", "towers.c.bias", "top.weight"],
            unexpected_optimizer_keys=["top.weight"],
        )
        missing, unexpected = found
        assert (missing, unexpected) == (found.missing_keys, [])
        assert_taken_over(model, [*OF_A, "towers.b.weight", "towers.b.bias"], saved)
        assert torch.equal(model.top.weight, fresh)
        assert {name: payloads(store, name) for name in "ab"} == saved[2]
        assert len(store.table("c")) == 0
        model.step()
        assert [len(store.table(name)) for name in "abc"] == [3, 3, 3]
        assert damo.load_model(damo.save_model(model, optimizer=model.optimizer), model, optimizer=model.optimizer)


def test_a_feature_less(saved, tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Towers(store, "a", seed=1)
        found = damo.load_model(store.path, model, optimizer=model.optimizer, strict=False)
        assert found == damo.IncompatibleKeys(
            unexpected_keys=["towers.b.weight", "towers.b.bias"],
            mismatched_keys={"top.weight": ((1, 4), (1, 2))},
            unexpected_tables=["b"],
            missing_optimizer_keys=["top.weight"],
            unexpected_optimizer_keys=["towers.b.weight", "towers.b.bias", "top.weight"],
        )
        assert_taken_over(model, OF_A, saved)
        model.step()
        assert payloads(store, "b") == saved[2]["b"]


def test_into_another_store_and_by_a_manager(saved, tmp_path):
    with damo.EmbeddingStore(tmp_path / "other") as store:
        model = Towers(store, "ac", seed=1)
        model.step()
        manager = damo.CheckpointManager(tmp_path / "store" / "checkpoints", every_steps=1)
        found = manager.restore(model, optimizer=model.optimizer, which=3, strict=False)
        assert (found.step, found.incompatible.missing_tables, found.incompatible.unexpected_tables) == (
            3,
            ["c"],
            ["b"],
        )
        assert_taken_over(model, OF_A, saved)
        assert payloads(store, "a") == saved[2]["a"]
        assert len(store.table("c")) == 0
        assert payloads(store, "b") == saved[2]["b"]


def test_a_model_that_has_not_changed_loads_all(saved, tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Towers(store, "ab", seed=1)
        schedule = StepLR(model.optimizer, 1)
        assert damo.load_model(store.path, model, optimizer=model.optimizer, strict=False) == damo.IncompatibleKeys()
        assert_taken_over(model, saved[0], saved)
        damo.save_model(model, tmp_path / "with", optimizer=model.optimizer, schedulers=[schedule])
        model.step()
        schedule.step()
        found = damo.load_model(
            tmp_path / "with", model, optimizer=model.optimizer, schedulers=[schedule], strict=False
        )
        assert found == damo.IncompatibleKeys()
        assert schedule.last_epoch == 0


def test_groups_keep_the_hyperparameters_of_their_parameters(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Towers(store, "ab")
        tops, others = list(model.top.parameters()), [*model.towers.parameters(), *model.norm.parameters()]
        model.optimizer = torch.optim.Adam([{"params": tops, "lr": 0.7}, {"params": others, "lr": 0.3}])
        model.step()
        damo.save_model(model, optimizer=model.optimizer)
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Towers(store, "abc")
        new = list(model.towers["c"].parameters())
        old = [*model.towers["a"].parameters(), *model.towers["b"].parameters(), *model.norm.parameters()]
        model.optimizer = torch.optim.Adam(
            [{"params": new}, {"params": old}, {"params": model.top.parameters()}], lr=0.01
        )
        found = damo.load_model(store.path, model, optimizer=model.optimizer, strict=False)
        assert [group["lr"] for group in model.optimizer.param_groups] == [0.01, 0.3, 0.7]
        assert found.missing_optimizer_keys == ["towers.c.weight", "towers.c.bias", "top.weight"]


def test_an_optimizer_of_another_kind_begins_anew_and_says_so(saved, tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Towers(store, "ab", seed=1)
        sgd = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        found = damo.load_model(store.path, model, optimizer=sgd, strict=False)
        assert found.missing_optimizer_keys == found.unexpected_optimizer_keys == list(saved[0])
        assert found.missing_keys == found.unexpected_keys == []
        assert (sgd.param_groups[0]["lr"], sgd.param_groups[0]["momentum"]) == (0.5, 0.9)


def test_a_checkpoint_of_before_that_names_no_parameters(saved, tmp_path, monkeypatch):
    """Its optimizer goes on where the model is the same, and begins anew where it is not."""

    def of_before(path):
        dense = read(path)
        del dense["parameter_names"]
        return dense

    read = loading.read_dense
    monkeypatch.setattr(loading, "read_dense", of_before)
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Towers(store, "ab", seed=1)
        assert damo.load_model(store.path, model, optimizer=model.optimizer, strict=False) == damo.IncompatibleKeys()
        assert_taken_over(model, saved[0], saved)
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Towers(store, "abc", seed=1)
        found = damo.load_model(store.path, model, optimizer=model.optimizer, strict=False)
        assert found.missing_optimizer_keys == [name for name, _ in model.named_parameters()]
        assert found.unexpected_optimizer_keys == [str(i) for i in range(len(saved[0]))]


def combined(model):
    dense = KeyedOptimizerWrapper(dict(model.named_parameters()), lambda p: torch.optim.Adam(p, lr=0.1))
    optimizer = CombinedOptimizer([("rows", model.ebc.fused_optimizer), ("dense", dense)])
    optimizer.zero_grad()
    return optimizer, dense


def test_torchrecs_optimizers_and_schedules_on_rows(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Towers(store, "ab")
        optimizer, _ = combined(model)
        schedule = StepLR(optimizer, 1, 0.5)
        for _ in range(2):
            model.step(optimizer)
            schedule.step()
        damo.save_model(model, optimizer=optimizer, schedulers=[schedule])
        state = optimizer.state_dict()["state"]
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Towers(store, "abc", seed=1)
        optimizer, dense = combined(model)
        schedule = StepLR(optimizer, 1, 0.5)
        arguments = {"optimizer": optimizer, "schedulers": [schedule], "strict": False}
        with pytest.raises(ValueError, match="no state yet"):
            damo.load_model(store.path, Towers(store, "abc"), **{**arguments, "optimizer": dense, "schedulers": ()})
        dense.init_state()
        found = damo.load_model(store.path, model, **arguments)
        new = ["dense.towers.c.weight", "dense.towers.c.bias", "dense.top.weight"]
        assert found.missing_optimizer_keys == ["rows.embedding_bags.c.weight", *new]
        assert found.mismatched_scheduler_keys == ["0.base_lrs", "0._last_lr"]
        now = optimizer.state_dict()["state"]
        torch.testing.assert_close(now["dense.towers.a.weight"], state["dense.towers.a.weight"], rtol=0, atol=0)
        assert [group["lr"] for group in model.ebc.fused_optimizer.param_groups] == [0.025, 0.025, 0.1]
        assert schedule.last_epoch == 2
        model.step(optimizer)
        schedule.step()


def test_a_failure_leaves_everything_as_it_was(saved, tmp_path, monkeypatch):
    def fails(*_):
        raise damo.OutOfSpaceError("no space")

    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Towers(store, "abc", seed=1)
        model.step()
        before = {name: value.clone() for name, value in model.state_dict().items() if "extra" not in name}
        rows = {name: payloads(store, name) for name in "abc"}
        monkeypatch.setattr("damo_torchrec.training.loading.restore_unless_at", fails)
        with pytest.raises(damo.OutOfSpaceError):
            damo.load_model(store.path, model, optimizer=model.optimizer, strict=False)
        now = model.state_dict()
        assert all(torch.equal(now[name], value) for name, value in before.items())
        assert {name: payloads(store, name) for name in "abc"} == rows
        assert int(model.optimizer.state[model.top.bias]["step"]) == 1


def test_a_table_of_another_dim_is_refused(saved, tmp_path):
    with damo.EmbeddingStore(tmp_path / "other") as store:
        model = Towers(store, "ab", dim=8)
        before = {name: value.clone() for name, value in model.named_parameters()}
        with pytest.raises(
            damo.SchemaMismatchError,
            match=r"table 'a' of the checkpoint .* has dim 4, got 8.*convert_table\('a', dim=8\)",
        ):
            damo.load_model(tmp_path / "store", model, optimizer=model.optimizer, strict=False)
        assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_strict_misses_a_table_that_the_dense_part_does_not_show(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        damo.save_model(nn.ModuleList([collection(store, "a")]))
        model = nn.ModuleList([collection(store, "a", "b")])
        with pytest.raises(damo.SchemaMismatchError, match=r"has no tables \['b'\]: strict=False"):
            damo.load_model(store.path, model)
        assert damo.load_model(store.path, model, strict=False) == damo.IncompatibleKeys(missing_tables=["b"])
        with pytest.raises(ValueError, match="strict=False needs a model"):
            damo.load_model(store.path, strict=False)
