"""The module against TorchRec's EmbeddingBagCollection over the same rows: outputs, gradients, names."""

import copy

import pytest
import torch
import torchrec
from torch.nn.functional import embedding_bag
from torchrec import KeyedJaggedTensor, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollectionInterface

import damo_torchrec as damo
from support import A_HANDFUL_OF_ROWS, config, kjt, random_kjt, small_store
from twins import LAYOUTS, ROWS, features_of, twins


@pytest.fixture(params=[0, A_HANDFUL_OF_ROWS], ids=["cached", "evicted"])
def any_store(request):
    with small_store(cache_bytes=request.param) as store:
        yield store


@pytest.mark.parametrize("tables", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("batch", [1, 7, 300])
def test_outputs_names_and_gradients_are_torchrecs(any_store, tables, batch):
    pair = twins(tables, any_store)
    generator = torch.Generator().manual_seed(batch)
    features = random_kjt(generator, features_of(tables), batch, ROWS)
    theirs, ours = pair.theirs(features), pair.ours(features)
    pair.assert_same(ours, theirs)
    gradient = torch.randn(ours.values().shape, generator=generator)
    for output in (theirs, ours):
        output.values().backward(gradient)
    for moved, gradient in pair.gradients():
        torch.testing.assert_close(moved, gradient, rtol=1e-5, atol=1e-5 * batch**0.5)


def test_a_shared_feature_is_named_after_its_table_too(memory_store):
    pair = twins(LAYOUTS["a feature of several tables"], memory_store)
    assert pair.ours(kjt({"f": [[1]], "g": [[2]]})).keys() == ["f", "g@t1", "g@t2"]


def test_weighted_sums_and_the_gradients_of_weights_are_torchrecs(any_store):
    tables = [config("t1", 4, ["f", "g"]), config("t2", 7, ["f"])]
    pair = twins(tables, any_store, is_weighted=True)
    features = random_kjt(torch.Generator().manual_seed(0), ["f", "unused", "g"], 9, ROWS, weighted=True)
    weights, gradients = features.weights(), []
    for collection in (pair.theirs, pair.ours):
        leaf = weights.clone().requires_grad_()
        output = collection(KeyedJaggedTensor(features.keys(), features.values(), leaf, lengths=features.lengths()))
        output.values().backward(torch.linspace(-1, 1, output.values().numel()).view_as(output.values()))
        gradients.append((output, leaf.grad))
    (theirs, expected), (ours, actual) = gradients
    pair.assert_same(ours, theirs)
    torch.testing.assert_close(actual, expected)
    for moved, gradient in pair.gradients():
        torch.testing.assert_close(moved, gradient, rtol=1e-5, atol=1e-5)


def test_a_weighted_mean_divides_by_the_sum_of_the_weights(any_store):
    table = config("t", 8, ["f"], pooling=PoolingType.MEAN)
    ebc = damo.EmbeddingBagCollection([table], torch.optim.SGD, {"lr": 1.0}, is_weighted=True, store=any_store)
    rows = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(1))
    any_store.table("t").set(range(ROWS), rows)
    features = random_kjt(torch.Generator().manual_seed(2), ["f"], 9, ROWS, weighted=True)
    results = []
    for ours in (True, False):
        weights, table_rows = features.weights().clone().requires_grad_(), rows.clone().requires_grad_()
        if ours:
            output = ebc(KeyedJaggedTensor(["f"], features.values(), weights, lengths=features.lengths())).values()
        else:
            offsets = torch.cumsum(features.lengths(), 0) - features.lengths()
            arguments = {"offsets": offsets, "mode": "sum"}
            total = embedding_bag(features.values(), torch.ones(ROWS, 1), per_sample_weights=weights, **arguments)
            total = torch.where(total == 0, 1, total)  # an empty bag is zeros
            output = embedding_bag(features.values(), table_rows, per_sample_weights=weights, **arguments) / total
        output.backward(torch.linspace(-1, 1, output.numel()).view_as(output))
        moved = rows - any_store.table("t").get(range(ROWS)) if ours else table_rows.grad
        results.append((output.detach(), weights.grad, moved))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_mean_whose_weights_sum_to_zero_is_zeros(memory_store):
    table = config("t", 4, pooling=PoolingType.MEAN)
    ebc = damo.EmbeddingBagCollection([table], torch.optim.SGD, {"lr": 1.0}, is_weighted=True, store=memory_store)
    output = ebc(kjt({"t": [[1, 2]]}, weights=[1.0, -1.0])).values()
    output.sum().backward()
    assert torch.equal(output, torch.zeros(1, 4))


