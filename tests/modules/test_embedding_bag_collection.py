"""The module against TorchRec's EmbeddingBagCollection over the same rows: outputs, gradients, names."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
import torchrec
from torch.nn.functional import embedding_bag
from torchrec import KeyedJaggedTensor, PoolingType
from torchrec.fx import symbolic_trace
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_modules import EmbeddingBagCollectionInterface

import damo_torchrec as damo
from support import A_HANDFUL_OF_ROWS, config, copy_rows, kjt, random_kjt, small_store

ROWS = 20
LAYOUTS = {
    "one table": [config("t", 8, ["f"])],
    "mixed dims": [config("t1", 3, ["f"]), config("t2", 16, ["g"]), config("t3", 1, ["h"])],
    "several features of a table": [config("t1", 4, ["f", "g"]), config("t2", 8, ["h"])],
    "a feature of several tables": [config("t1", 4, ["f", "g"]), config("t2", 8, ["g"])],
    "a feature twice in a table": [config("t1", 4, ["f", "f"])],
    "mixed pooling": [
        config("t1", 4, ["f"], pooling=PoolingType.MEAN),
        config("t2", 5, ["g"]),
        config("t3", 6, ["f", "h"], pooling=PoolingType.MEAN),
    ],
}


@dataclass
class Twins:
    """TorchRec's collection, and ours over a store with the same rows, whose update adds the gradient to the rows."""

    theirs: torchrec.EmbeddingBagCollection
    ours: damo.EmbeddingBagCollection

    def gradients(self):
        """The gradient of each table, of TorchRec and as our rows moved by it."""
        for table in self.ours.tables():
            weight = self.theirs.embedding_bags[table.name].weight
            yield weight.detach() - table.get(range(len(weight))), weight.grad

    def assert_same(self, ours, theirs):
        assert ours.keys() == theirs.keys()
        assert ours.length_per_key() == theirs.length_per_key()
        torch.testing.assert_close(ours.values(), theirs.values())


def twins(tables, store, is_weighted=False):
    tables = [replace(table, num_embeddings=ROWS) for table in tables]
    theirs = torchrec.EmbeddingBagCollection(copy.deepcopy(tables), is_weighted)
    ours = damo.EmbeddingBagCollection(tables, torch.optim.SGD, {"lr": 1.0}, is_weighted, store=store)
    copy_rows(theirs, ours)
    return Twins(theirs, ours)


def features_of(tables):
    return sorted({feature for table in tables for feature in table.feature_names})


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


def test_weights_of_an_unweighted_collection_are_passed_over(memory_store):
    pair = twins([config("t")], memory_store)
    features = {"t": [[1, 2], [3]]}
    pair.assert_same(pair.ours(kjt(features, weights=[5.0, 6.0, 7.0])), pair.theirs(kjt(features)))


def test_weights_of_any_floating_point_type_get_gradients_of_it(memory_store):
    ebc = damo.EmbeddingBagCollection([config("t")], is_weighted=True, store=memory_store)
    for dtype in (torch.float64, torch.float16):
        weights = torch.tensor([0.5, 2.0], dtype=dtype, requires_grad=True)
        features = KeyedJaggedTensor(["t"], torch.tensor([1, 2]), weights, lengths=torch.tensor([2]))
        ebc(features).values().sum().backward()
        assert weights.grad.dtype == dtype


def test_empty_bags_are_zeros(memory_store):
    pair = twins(LAYOUTS["mixed pooling"], memory_store)
    features = kjt({"f": [[], [1, 2]], "g": [[], []], "h": [[3], []]})
    pair.assert_same(pair.ours(features), pair.theirs(features))
    assert not pair.ours(features)["g"].any()


@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_batch_without_samples_gives_no_rows_of_output_and_counts_as_an_update(memory_store, is_weighted):
    tables = LAYOUTS["mixed pooling"]
    ebc = damo.EmbeddingBagCollection(tables, is_weighted=is_weighted, store=memory_store)
    empty = torch.empty(0, dtype=torch.int64)
    output = ebc(KeyedJaggedTensor(["f", "g", "h"], empty, torch.empty(0) if is_weighted else None, lengths=empty))
    assert output.values().shape == (0, 4 + 5 + 6 + 6)
    assert output["h"].shape == (0, 6)
    output.values().sum().backward()
    assert [table.iter for table in ebc.tables()] == [1, 1, 1]


def test_a_batch_of_empty_bags_counts_as_an_update(memory_store):
    ebc = damo.EmbeddingBagCollection([config("t")], store=memory_store)
    ebc(kjt({"t": [[], []]})).values().sum().backward()
    assert memory_store.step == 1
    assert len(memory_store.table("t")) == 0


@pytest.mark.parametrize("ids", [torch.int32, torch.int64])
@pytest.mark.parametrize("lengths", [torch.int32, torch.int64])
def test_ids_and_lengths_may_be_int32(memory_store, ids, lengths):
    pair = twins([config("t", 4, ["f", "g"])], memory_store)
    features = random_kjt(torch.Generator().manual_seed(0), ["f", "g"], 5, ROWS)
    narrow = KeyedJaggedTensor(features.keys(), features.values().to(ids), lengths=features.lengths().to(lengths))
    pair.assert_same(pair.ours(narrow), pair.theirs(features))


