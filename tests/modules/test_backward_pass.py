"""One ``backward()`` is one step of a store: as torch's optimizer over dense parameters, or none at all."""

import gc
import itertools
import threading
import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torchrec import KeyedJaggedTensor
from torchrec.modules.embedding_configs import EmbeddingConfig

import damo_torchrec as damo
from mixed_run import collection, look_up, rows_of, update
from support import kjt

DIM, ROWS, INITIAL = 4, 6, 0.5
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1}),
    "adam": (torch.optim.Adam, {"lr": 0.1}),
}
EVERY_ROW = [[i, (i * i) % ROWS] for i in range(ROWS)]  # so that lazy and dense optimizers agree


@pytest.fixture
def store():
    with damo.EmbeddingStore(options=damo.StoreOptions(num_threads=2)) as opened:
        yield opened


@pytest.fixture
def skipping():
    with damo.EmbeddingStore(options=damo.StoreOptions(num_threads=2, on_nonfinite="skip")) as opened:
        yield opened


def flat(bags):
    return torch.tensor(list(itertools.chain.from_iterable(bags)))


class Dense:
    """What the rows should be: one weight that `nn.EmbeddingBag` and `nn.Embedding` share, and torch's optimizer."""

    def __init__(self, optimizer, hyperparameters):
        self.weight = torch.nn.Parameter(torch.full((ROWS, DIM), INITIAL))
        self.bags = torch.nn.EmbeddingBag(ROWS, DIM, mode="sum", _weight=self.weight.data)
        self.rows = torch.nn.Embedding(ROWS, DIM, _weight=self.weight.data)
        self.bags.weight = self.rows.weight = self.weight
        self.optimizer = optimizer([self.weight], **hyperparameters)

    def pool(self, bags):
        ends = itertools.accumulate(map(len, bags), initial=0)
        return self.bags(flat(bags), torch.tensor(list(ends)[:-1]))

    def step(self, *losses):
        self.optimizer.zero_grad()
        for loss in losses:
            loss.backward()
        self.optimizer.step()

    def assert_equal(self, store, table="t"):
        torch.testing.assert_close(store.table(table).get(range(ROWS)), self.weight.detach(), rtol=1e-5, atol=1e-6)


def sequences(store, optimizer, hyperparameters):
    tables = [EmbeddingConfig(name="t", embedding_dim=DIM, num_embeddings=ROWS, feature_names=["t"])]
    options = {"t": damo.TableOptions(initializer=damo.init.Constant(INITIAL))}
    return damo.EmbeddingCollection(tables, optimizer, hyperparameters, store=store, table_options=options)


def loss_of(output, number):
    """Of an output; its gradient depends on it, so that a step in between would be seen."""
    target = torch.arange(output.numel()).view_as(output) * 0.1 * number
    return ((output - target) ** 2).mean()


# ------------------------------------------------------------------ several lookups in one pass