def test_without_feature_names_a_table_reads_the_feature_of_its_name(memory_store):
    table = torchrec.EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=ROWS)
    ebc = damo.EmbeddingBagCollection([table], store=memory_store)
    assert ebc(kjt({"t": [[1]]})).keys() == ["t"]
    assert ebc.embedding_bag_configs()[0].feature_names == ["t"]


def test_the_callers_configs_stay_as_they_are(memory_store):
    tables = [torchrec.EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=ROWS), config("u", 4, ["f", "g"])]
    kwargs = {"learning_rate": 0.1}
    before = copy.deepcopy(tables)
    ebc = damo.EmbeddingBagCollection(tables, torchrec.optim.RowWiseAdagrad, kwargs, store=memory_store)
    ebc.embedding_bag_configs()[1].feature_names.append("h")
    for table, old in zip(tables, before, strict=True):
        assert (table.name, table.feature_names) == (old.name, old.feature_names)
        assert (table.pooling, table.num_embeddings) == (old.pooling, old.num_embeddings)
    assert kwargs == {"learning_rate": 0.1}


def test_the_interface_is_torchrecs(memory_store):
    tables = [config("t1", 4, ["f"]), config("t2", 8, ["g"])]
    kwargs = {"lr": 0.1}
    ebc = damo.EmbeddingBagCollection(tables, torch.optim.SGD, kwargs, is_weighted=True, store=memory_store)
    assert isinstance(ebc, EmbeddingBagCollectionInterface)
    assert [c.name for c in ebc.embedding_bag_configs()] == ["t1", "t2"]
    assert ebc.is_weighted()
    assert ebc.device == torch.device("cpu")
    assert ebc.optimizer_type() is torch.optim.SGD
    assert ebc.optimizer_kwargs() == kwargs
    assert ebc.store is memory_store
    assert "t1" in repr(ebc)


def test_no_parameter_or_buffer_is_registered(memory_store):
    ebc = damo.EmbeddingBagCollection([config("t")], store=memory_store)
    assert list(ebc.parameters()) == []
    assert list(ebc.buffers()) == []
    assert list(ebc.state_dict()) == ["_extra_state"]  # modules/test_state.py says what it is


GRADIENTS = {
    "expanded": lambda out: out.sum(),
    "expanded by row": lambda out: out.sum(0) @ torch.arange(13.0),
    "transposed": lambda out: (out.t() * torch.arange(13.0 * 5).view(13, 5)).sum(),
    "sliced": lambda out: (out[1:4, 2:9] ** 2).sum(),
    "one column": lambda out: out[:, 3].sum(),
    "double": lambda out: (out.double() * torch.arange(13.0).double()).sum(),
    "bfloat16": lambda out: (out.bfloat16() * 2).sum(),
    "none for some rows": lambda out: out[::2].exp().sum(),
}


