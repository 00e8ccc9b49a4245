"""docs/design.md, "Semantics of a row": when a row comes to be, and what reads and gradients do to it."""

import contextlib

import pytest
import torch
import torchrec
from torch.utils.checkpoint import checkpoint

import damo_torchrec as damo
from mixed_run import INT64_MAX, INT64_MIN, collection, look_up, rows_of, update
from support import A_HANDFUL_OF_ROWS, config, kjt, payloads


@pytest.fixture(params=[0, A_HANDFUL_OF_ROWS], ids=["cached", "evicting"])
def store(request):
    with damo.EmbeddingStore(options=damo.StoreOptions(cache_bytes=request.param, num_threads=2)) as opened:
        yield opened


@pytest.fixture
def skipping_store():
    with damo.EmbeddingStore(options=damo.StoreOptions(on_nonfinite="skip")) as opened:
        yield opened


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize("mode", ["train", "no_grad", "eval"])
def test_a_forward_never_creates_a_row(store, mode):
    ebc = collection(store, "t", "u").train(mode != "eval")
    with torch.no_grad() if mode == "no_grad" else contextlib.nullcontext():
        for _ in range(3):
            look_up(ebc, {"t": [[1, 2], [INT64_MIN]], "u": [[], [3]]})
    assert rows_of(store) == {"t": {}, "u": {}}
    assert len(store.table("t")) == 0
    assert not store.table("t").contains([1, 2, INT64_MIN]).any()
    assert store.step == 0


@pytest.mark.parametrize("grad", [True, False])
def test_in_train_mode_an_unseen_id_reads_its_initial_value(store, grad):
    ebc = collection(store, "t", dim=5)
    with torch.set_grad_enabled(grad):
        unseen = look_up(ebc, {"t": [[7], [INT64_MAX], [7]]})
    update(ebc, {"t": [[7], [INT64_MAX]]}, gradient=0.0)  # plain SGD: the rows are what they were initialised to
    stored = store.table("t").get([7, INT64_MAX, 7])
    assert torch.equal(unseen, stored)
    assert not torch.equal(stored[0], stored[1])
    bound = 100**-0.5  # of TorchRec's default for num_embeddings=100
    assert stored.abs().max() <= bound
    assert stored.unique().numel() == 10


@pytest.mark.parametrize("unseen", ["zeros", "initial"])
def test_in_eval_mode_an_unseen_id_reads_zeros_or_by_an_option_its_initial_value(store, unseen):
    ebc = collection(store, "t", initial=3.0, unseen=unseen)
    update(ebc, {"t": [[1]]})
    value = 3.0 if unseen == "initial" else 0.0
    output = look_up(ebc.eval(), {"t": [[1], [2], [1, 2]]})
    assert output[:, 0].tolist() == [2.0, value, 2.0 + value]
    assert store.table("t").get([1, 2])[:, 0].tolist() == [2.0, value]
    assert look_up(ebc.train(), {"t": [[2]]})[0, 0] == 3.0


def test_a_mean_counts_unseen_ids(store):
    configs = [config("t", pooling=torchrec.PoolingType.MEAN)]
    options = {"t": damo.TableOptions(initializer=damo.init.Constant(4.0))}
    ebc = damo.EmbeddingBagCollection(configs, torchrec.optim.SGD, {"lr": 1.0}, store=store, table_options=options)
    update(ebc, {"t": [[1]]}, gradient=0.0)
    assert look_up(ebc.eval(), {"t": [[1, 2]]})[0, 0] == 2.0


def test_a_forward_without_a_backward_leaves_no_trace(store):
    ebc = collection(store, "t", optimizer=torch.optim.Adam)
    update(ebc, {"t": [[1], [2]]})
    before = rows_of(store)
    for _ in range(5):
        look_up(ebc, {"t": [[1, 3], [4]]})
    assert rows_of(store) == before
    assert store.step == 1


# ------------------------------------------------------------------ the first update, and later ones


def test_the_first_applied_update_creates_the_row(store):
    ebc = collection(store, "t", initial=3.0, lr=0.5)
    output = look_up(ebc, {"t": [[1], [1, 2]]})
    assert len(store.table("t")) == 0
    output.sum().backward()
    assert store.table("t").contains([1, 2, 3]).tolist() == [True, True, False]
    assert store.table("t").get([1, 2])[:, 0].tolist() == [3.0 - 2 * 0.5, 3.0 - 0.5]