@pytest.mark.parametrize(("optimizer", "hyperparameters"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_collection_used_twice_in_a_graph_makes_one_step(store, optimizer, hyperparameters):
    ebc = collection(store, "t", initial=INITIAL, optimizer=optimizer, **hyperparameters)
    dense = Dense(optimizer, hyperparameters)
    for _ in range(3):
        first, second = look_up(ebc, {"t": EVERY_ROW}), look_up(ebc, {"t": EVERY_ROW[::-1]})
        (loss_of(first, 1) + loss_of(first * second, 2)).backward()
        first, second = dense.pool(EVERY_ROW), dense.pool(EVERY_ROW[::-1])
        dense.step(loss_of(first, 1) + loss_of(first * second, 2))
    assert store.step == 3
    dense.assert_equal(store)


@pytest.mark.parametrize(("optimizer", "hyperparameters"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_pooled_and_sequence_collections_over_one_table_make_one_step(store, optimizer, hyperparameters):
    ebc = collection(store, "t", initial=INITIAL, optimizer=optimizer, **hyperparameters)
    ec = sequences(store, optimizer, hyperparameters)
    dense = Dense(optimizer, hyperparameters)
    for _ in range(3):
        rows = ec(kjt({"t": EVERY_ROW}))["t"].values()
        (loss_of(look_up(ebc, {"t": EVERY_ROW}), 1) + loss_of(rows, 2)).backward()
        rows = dense.rows(flat(EVERY_ROW))
        dense.step(loss_of(dense.pool(EVERY_ROW), 1) + loss_of(rows, 2))
    assert store.step == 3
    dense.assert_equal(store)


def test_two_backwards_are_two_steps_and_with_accumulate_one(store):
    optimizer, hyperparameters = OPTIMIZERS["adagrad"]
    ebc = collection(store, "t", initial=INITIAL, optimizer=optimizer, **hyperparameters)
    dense = Dense(optimizer, hyperparameters)

    def losses(pool):
        output = pool(EVERY_ROW)
        return loss_of(output, 1), loss_of(output * output, 2)

    for loss in losses(lambda bags: look_up(ebc, {"t": bags})):
        loss.backward(retain_graph=True)
    gradients = [torch.autograd.grad(loss, dense.weight, retain_graph=True)[0] for loss in losses(dense.pool)]
    for gradient in gradients:
        dense.weight.grad = gradient
        dense.optimizer.step()
    assert store.step == 2
    dense.assert_equal(store)

    store.accumulate(2)
    for loss in losses(lambda bags: look_up(ebc, {"t": bags})):
        loss.backward(retain_graph=True)
    one, two = losses(dense.pool)
    dense.step(one + two)
    assert store.step == 3
    dense.assert_equal(store)


# ------------------------------------------------------------------ accumulate


def test_accumulate_counts_passes_of_the_store_and_not_calls_of_a_collection(store):
    a, b = collection(store, "a", initial=0.0), collection(store, "b", initial=0.0)
    store.accumulate(2)
    update(a, {"a": [[1]]})
    assert store.step == 0
    update(b, {"b": [[1]]})
    assert [store.table(name).get([1])[0, 0] for name in "ab"] == [-1.0, -1.0]
    (look_up(a, {"a": [[1]]}).sum() + look_up(a, {"a": [[1]]}).sum() + look_up(b, {"b": [[1]]}).sum()).backward()
    assert store.step == 1, "three calls, and one pass"
    (torch.ones(1, requires_grad=True) * look_up(a.eval(), {"a": [[1]]})).sum().backward()
    assert store.step == 1, "a pass that brings rows nothing"
    update(b, {"b": [[1]]})
    assert [store.table(name).get([1])[0, 0] for name in "ab"] == [-3.0, -3.0]


def test_what_waits_at_an_epochs_end_can_be_applied(store):
    ebc = collection(store, "t", initial=0.0)
    store.accumulate(3)
    assert not store.apply_accumulated(), "nothing waits"
    for _ in range(2):
        update(ebc, {"t": [[1]]})
    with pytest.raises(ValueError, match=r"gradients of 2 backward passes wait, which apply_accumulated\(\) applies"):
        store.checkpoint()
    assert store.apply_accumulated()
    assert store.table("t").get([1])[0, 0] == -2.0
    assert store.step == 1
    store.checkpoint()
    for _ in range(3):
        update(ebc, {"t": [[1]]})
    assert store.step == 2


def test_gradients_of_one_accumulation_may_have_differing_scales(store):
    ebc = collection(store, "t", initial=0.0)
    store.accumulate(2)
    for scale in (1024.0, 256.0):
        store.grad_scale = scale
        update(ebc, {"t": [[1]]}, scale)
    assert store.table("t").get([1])[0, 0] == -2.0
    update(ebc, {"t": [[1]]}, 256.0)
    store.grad_scale = 2.0
    assert store.apply_accumulated()
    assert store.table("t").get([1])[0, 0] == -3.0


def test_a_collection_that_is_gone_leaves_its_gradients_to_the_update(store):
    kept = collection(store, "t", initial=0.0)
    store.accumulate(2)
    gone = collection(store, "t", initial=0.0)
    update(gone, {"t": [[1]]})
    del gone
    gc.collect()
    update(kept, {"t": [[1]]})
    assert store.table("t").get([1])[0, 0] == -2.0


# ------------------------------------------------------------------ all or nothing


def test_a_gradient_that_is_not_finite_anywhere_leaves_all_collections_as_they_were(store):
    a, b = collection(store, "a"), collection(store, "b")
    update(a, {"a": [[1]]})
    update(b, {"b": [[1]]})
    before = rows_of(store)
    for factors in ((1.0, float("inf")), (float("nan"), 1.0)):
        outputs = look_up(a, {"a": [[1]]}), look_up(b, {"b": [[1]]})
        with pytest.raises(damo.NonFiniteGradientError, match="no table was updated"):
            sum(output.sum() * factor for output, factor in zip(outputs, factors, strict=True)).backward()
    assert rows_of(store) == before
    assert store.step == 1


def test_a_step_is_skipped_whole(skipping):
    a, b = collection(skipping, "a"), collection(skipping, "b")
    (look_up(a, {"a": [[1]]}).sum() + look_up(b, {"b": [[1]]}).sum() * float("inf")).backward()
    assert rows_of(skipping) == {"a": {}, "b": {}}
    assert skipping.stats().skipped_backwards == 1


@pytest.mark.parametrize("raises", ["a hook", "another node", "an interrupt"])
def test_a_pass_that_fails_leaves_nothing_behind(store, raises):
    ebc = collection(store, "t")
    error = KeyboardInterrupt if raises == "an interrupt" else RuntimeError

    def fail(_):
        raise error("in the middle of backward")

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            fail(grad)

    dense = torch.ones(1, 4, requires_grad=True)
    last = Fails.apply(dense) if raises == "another node" else dense * 1
    if raises != "another node":
        last.register_hook(fail)
    # Autograd goes through what was made last first: rows' gradients arrive before the pass fails.
    first, second = look_up(ebc, {"t": [[1]]}), look_up(ebc, {"t": [[2]]})
    arrived = []
    first.register_hook(arrived.append)
    with pytest.raises(error, match="in the middle of backward"):
        (last * first * second).sum().backward()
    assert arrived
    assert rows_of(store) == {"t": {}}
    store.accumulate(1)  # nothing waits
    update(ebc, {"t": [[3]]})
    assert list(rows_of(store)["t"]) == [3]
    assert store.step == 1


def test_a_pass_that_fails_in_an_accumulation_leaves_the_passes_before_it_waiting(store):
    ebc = collection(store, "t", initial=0.0)
    store.accumulate(2)
    update(ebc, {"t": [[1]]})
    dense = torch.ones(1, 4, requires_grad=True)
    dense.register_hook(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        (look_up(ebc, {"t": [[1]]}) * dense).sum().backward()
    update(ebc, {"t": [[1]]})
    assert store.table("t").get([1])[0, 0] == -2.0


def test_a_store_that_is_closed_in_the_middle_of_a_pass_raises(store):
    ebc = collection(store, "t")
    output = look_up(ebc, {"t": [[1]]})
    dense = torch.ones(1, 4, requires_grad=True)
    dense.register_hook(lambda _: store.close())
    with pytest.raises(damo.StoreClosedError):
        (output * dense).sum().backward()


def test_a_gradient_that_is_changed_in_place_before_the_pass_ends_is_refused(store):
    ebc = collection(store, "t")
    arrived = []
    earlier = torch.ones(1, 4, requires_grad=True) * 1
    output = look_up(ebc, {"t": [[1]]})
    output.register_hook(arrived.append)
    earlier.register_hook(lambda _: arrived[0].mul_(2) * 0)
    with pytest.raises(RuntimeError, match="changed in place before its rows were updated"):
        (output * 1 + earlier).sum().backward()
    assert rows_of(store) == {"t": {}}


def test_passes_of_several_threads_are_steps_of_their_own(store):
    """Each brings two gradients: whole numbers are exact in float32, so the sum shows the count."""
    ebc = collection(store, "t", initial=0.0)
    threads, updates = 4, 20
    failures = []

    def work(own):
        try:
            for _ in range(updates):
                (look_up(ebc, {"t": [[0]]}).sum() + look_up(ebc, {"t": [[0, own]]}).sum()).backward()
        except BaseException as error:  # a thread's failure would pass unseen
            failures.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(1, threads + 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    assert store.step == threads * updates
    assert store.table("t").get([0])[0, 0] == -2.0 * threads * updates
    assert store.table("t").get(range(1, threads + 1))[:, 0].tolist() == [-float(updates)] * threads


# ------------------------------------------------------------------ other ways to go backward


def test_gradients_of_some_tensors_alone_update_no_rows_and_say_so(store):
    ebc = collection(store, "t", is_weighted=True)
    weights = torch.ones(1, requires_grad=True)
    features = KeyedJaggedTensor(["t"], torch.tensor([1]), weights, lengths=torch.ones(1).long())
    with pytest.warns(UserWarning, match="they update no rows"):
        (gradient,) = torch.autograd.grad(ebc(features).values().sum(), weights)
    with pytest.warns(UserWarning, match="they update no rows"):
        ebc(features).values().sum().backward(inputs=[weights])
    assert torch.equal(gradient, weights.grad)
    assert rows_of(store) == {"t": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ebc(features).values().sum().backward()
    assert store.step == 1


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_activations_make_one_step(store, use_reentrant):
    optimizer, hyperparameters = OPTIMIZERS["adagrad"]
    ebc = collection(store, "t", initial=INITIAL, optimizer=optimizer, **hyperparameters)
    dense = Dense(optimizer, hyperparameters)
    scale = torch.ones(DIM, requires_grad=True)

    def block(factor, number, pool):
        return loss_of(pool(EVERY_ROW) * factor, number)

    def through(pool, run):
        return run(block, scale, 1, pool) + run(block, scale * 2, 2, pool) + loss_of(pool(EVERY_ROW), 3)

    def checkpointed(function, *arguments):
        return checkpoint(function, *arguments, use_reentrant=use_reentrant)

    for _ in range(2):
        through(lambda bags: look_up(ebc, {"t": bags}), checkpointed).backward()
        dense.step(through(dense.pool, lambda function, *arguments: function(*arguments)))
    assert store.step == 2
    dense.assert_equal(store)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.9's Dynamo
def test_a_graph_that_is_traced_takes_part_in_the_step(store):
    optimizer, hyperparameters = OPTIMIZERS["adagrad"]
    ebc = collection(store, "t", initial=INITIAL, optimizer=optimizer, **hyperparameters)
    dense = Dense(optimizer, hyperparameters)
    compiled = torch.compile(lambda features: ebc(features).values() * 2, backend="aot_eager")
    for _ in range(2):
        first, second = compiled(kjt({"t": EVERY_ROW})), look_up(ebc, {"t": EVERY_ROW[::-1]})
        loss_of(first * second, 1).backward()
        dense.step(loss_of(dense.pool(EVERY_ROW) * 2 * dense.pool(EVERY_ROW[::-1]), 1))
    assert store.step == 2
    dense.assert_equal(store)
    before = rows_of(store)
    x = torch.ones(1, requires_grad=True)
    torch.autograd.grad((compiled(kjt({"t": EVERY_ROW})) * x).sum(), x)
    assert rows_of(store) == before
