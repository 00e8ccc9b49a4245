"""What is taken of a KeyedJaggedTensor: any order of keys, any layout and number of ids, lengths and weights."""

import resource

import pytest
import torch
import torchrec
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from mixed_run import collection, update
from processes import run
from support import A_HANDFUL_OF_ROWS, config, kjt, random_kjt, small_store
from twins import LAYOUTS, ROWS, twins


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


def matrix_of_lengths(lengths):
    features = kjt({"f": [[1, 2, 1], [3], []], "g": [[], [2], [4, 4]]})
    return KeyedJaggedTensor(features.keys(), features.values(), lengths=lengths(features.lengths().view(2, 3)))


@pytest.mark.parametrize(
    "lengths", [lambda matrix: matrix, lambda matrix: matrix.t().contiguous().t(), lambda matrix: matrix.int()]
)
def test_lengths_may_be_a_row_for_each_key(memory_store, lengths):
    pair = twins([config("t", 4, ["f", "g"])], memory_store)
    features = matrix_of_lengths(lengths)
    pair.ours.prefetch(features)
    pair.assert_same(pair.ours(features), pair.theirs(features))

    tables = [torchrec.EmbeddingConfig(num_embeddings=ROWS, embedding_dim=4, name="s", feature_names=["f", "g"])]
    theirs = torchrec.EmbeddingCollection(tables)
    ours = damo.EmbeddingCollection(tables, store=memory_store)
    ours.load_state_dict(theirs.state_dict())
    ours.prefetch(features)
    found, expected = ours(features), theirs(features)
    for name in "fg":
        assert torch.equal(found[name].values(), expected[name].values())
        assert torch.equal(found[name].lengths(), expected[name].lengths())


@pytest.mark.parametrize("lengths", [lambda matrix: matrix.view(3, 2), lambda matrix: matrix[None]])
def test_lengths_of_other_shapes_are_refused(memory_store, lengths):
    bags = damo.EmbeddingBagCollection([config("t", 4, ["f", "g"])], store=memory_store)
    table = torchrec.EmbeddingConfig(num_embeddings=ROWS, embedding_dim=4, name="s", feature_names=["f", "g"])
    for ours in (bags, damo.EmbeddingCollection([table], store=memory_store)):
        with pytest.raises(ValueError, match=r"lengths must have one dimension or the shape \(2, 3\), got the shape"):
            ours(matrix_of_lengths(lengths))


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


@pytest.mark.parametrize("samples", [0, 1, 1000])
def test_bags_that_are_all_empty_update_no_row_and_count(store, samples):
    ebc = damo.EmbeddingBagCollection([config("a"), config("b", features=["x", "y"])], store=store)
    batch = kjt({name: [[]] * samples for name in ("a", "x", "y")})
    for i in range(3):
        output = ebc(batch).values()
        assert torch.equal(output, torch.zeros(samples, 24))
        output.backward(torch.ones_like(output))
        assert [(len(t), t.iter) for t in store.tables().values()] == [(0, i + 1)] * 2


def ask_for_more_than_memory() -> str:
    """In a process that could not allocate so many ids if it tried."""
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    n = 2**31
    batch = KeyedJaggedTensor(["t"], torch.zeros(1, dtype=torch.int64).expand(n), lengths=torch.tensor([n]))
    with small_store(cache_bytes=A_HANDFUL_OF_ROWS) as store:
        ebc = collection(store, "t", initial=0.0)
        for call in (ebc, ebc.prefetch, ebc.eval()):
            with pytest.raises(ValueError, match=r"2147483648 ids.*memory_budget") as raised:
                call(batch)
        update(ebc.train(), {"t": [[1]]})
        assert store.step == 1
        return str(raised.value)


def test_more_ids_than_memory_are_refused_before_they_are_copied():
    assert "67108864 bytes" in run(ask_for_more_than_memory)
