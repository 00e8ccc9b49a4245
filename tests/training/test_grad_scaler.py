"""`follow_grad_scaler`: the oracle is what torch's GradScaler does to dense parameters alone."""

import pytest
import torch

import damo_torchrec as damo
from mixed_run import collection, look_up, rows_of
from support import kjt


class Run:
    """Rows and a dense layer that train with one scaler. Which of them overflows is said at each step."""

    def __init__(self, store, optimizers=1, init_scale=1024.0):
        self.store = store
        self.ebc = collection(store, "t", initial=0.5, lr=0.1)
        self.layers = [torch.nn.Linear(4, 4) for _ in range(optimizers)]
        self.optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in self.layers]
        self.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)

    def backward(self, of_rows=1.0, of_dense=1.0):
        output = look_up(self.ebc, {"t": [[1], [2, 2]]})
        rows = (output * of_rows).sum()
        dense = sum((layer(torch.ones(1, 4)) * of_dense).sum() for layer in self.layers)
        self.scaler.scale(rows + dense).backward()

    def step(self):
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()

    def state(self):
        return rows_of(self.store), [layer.weight.detach().tolist() for layer in self.layers]


@pytest.fixture(params=["raise", "skip"])
def store(request):
    with damo.EmbeddingStore(options=damo.StoreOptions(on_nonfinite=request.param)) as opened:
        yield opened


@pytest.mark.parametrize("overflows", ["rows", "dense"])
@pytest.mark.parametrize("optimizers", [1, 2])
def test_both_parts_skip_a_step_that_one_overflows_in(store, overflows, optimizers):
    run = Run(store)
    damo.follow_grad_scaler(store, run.scaler, run.optimizers[0] if optimizers == 1 else run.optimizers)
    run.backward()
    run.step()
    before, scale = run.state(), run.scaler.get_scale()
    run.backward(**{f"of_{overflows}": float("inf")})
    run.step()
    assert run.state() == before
    assert run.scaler.get_scale() == scale / 2
    assert (store.step, store.stats().skipped_backwards) == (1, 1)
    run.backward()
    run.step()
    rows, dense = run.state()
    assert (rows != before[0], dense != before[1]) == (True, True)


@pytest.mark.parametrize("faulty", [0, 1])
def test_all_optimizers_skip_what_one_overflows_in(store, faulty):
    run = Run(store, optimizers=2)
    damo.follow_grad_scaler(store, run.scaler, run.optimizers)
    before = run.state()
    run.backward()
    run.layers[faulty].weight.grad.fill_(float("inf"))
    run.scaler.scale(look_up(run.ebc, {"t": [[1]]}).sum()).backward()  # sees that
    run.step()
    assert run.state()[1] == before[1]
    assert (store.step, store.stats().skipped_backwards) == (1, 1)


def test_the_scale_of_each_pass_is_taken_away(store):
    run = Run(store)
    damo.follow_grad_scaler(store, run.scaler, run.optimizers)
    run.backward()
    run.step()
    run.scaler.update(64.0)
    run.backward()
    run.step()
    torch.testing.assert_close(store.table("t").get([1, 2])[:, 0], torch.tensor([0.3, 0.1]))


def test_an_accumulation_is_skipped_with_the_dense_one(store):
    run = Run(store)
    damo.follow_grad_scaler(store, run.scaler, run.optimizers)
    store.accumulate(2)
    for first, second in ((float("inf"), 1.0), (1.0, float("inf"))):
        before = run.state()
        run.backward(of_dense=first)
        run.backward(of_dense=second)
        run.step()
        assert run.state() == before
    run.backward(of_rows=float("inf"))
    run.backward()
    run.step()
    assert run.state() == before
    run.backward()
    run.backward()
    run.step()
    assert store.step == 1


def test_sparse_gradients_of_the_dense_part_are_seen(store):
    run = Run(store)
    embedding = torch.nn.Embedding(4, 4, sparse=True)
    damo.follow_grad_scaler(store, run.scaler, torch.optim.SGD(embedding.parameters(), lr=0.1))
    output = look_up(run.ebc, {"t": [[1]]}).sum()
    run.scaler.scale(output + (embedding(torch.tensor([1])) * float("inf")).sum()).backward()
    assert store.step == 0


def test_nothing_is_followed_any_more_with_none_and_with_a_scaler_that_is_disabled(store):
    run = Run(store)
    damo.follow_grad_scaler(store, run.scaler, run.optimizers)
    damo.follow_grad_scaler(store, torch.amp.GradScaler("cpu", enabled=False), run.optimizers)
    look_up(run.ebc, {"t": [[1]]}).sum().backward()
    damo.follow_grad_scaler(store, run.scaler, run.optimizers)
    damo.follow_grad_scaler(store, None)
    look_up(run.ebc, {"t": [[1]]}).sum().backward()
    assert store.table("t").get([1])[0, 0] == pytest.approx(0.5 - 0.2)


def test_what_is_no_scaler_or_optimizer_is_refused(store):
    run = Run(store)
    with pytest.raises(TypeError, match=r"scaler must be a torch\.amp.GradScaler or None, got float"):
        damo.follow_grad_scaler(store, 1024.0, run.optimizers)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, or several, got Linear"):
        damo.follow_grad_scaler(store, run.scaler, [run.layers[0]])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_saving_names_dense_weights_that_are_not_finite(tmp_path, caplog, value):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = torch.nn.ModuleDict({"ebc": collection(store, "t"), "head": torch.nn.Linear(4, 4)})
        model["ebc"](kjt({"t": [[1]]})).values().sum().backward()
        damo.save_model(model)
        assert not [record for record in caplog.records if record.levelname == "WARNING"]
        model["head"].weight.data[1, 1] = value
        damo.save_model(model, tmp_path / "another")
        assert "save_model: weights of the dense part are NaN or infinite: head.weight" in caplog.text