@pytest.mark.parametrize("loss", GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_of_any_layout_and_type_arrive(any_store, loss):
    pair = twins([config("t1", 8, ["f"]), config("t2", 5, ["g"])], any_store)
    features = random_kjt(torch.Generator().manual_seed(0), ["f", "g"], 5, ROWS)
    for collection in (pair.theirs, pair.ours):
        loss(collection(features).values()).backward()
    for moved, gradient in pair.gradients():
        torch.testing.assert_close(moved, gradient, rtol=1e-5, atol=1e-5)


def test_a_gradient_of_one_table_alone_is_zeros_for_the_others(memory_store):
    pair = twins([config("t1", 4, ["f"]), config("t2", 4, ["g"])], memory_store)
    features = kjt({"f": [[1]], "g": [[1]]})
    pair.ours(features)["f"].sum().backward()
    moved = [moved for moved, _ in pair.gradients()]
    torch.testing.assert_close(moved[0][1], torch.ones(4))
    assert not moved[1].any()
    assert [table.iter for table in pair.ours.tables()] == [1, 1]


def test_a_backward_called_twice_is_two_updates(any_store):
    pair = twins([config("t")], any_store)
    loss = pair.ours(kjt({"t": [[1], [1, 2]]})).values().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    moved, _ = next(pair.gradients())
    torch.testing.assert_close(moved[1], torch.full((8,), 4.0))
    torch.testing.assert_close(moved[2], torch.full((8,), 2.0))
    assert any_store.step == 2


def test_a_collection_used_twice_in_a_graph_gets_one_update(any_store):
    pair = twins([config("t")], any_store)
    first, second = (pair.ours(kjt({"t": [[i], [i + 1]]})).values() for i in (1, 2))
    (first * second).sum().backward()
    theirs = [pair.theirs(kjt({"t": [[i], [i + 1]]})).values() for i in (1, 2)]
    (theirs[0] * theirs[1]).sum().backward()
    moved, gradient = next(pair.gradients())
    torch.testing.assert_close(moved, gradient)
    assert any_store.step == 1


def test_second_derivatives_are_refused(memory_store):
    pair = twins([config("t")], memory_store, is_weighted=True)
    weights = torch.ones(2, requires_grad=True)
    features = KeyedJaggedTensor(["t"], torch.tensor([1, 2]), weights, lengths=torch.tensor([2]))
    with pytest.warns(UserWarning, match="update no rows"):
        (gradient,) = torch.autograd.grad((pair.ours(features).values() ** 2).sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_outputs_are_float32_whatever_torchs_default_dtype(memory_store, dtype):
    ebc = damo.EmbeddingBagCollection([config("t")], torch.optim.SGD, {"lr": 1.0}, store=memory_store)
    table = memory_store.table("t")
    table.set([1, 2], torch.arange(16.0).view(2, 8))
    torch.set_default_dtype(dtype)
    try:
        output = ebc(kjt({"t": [[1], [2]]})).values()
        output.sum().backward()
        rows = table.get([1, 2])
        items = list(table.items())
    finally:
        torch.set_default_dtype(torch.float32)
    assert output.dtype == rows.dtype == items[0][1].dtype == torch.float32
    assert torch.equal(output, torch.arange(16.0).view(2, 8))
    assert torch.equal(rows, torch.arange(16.0).view(2, 8) - 1)
    assert torch.equal(items[0][1], rows)


def test_torchs_default_device_does_not_matter(memory_store):
    ebc = damo.EmbeddingBagCollection([config("t")], torch.optim.SGD, {"lr": 1.0}, store=memory_store)
    table, features = memory_store.table("t"), kjt({"t": [[1]]})
    with torch.device("meta"):
        table.set([1], torch.ones(1, 8, device="cpu"))
        output = ebc(features).values()
        output.backward(torch.ones(1, 8, device="cpu"))
        rows = table.get(torch.tensor([1], device="cpu"))
        _, items = next(iter(table.items()))
    assert torch.equal(output, torch.ones(1, 8))
    assert torch.equal(rows, torch.zeros(1, 8))
    assert torch.equal(items, rows)
    assert bool(table.contains([1]))


def test_outputs_are_float32_under_autocast(memory_store):
    pair = twins([config("t", 4)], memory_store)
    layer = torch.nn.Linear(4, 2)
    features = kjt({"t": [[1], [2]]})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pair.ours(features).values().dtype == torch.float32
        for collection in (pair.theirs, pair.ours):
            layer(collection(features).values()).sum().backward()
    moved, gradient = next(pair.gradients())
    torch.testing.assert_close(moved, gradient)


def test_large_outputs_keep_their_memory_for_as_long_as_they_are_used():
    ids = torch.arange(4096)
    with small_store() as store:
        ebc = damo.EmbeddingBagCollection([config("t", 128)], torch.optim.SGD, {"lr": 1.0}, store=store)
        outputs, expected = [], []
        for first in range(0, 5 * 4096, 4096):
            features = KeyedJaggedTensor(["t"], ids + first, lengths=torch.ones_like(ids))
            output = ebc(features).values()
            outputs.append(output.detach()[7:9])  # a view is use enough
            expected.append(outputs[-1].clone())
            output.sum().backward()
            del output
    for view, rows in zip(outputs, expected, strict=True):
        assert torch.equal(view, rows)