def test_zero_gradients_are_updates(store):
    """They create rows, count, and let Adam's momentum go on, as in torch.optim.Adam."""
    ebc = collection(store, "t", initial=1.0, optimizer=torch.optim.Adam, lr=0.1)
    weight = torch.ones(4, requires_grad=True)
    oracle = torch.optim.Adam([weight], lr=0.1)
    for gradient in (1.0, 0.0, 0.0):
        update(ebc, {"t": [[5]]}, gradient)
        weight.grad = torch.full((4,), gradient)
        oracle.step()
    update(ebc, {"t": [[6]]}, 0.0)
    torch.testing.assert_close(store.table("t").get([5])[0], weight.detach())
    assert store.table("t").get([6])[0].tolist() == [1.0] * 4
    assert store.step == 4
    last_step_and_count = {
        i: torch.frombuffer(bytearray(row[-8:]), dtype=torch.int32).tolist() for i, row in payloads(store, "t").items()
    }
    assert last_step_and_count == {5: [3, 3], 6: [4, 1]}


def test_the_initial_value_depends_on_seed_table_and_id_alone(tmp_path):
    values = {}
    for name, seed, ids in (("a", 0, [1, 2, 3]), ("b", 0, [3, 1, 2]), ("c", 1, [1, 2, 3])):
        with damo.EmbeddingStore(tmp_path / name, seed=seed) as store:
            ebc = collection(store, *(["z", "t"] if name == "b" else ["t", "z"]))
            output = look_up(ebc, {"t": [[i] for i in ids], "z": [[i] for i in ids]}).detach()
            t = output[:, 4:] if name == "b" else output[:, :4]
            values[name] = dict(zip(ids, t.tolist(), strict=True))
            assert not torch.equal(output[:, :4], output[:, 4:])
    assert values["a"] == values["b"]
    assert all(values["a"][i] != values["c"][i] for i in (1, 2, 3))


# ------------------------------------------------------------------ eval and the KJT's weights


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pooling", [torchrec.PoolingType.SUM, torchrec.PoolingType.MEAN])
def test_the_kjts_weights_get_their_gradient_and_rows_one_in_train_mode_alone(store, pooling, training):
    ebc = damo.EmbeddingBagCollection(
        [config("t", 4, pooling=pooling)], torchrec.optim.SGD, {"lr": 1.0}, True, store=store
    )
    rows = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    store.table("t").set(range(3), rows)
    ebc.train(training)
    batch = kjt({"t": [[0, 1, 1], [2]]}, weights=[0.5, 2.0, 1.0, 3.0])
    batch.weights().requires_grad_()
    gradient = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, 0.5, 2.0, 1.0]])
    ebc(batch).values().backward(gradient)

    weights = torch.tensor([0.5, 2.0, 1.0, 3.0], requires_grad=True)
    bags = [(weights[:3, None] * rows[[0, 1, 1]]).sum(0), (weights[3:, None] * rows[[2]]).sum(0)]
    if pooling == torchrec.PoolingType.MEAN:
        bags = [bags[0] / weights[:3].sum(), bags[1] / weights[3:].sum()]
    torch.stack(bags).backward(gradient)
    torch.testing.assert_close(batch.weights().grad, weights.grad)
    assert torch.equal(store.table("t").get(range(3)), rows) != training
    assert store.step == (1 if training else 0)


def test_eval_builds_no_row_gradient(store):
    ebc = collection(store, "t", initial=1.0)
    update(ebc, {"t": [[1]]})
    before = rows_of(store)
    output = look_up(ebc.eval(), {"t": [[1], [2]]})
    assert not output.requires_grad
    (output * torch.ones(1, requires_grad=True)).sum().backward()
    assert rows_of(store) == before


# ------------------------------------------------------------------ gradients that are not finite


NOT_FINITE = {
    "nan": torch.tensor([[0.0], [float("nan")]]),
    "inf": torch.tensor([[0.0], [float("inf")]]),
    "minus inf": torch.tensor([[0.0], [-float("inf")]]),
    "a sum that overflows": torch.tensor([[3e38], [3e38]]),
}


@pytest.mark.parametrize("gradient", NOT_FINITE.values(), ids=NOT_FINITE.keys())
def test_a_gradient_that_is_not_finite_raises_and_updates_nothing(store, gradient):
    ebc = collection(store, "fine", "faulty")
    update(ebc, {"fine": [[1], [2]], "faulty": [[-3], [-3]]})
    before = rows_of(store)
    output = look_up(ebc, {"fine": [[1], [2]], "faulty": [[-3], [-3]]})
    whole = torch.ones_like(output)
    whole[:, 4:] = gradient
    with pytest.raises(damo.NonFiniteGradientError, match=r'"faulty", id -3\b.*no table was updated'):
        output.backward(whole)
    assert rows_of(store) == before
    assert store.step == 1
    update(ebc, {"fine": [[1], [2]], "faulty": [[-3], [-3]]})
    assert store.step == 2