def test_ids_beyond_int32_are_rows_of_their_own(memory_store):
    ids = [3, 2**32 + 3, -1, -(2**63), 2**63 - 1, 0]
    ebc = damo.EmbeddingBagCollection([config("t", 4)], store=memory_store)
    rows = torch.arange(24.0).view(6, 4)
    memory_store.table("t").set(ids, rows)
    assert torch.equal(ebc(kjt({"t": [[i] for i in ids]}))["t"], rows)


@pytest.mark.parametrize(
    "keys", [["g", "h", "f"], ["unused", "f", "g", "h"], ["h", "unused", "g", "f", "also unused"]], ids=",".join
)
def test_keys_may_come_in_any_order_and_more_than_needed(memory_store, keys):
    pair = twins(LAYOUTS["mixed pooling"], memory_store)
    features = random_kjt(torch.Generator().manual_seed(0), keys, 6, ROWS)
    theirs, ours = pair.theirs(features), pair.ours(features)
    pair.assert_same(ours, theirs)
    for output in (theirs, ours):
        output.values().sum().backward()
    for moved, gradient in pair.gradients():
        torch.testing.assert_close(moved, gradient)


def test_the_same_key_order_is_not_needed_from_batch_to_batch(memory_store):
    pair = twins([config("t1", 4, ["f"]), config("t2", 4, ["g"])], memory_store)
    for keys in (["f", "g"], ["g", "f"], ["x", "g", "f"], ["f", "g"]):
        features = random_kjt(torch.Generator().manual_seed(0), keys, 6, ROWS)
        pair.assert_same(pair.ours(features), pair.theirs(features))


def test_offsets_may_take_the_place_of_lengths(memory_store):
    pair = twins([config("t", 4, ["f", "g"])], memory_store)
    for dtype in (torch.int32, torch.int64):
        offsets = torch.tensor([0, 2, 2, 5, 6], dtype=dtype)
        features = KeyedJaggedTensor(["f", "g"], torch.arange(6), offsets=offsets)
        pair.assert_same(pair.ours(features), pair.theirs(features))


def test_values_need_not_be_contiguous(memory_store):
    pair = twins([config("t")], memory_store, is_weighted=True)
    values, weights, lengths = torch.arange(12)[::2], torch.rand(12)[::2], torch.tensor([4, 9, 2, 9])[::2]
    features = KeyedJaggedTensor(["t"], values, weights, lengths=lengths)
    packed = KeyedJaggedTensor(["t"], values.clone(), weights.clone(), lengths=lengths.clone())
    pair.assert_same(pair.ours(features), pair.theirs(packed))


def test_a_slice_of_another_input_may_be_given(memory_store):
    pair = twins([config("t", 4, ["g"])], memory_store)
    features = random_kjt(torch.Generator().manual_seed(0), ["f", "g", "h"], 6, ROWS)
    pair.assert_same(pair.ours(features.split([1, 2])[1]), pair.theirs(features))


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


def test_a_collection_used_twice_in_a_graph_gets_two_updates(any_store):
    pair = twins([config("t")], any_store)
    first, second = (pair.ours(kjt({"t": [[i], [i + 1]]})).values() for i in (1, 2))
    (first * second).sum().backward()
    theirs = [pair.theirs(kjt({"t": [[i], [i + 1]]})).values() for i in (1, 2)]
    (theirs[0] * theirs[1]).sum().backward()
    moved, gradient = next(pair.gradients())
    torch.testing.assert_close(moved, gradient)
    assert any_store.step == 2


def test_second_derivatives_are_refused(memory_store):
    pair = twins([config("t")], memory_store, is_weighted=True)
    weights = torch.ones(2, requires_grad=True)
    features = KeyedJaggedTensor(["t"], torch.tensor([1, 2]), weights, lengths=torch.tensor([2]))
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


def test_a_model_can_be_traced_around_it(memory_store):
    ebc = damo.EmbeddingBagCollection([config("a"), config("b")], store=memory_store)
    model = DLRM(ebc, 3, [4, 8], [4, 1])
    inputs = torch.ones(2, 3), kjt({"a": [[1], [2]], "b": [[1], []]})
    traced = symbolic_trace(model, leaf_modules=["EmbeddingBagCollection"])
    assert torch.equal(traced(*inputs), model(*inputs))
    traced(*inputs).sum().backward()
    assert memory_store.step == 1


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's, on its way through TorchRec
def test_a_model_runs_under_torch_compile(memory_store):
    ebc = damo.EmbeddingBagCollection([config("a"), config("b")], store=memory_store)
    model = DLRM(ebc, 3, [4, 8], [4, 1])
    inputs = torch.ones(2, 3), kjt({"a": [[1], [2]], "b": [[1], []]})
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(*inputs), model(*inputs))
    compiled(*inputs).sum().backward()
    assert memory_store.step == 1


def test_a_collection_without_tables_gives_no_columns(memory_store):
    ebc = damo.EmbeddingBagCollection([], store=memory_store)
    assert ebc(kjt({"f": [[1], [2]]})).values().shape == (2, 0)
