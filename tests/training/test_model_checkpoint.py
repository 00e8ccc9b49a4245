"""`save_model`, `load_model` and `checkpoint_info`."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchrec
from torch import nn
from torchrec.models.dlrm import DLRM
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

import damo_torchrec as damo
from mixed_run import SmallModel, assert_same_rows, collection, look_up, rows_of, update
from support import config, random_kjt


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So that torch's own sums are the same bits from run to run; and the generators are left as they were."""
    threads, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)
    random.setstate(python)
    np.random.set_state(numpy)


# ------------------------------------------------------------------ going on


class DlrmRun:
    """A DLRM with dropout, whose batches are drawn with all three random number generators."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        ebc = damo.EmbeddingBagCollection(
            [config("user", 8), config("item", 8, ["item", "seen"])], torch.optim.Adam, {"lr": 0.05}, store=store
        )
        self.store = store
        self.model = nn.ModuleDict({"dlrm": DLRM(ebc, 4, [16, 8], [16, 1]), "dropout": nn.Dropout(0.3)})
        dense = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(dense, lr=0.01)

    def steps(self, n: int) -> list[float]:
        losses = []
        for _ in range(n):
            generator = torch.Generator().manual_seed(random.getrandbits(30))
            batch = random_kjt(generator, ["user", "item", "seen"], 16, 200)
            x = self.model["dropout"](torch.from_numpy(np.random.rand(16, 4)).float() + torch.rand(16, 4))
            loss = (self.model["dlrm"](x, batch) - 0.5).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def save(self, path: Path | None = None) -> Path:
        return damo.save_model(self.model, path, optimizer=self.optimizer)

    def load(self, path: Path) -> None:
        assert damo.load_model(path, self.model, optimizer=self.optimizer) is self.model

    def dense_state(self) -> list[torch.Tensor]:
        adam = self.optimizer.state_dict()["state"].values()
        return [*self.model.parameters(), *(value for state in adam for value in state.values())]


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("same_store", [True, False], ids=["the same store", "a new store"])
def test_a_resumed_run_is_equal_to_the_bit(tmp_path, same_store):
    """Losses on the way, dense weights, dense optimizer, rows, and the generators' next numbers."""
    seed_all(1)
    with damo.EmbeddingStore(tmp_path / "first") as store:
        whole = DlrmRun(store)
        whole.steps(5)
        checkpoint = whole.save(tmp_path / "saved")
        losses = whole.steps(7)
        dense, rows = whole.dense_state(), rows_of(store)
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())

    seed_all(99)
    with damo.EmbeddingStore(tmp_path / ("first" if same_store else "second")) as store:
        resumed = DlrmRun(store)
        resumed.steps(2)
        resumed.load(checkpoint)
        assert store.step == 5
        assert resumed.steps(7) == losses
        for actual, expected in zip(resumed.dense_state(), dense, strict=True):
            assert torch.equal(actual, expected)
        assert_same_rows(rows_of(store), rows)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn


def test_a_stores_newest_checkpoint_is_what_its_path_loads(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        for _ in range(3):
            model.step()
            assert damo.save_model(model, optimizer=model.optimizer).parent == store.path / "checkpoints"
        expected = model.state()
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        damo.load_model(tmp_path / "store", model, optimizer=model.optimizer)
        assert model.state() == expected


def test_a_store_that_was_closed_after_more_steps_goes_back_to_its_dense_part(tmp_path, caplog):
    """As Ctrl-C leaves it: `close` saves rows alone."""
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        model.step()
        path = damo.save_model(model, optimizer=model.optimizer)
        expected = model.state()
        model.step()
    with damo.EmbeddingStore(tmp_path / "store") as store:
        assert store.step == 2
        model = SmallModel(store)
        damo.load_model(tmp_path / "store", model, optimizer=model.optimizer)
        assert model.state() == expected
        assert store.step == 1
    assert f"step_2 holds rows only, as close() leaves them: going back to {path}" in caplog.text


def test_loading_gives_up_what_was_trained_since(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        model.step()
        path = damo.save_model(model, optimizer=model.optimizer)
        expected = model.state()
        for _ in range(2):
            model.step()
            store.table("t").set([100], torch.ones(1, 4))
            damo.load_model(path, model, optimizer=model.optimizer)
            assert model.state() == expected
            assert store.step == 1


def test_loading_gives_up_gradients_that_wait(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        model.step()
        path = damo.save_model(model, optimizer=model.optimizer)
        expected = model.state()
        store.accumulate(2)
        update(model.ebc, {"t": [[1]]})
        damo.load_model(path, model, optimizer=model.optimizer)
        store.accumulate(1)  # nothing waits
        assert model.state() == expected


def test_a_graph_from_before_loading_does_not_reach_the_rows_after_it(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        path = damo.save_model(model)
        model.step()
        output = look_up(model.ebc, {"t": [[1]]})
        damo.load_model(path, model)
        with pytest.raises(damo.StoreClosedError, match="restored between this forward and its backward"):
            output.sum().backward()
        assert rows_of(store) == {"t": {}}


def test_a_model_is_evaluated_over_a_store_that_is_only_read(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        model.step()
        path = damo.save_model(model)
        expected = model.dense(look_up(model.ebc.eval(), {"t": [[1, 2], [9]]}))
    with damo.EmbeddingStore(path, read_only=True) as store:
        model = SmallModel(store)
        nn.init.zeros_(model.dense.weight)
        damo.load_model(path, model)
        assert torch.equal(model.dense(look_up(model.ebc.eval(), {"t": [[1, 2], [9]]})), expected)


@pytest.mark.parametrize("dense_optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_learning_rates_of_rows_come_back_with_the_optimizer_that_holds_them(tmp_path, dense_optimizer):
    """TorchRec's way of one optimizer for all: what a scheduler made of the rates goes on from there."""

    def make(store: damo.EmbeddingStore) -> tuple[SmallModel, CombinedOptimizer]:
        model = SmallModel(store)
        dense = KeyedOptimizerWrapper(dict(model.dense.named_parameters()), lambda p: dense_optimizer(p, lr=0.1))
        optimizer = CombinedOptimizer([("rows", model.ebc.fused_optimizer), ("dense", dense)])
        model.optimizer = optimizer
        return model, optimizer

    with damo.EmbeddingStore(tmp_path / "store") as store:
        model, optimizer = make(store)
        model.ebc.fused_optimizer.param_groups[0]["lr"] = 0.025
        model.step()
        path = damo.save_model(model, tmp_path / "saved", optimizer=optimizer)
        model.step()
        expected = rows_of(store), model.dense.weight.tolist()
    with damo.EmbeddingStore(tmp_path / "other") as store:
        model, optimizer = make(store)
        model.step()  # as TorchRec's optimizers want it: they load into state that is there
        damo.load_model(path, model, optimizer=optimizer)
        assert model.ebc.fused_optimizer.param_groups[0]["lr"] == 0.025
        model.step()
        assert (rows_of(store), model.dense.weight.tolist()) == expected


# ------------------------------------------------------------------ what else it holds


EXTRA = {
    "epoch": 3,
    "position": [1, 2, (3, None)],
    "name": "run é",
    "loss": 0.1,
    "done": False,
    "tensor": torch.arange(6).reshape(2, 3),
    "nested": {"a": {"b": [torch.ones(1, dtype=torch.float64)]}},
}


@pytest.mark.parametrize("scheduler", [torch.optim.lr_scheduler.ExponentialLR, torch.optim.lr_scheduler.LambdaLR])
def test_learning_rates_of_rows_come_back_without_an_optimizer(tmp_path, scheduler):
    """As torch's do, that are in the state dict of an optimizer."""
    argument = 0.1 if scheduler is torch.optim.lr_scheduler.ExponentialLR else lambda epoch: 0.1**epoch

    def run(store):
        model = nn.ModuleDict({"ebc": collection(store, "t", initial=0.0)})
        return model, scheduler(model["ebc"].fused_optimizer, argument)

    def step(model, schedule):
        update(model["ebc"], {"t": [[1]]})
        schedule.optimizer.step()
        schedule.step()

    with damo.EmbeddingStore(tmp_path / "store") as store:
        model, schedule = run(store)
        for _ in range(2):
            step(model, schedule)
        damo.save_model(model, tmp_path / "saved", schedulers=[schedule])
    with damo.EmbeddingStore(tmp_path / "other") as store:
        model, schedule = run(store)
        damo.load_model(tmp_path / "saved", model, schedulers=[schedule])
        for _ in range(2):
            step(model, schedule)
        assert store.table("t").get([1])[0, 0] == pytest.approx(-1.111)


def test_extra_comes_back_as_it_was(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        model.step()
        path = damo.save_model(model, tmp_path / "saved", step=1234, extra=EXTRA)
    info = damo.checkpoint_info(path)
    assert (info.path, info.step, info.store_step, info.rows) == (path, 1234, 1, {"t": 3})
    assert torch.equal(info.extra.pop("tensor"), EXTRA["tensor"])
    (tensor,) = info.extra.pop("nested")["a"]["b"]
    assert torch.equal(tensor, torch.ones(1, dtype=torch.float64))
    assert info.extra == {name: EXTRA[name] for name in ("epoch", "position", "name", "loss", "done")}


def test_a_checkpoint_of_rows_alone_says_so(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        model.step()
        before = model.state()
        path = store.checkpoint()
        info = damo.checkpoint_info(path)
        assert (info.path, info.step, info.store_step, info.extra, info.rows) == (path, 1, 1, {}, {"t": 3})
        assert damo.checkpoint_info(store.path) == info
        with pytest.raises(ValueError, match=r"holds rows only.*not by save_model"):
            damo.load_model(path, model)
        assert model.state() == before


def test_two_collections_over_one_store_are_one_checkpoint(tmp_path):
    def make(store: damo.EmbeddingStore) -> nn.ModuleList:
        return nn.ModuleList([collection(store, "a"), collection(store, "b", optimizer=torchrec.optim.RowWiseAdagrad)])

    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = make(store)
        update(model[0], {"a": [[1]]})
        update(model[1], {"b": [[2], [3]]})
        rows = rows_of(store)
        path = damo.save_model(model, tmp_path / "saved")
    shutil.copytree(path, tmp_path / "copied")
    with damo.EmbeddingStore(tmp_path / "other") as store:
        model = make(store)
        damo.load_model(tmp_path / "copied", model)
        assert_same_rows(rows_of(store), rows)