@pytest.mark.parametrize("gradient", NOT_FINITE.values(), ids=NOT_FINITE.keys())
def test_a_gradient_that_is_not_finite_is_skipped_whole_and_counted(skipping_store, gradient):
    ebc = collection(skipping_store, "fine", "faulty")
    features = {"fine": [[1], [2]], "faulty": [[-3], [-3]]}
    update(ebc, features)
    before = rows_of(skipping_store)
    for _ in range(2):
        output = look_up(ebc, features)
        output.backward(torch.cat([torch.ones(2, 4), gradient.expand(2, 4)], dim=1))
    assert rows_of(skipping_store) == before
    assert skipping_store.stats().skipped_backwards == 2
    update(ebc, features)
    assert skipping_store.step == 2
    assert skipping_store.stats().skipped_backwards == 2


def test_a_gradient_that_reaches_no_row_may_be_anything(store):
    ebc = collection(store, "t")
    update(ebc, {"t": [[], []]}, float("nan"))
    assert rows_of(store) == {"t": {}}


def test_grad_scale_divides_what_arrives(store):
    ebc = collection(store, "t", initial=0.0)
    store.grad_scale = 1024.0
    update(ebc, {"t": [[1], [2, 2]]}, 512.0)
    assert store.table("t").get([1, 2])[:, 0].tolist() == [-0.5, -1.0]
    store.grad_scale = 1.0
    update(ebc, {"t": [[1]]}, 2.0)
    assert store.table("t").get([1])[0, 0] == -2.5


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_grad_scale_that_cannot_divide_is_refused(store, scale):
    with pytest.raises(ValueError, match="positive and finite"):
        store.grad_scale = scale
    assert store.grad_scale == 1.0


# ------------------------------------------------------------------ evictions, and what a graph holds


def test_a_row_evicted_between_forward_and_backward_is_looked_up_again(tmp_path):
    rows = []
    for cache_bytes in (0, A_HANDFUL_OF_ROWS):
        options = damo.StoreOptions(cache_bytes=cache_bytes)
        with damo.EmbeddingStore(tmp_path / str(cache_bytes), options=options) as store:
            ebc = collection(store, "t", dim=16, optimizer=torchrec.optim.RowWiseAdagrad)
            update(ebc, {"t": [[i] for i in range(20)]})
            waiting = [look_up(ebc, {"t": [[i, i + 1], [i]]}) for i in range(0, 40, 4)]  # half of them have no row yet
            update(ebc, {"t": [[i] for i in range(100, 400)]})
            store.table("t").delete([3])
            for output in waiting:
                output.backward(torch.ones_like(output))
            if cache_bytes:
                assert store.stats().tables["t"].cached_rows < 20, "nothing was evicted"
            rows.append(rows_of(store))
    assert rows[0] == rows[1]


def test_a_loss_kept_alive_holds_no_cache_memory():
    with damo.EmbeddingStore(options=damo.StoreOptions(cache_bytes=A_HANDFUL_OF_ROWS)) as store:
        ebc = collection(store, "t", dim=16)
        update(ebc, {"t": [[i] for i in range(500)]})
        look_up(ebc, {"t": [[0]]})
        memory, cached = store.stats().memory_bytes, store.stats().tables["t"].cached_rows
        losses = [look_up(ebc, {"t": [[i] for i in range(500)]}).sum() for _ in range(10)]
        look_up(ebc, {"t": [[0]]})
        assert len(losses) == 10
        assert store.stats().tables["t"].cached_rows <= max(cached, 20)
        assert store.stats().memory_bytes <= memory + 2**20


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_activations_run_the_forward_twice_and_the_update_once(store, use_reentrant):
    ebc = collection(store, "plain", "again", initial=2.0)
    calls = []

    def part(x, name):
        calls.append(name)
        other = "again" if name == "plain" else "plain"
        return (look_up(ebc, {name: [[1, 2], [2]], other: [[], []]}) * x).sum()

    x = torch.tensor(3.0, requires_grad=True)
    part(x, "plain").backward()
    expected, x.grad = x.grad, None
    checkpoint(part, x, "again", use_reentrant=use_reentrant).backward()
    assert calls == ["plain", "again", "again"]
    assert x.grad == expected
    assert store.step == 2
    assert torch.equal(store.table("plain").get([1, 2]), store.table("again").get([1, 2]))
    assert store.table("again").get([1, 2])[:, 0].tolist() == [2.0 - 3.0, 2.0 - 6.0]


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adagrad])
def test_the_smallest_numbers_are_what_torch_makes_of_them(memory_store, optimizer, flush):
    """They are kept whatever the caller's processor flushes to zero: torch's result without flushing is the oracle."""
    smallest, gradients = 2.0**-149, torch.tensor([2.0**-149, -(2.0**-140), 2.0**-127, 3 * 2.0**-128])
    weight = torch.nn.Parameter(torch.full((4,), 5 * smallest))
    theirs = optimizer([weight], lr=1.0)
    weight.grad = gradients.clone()
    theirs.step()
    ebc = collection(memory_store, "t", optimizer=optimizer, initial=5 * smallest)
    batch = kjt({"t": [[7]]})
    output = ebc(batch).values()
    if flush and not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    try:
        output.backward(gradients[None])
    finally:
        torch.set_flush_denormal(False)
    (row,) = memory_store.table("t").get([7])
    assert row.view(torch.int32).tolist() == weight.detach().view(torch.int32).tolist()
    assert torch.equal(ebc.eval()(batch).values()[0], row)


# ------------------------------------------------------------------ rows that a finite gradient would make infinite

LARGE = 3e38
OVERFLOWS = {
    "a learning rate that is too large": (torchrec.optim.SGD, {"lr": 1e30}, 1e20),
    "a weight at the end of the range": (torchrec.optim.SGD, {"lr": 1.0}, -LARGE),
    "a square that overflows": (torch.optim.Adagrad, {"lr": 1.0}, 1e25),
    "0 / 0": (torch.optim.Adagrad, {"lr": 1.0, "eps": 0.0}, 0.0),
    "a row-wise 0 / 0": (torchrec.optim.RowWiseAdagrad, {"lr": 1.0, "eps": 0.0}, 0.0),
    "a second moment": (torch.optim.Adam, {"lr": 1.0}, 1e25),
}


@pytest.mark.parametrize(("optimizer", "hyperparameters", "gradient"), OVERFLOWS.values(), ids=OVERFLOWS.keys())
@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_finite_gradient_that_would_make_a_row_infinite_updates_nothing(optimizer, hyperparameters, gradient, policy):
    with damo.EmbeddingStore(options=damo.StoreOptions(num_threads=2, on_nonfinite=policy)) as store:
        fine = collection(store, "fine", initial=1.0)
        faulty = collection(store, "faulty", initial=LARGE, optimizer=optimizer, **hyperparameters)
        update(fine, {"fine": [[1]]})
        before = rows_of(store)

        def step(factor):
            output = look_up(faulty, {"faulty": [[5], [-3]]})
            torch.autograd.backward(
                [look_up(fine, {"fine": [[1], [2]]}), output],
                [torch.ones(2, 4), torch.tensor([[0.5], [gradient]]).expand(2, 4) * factor],
            )

        if policy == "raise":
            with pytest.raises(
                damo.NonFiniteGradientError, match=r'"faulty", id (5|-3), infinite or NaN.*no table was'
            ):
                step(1.0)
        else:
            step(1.0)
            assert store.stats().skipped_backwards == 1
        assert rows_of(store) == before
        assert [store.table(name).iter for name in ("fine", "faulty")] == [1, 0]
        update(fine, {"fine": [[1]]})


def test_rows_of_numbers_far_from_ordinary_are_updated_like_others(store):
    """Each is tried first; what comes of it are the bits that other rows get."""
    steady = collection(store, "t", initial=1.0, optimizer=torch.optim.Adam, lr=0.5)
    tried = collection(store, "tried", initial=1.0, optimizer=torch.optim.Adam, lr=0.5)
    store.table("tried").set([7], torch.full((1, 4), 1e30))
    for step in range(3):
        for ebc, name in ((steady, "t"), (tried, "tried")):
            output = look_up(ebc, {name: [[i, i + 1] for i in range(200)]})
            output.backward(torch.arange(800.0).view(200, 4) * 10.0 ** (step - 2))
    rows = rows_of(store)
    same = [i for i in rows["t"] if i not in (6, 7, 8)]
    assert len(same) > 190
    assert all(rows["t"][i] == rows["tried"][i] for i in same)


def test_a_row_that_was_not_finite_before_does_not_stop_the_others(store):
    ebc = collection(store, "t", initial=1.0)
    # Past `Table.set`, which refuses it: such rows come from stores of older versions.
    odd, weights = torch.tensor([1]), torch.tensor([[float("nan"), float("inf"), 1.0, 1.0]])
    index = store.table("t").opened.index
    store.session.engine.set(index, odd.data_ptr(), 1, weights.data_ptr(), 0)
    update(ebc, {"t": [[1], [2]]})
    assert store.table("t").get([2])[0, 0] == 0.0
    assert store.step == 1
