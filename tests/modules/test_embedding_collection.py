"""`EmbeddingCollection`: TorchRec's sequences over a store."""

import pytest
import torch
import torchrec
from torchrec import EmbeddingConfig, KeyedJaggedTensor

import damo_torchrec as damo
from support import A_HANDFUL_OF_ROWS, kjt, random_kjt, small_store

DIM = 8
ROWS = 30


def tables():
    """One shared feature, a table of two features, one that takes its name for its feature."""
    return [
        EmbeddingConfig(name="t_item", embedding_dim=DIM, num_embeddings=ROWS, feature_names=["item", "seen"]),
        EmbeddingConfig(name="t_other", embedding_dim=DIM, num_embeddings=ROWS, feature_names=["seen"]),
        EmbeddingConfig(name="user", embedding_dim=DIM, num_embeddings=ROWS),
    ]


def both(store, need_indices=False, **kwargs):
    theirs = torchrec.EmbeddingCollection(tables(), need_indices=need_indices)
    ours = damo.EmbeddingCollection(
        tables(), torch.optim.SGD, {"lr": 0.5}, need_indices=need_indices, store=store, **kwargs
    )
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def batches(n=1, batch=6):
    generator = torch.Generator().manual_seed(5)
    for _ in range(n):
        yield random_kjt(generator, ["seen", "unused", "item", "user"], batch, ROWS)


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        assert torch.equal(ours[name].values(), expected.values()), name
        assert torch.equal(ours[name].lengths(), expected.lengths()), name
        assert torch.equal(ours[name].offsets(), expected.offsets()), name
        assert (ours[name].weights_or_none() is None) == (expected.weights_or_none() is None)
        if expected.weights_or_none() is not None:
            assert torch.equal(ours[name].weights(), expected.weights()), name


@pytest.mark.parametrize("need_indices", [False, True])
def test_outputs_are_torchrecs(memory_store, need_indices):
    theirs, ours = both(memory_store, need_indices)
    for features in batches(5):
        assert_same(ours(features), theirs(features))
    assert ours.need_indices() is need_indices
    assert ours.embedding_dim() == theirs.embedding_dim() == DIM
    assert ours.embedding_names_by_table() == theirs.embedding_names_by_table()
    assert [c.name for c in ours.embedding_configs()] == [c.name for c in theirs.embedding_configs()]
    assert ours.device == theirs.device
    assert ours.use_gather_select() is False  # TorchRec 1.4 has none of these yet
    assert ours.use_gather_select_per_sharding() is None


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (damo.EmbeddingCollection, torchrec.EmbeddingCollection),
        (damo.EmbeddingBagCollection, torchrec.EmbeddingBagCollection),
    ],
)
def test_there_is_what_the_torchrec_that_is_installed_may_ask_for(ours, theirs):
    """Each version's sharding asks for more. `reset_parameters` would make rows, which their first updates do."""
    asked = {name for name in vars(theirs) if not name.startswith("_")} - {"reset_parameters"}
    assert {"forward", "device"} < asked
    assert [name for name in sorted(asked) if not hasattr(ours, name)] == []


def test_ways_to_select_rows_are_kept_for_torchrecs_sharding(memory_store):
    """TorchRec has the last one from its version 1.9 on."""
    _, ours = both(memory_store, need_indices=False)
    assert ours.use_sorted_select() is False
    ours.set_use_sorted_select(True)
    assert ours.use_sorted_select() is True


def test_trains_like_torchrecs_with_a_dense_optimizer(tmp_path):
    with small_store(tmp_path / "store", cache_bytes=A_HANDFUL_OF_ROWS) as store:
        theirs, ours = both(store)
        optimizer = torch.optim.SGD(theirs.parameters(), lr=0.5)
        for features in batches(20):
            outputs = [collection(features) for collection in (theirs, ours)]
            for name, expected in outputs[0].items():
                torch.testing.assert_close(outputs[1][name].values(), expected.values())
            factors = {name: torch.randn(value.values().shape) for name, value in outputs[0].items()}
            losses = [sum((v.values() * factors[name]).sum() for name, v in output.items()) for output in outputs]
            optimizer.zero_grad()
            for loss in losses:
                loss.backward()
            optimizer.step()
        for table in ours.tables():
            weight = theirs.embeddings[table.name].weight.detach()
            torch.testing.assert_close(table.get(torch.arange(ROWS)), weight, rtol=1e-5, atol=1e-6)


def test_empty_sequences_and_batches(memory_store):
    theirs, ours = both(memory_store)
    for features in (
        kjt({"item": [[], []], "seen": [[], []], "user": [[], []]}),
        kjt({"item": [[], [1]], "seen": [[], []], "user": [[3], []]}),
    ):
        assert_same(ours(features), theirs(features))
    nothing = kjt({"item": [], "seen": [], "user": []})
    assert all(value.values().shape == (0, DIM) for value in ours(nothing).values())
    sum(value.values().sum() for value in ours(nothing).values()).backward()
    assert memory_store.step == 1


def test_any_int64_is_an_id_and_is_created_by_its_first_update(memory_store):
    ec = damo.EmbeddingCollection(tables()[2:], torch.optim.SGD, {"lr": 1.0}, store=memory_store)
    ids = [0, -1, 2**63 - 1, -(2**63), 2**32 + 3, 3]
    features = kjt({"user": [ids]})
    before = ec(features)["user"].values().detach().clone()
    assert len(memory_store.table("user")) == 0
    ec(features)["user"].values().sum().backward()
    assert len(memory_store.table("user")) == len(ids)
    torch.testing.assert_close(ec(features)["user"].values().detach(), before - 1)
    ec.eval()
    assert bool((ec(kjt({"user": [[12345]]}))["user"].values() == 0).all())


def test_a_batch_size_for_each_feature_is_taken(memory_store):
    theirs, ours = both(memory_store)
    features = KeyedJaggedTensor(
        keys=["item", "seen", "user"],
        values=torch.tensor([1, 2, 3, 4, 5, 6]),
        lengths=torch.tensor([1, 2, 0, 3]),
        stride_per_key_per_rank=[[2], [1], [1]],
        inverse_indices=(["item", "seen", "user"], torch.tensor([[0, 1], [0, 0], [0, 0]])),
    )
    assert_same(ours(features), theirs(features))


def test_prefetch_changes_nothing_but_where_rows_are(tmp_path):
    with small_store(tmp_path / "store") as store:
        _, ours = both(store)
        features = next(iter(batches()))
        expected = {name: value.values().clone() for name, value in ours(features).items()}
        ours.prefetch(features)
        for batch in damo.PrefetchIterator([features], ours):
            assert all(torch.equal(value.values(), expected[name]) for name, value in ours(batch).items())


@pytest.mark.parametrize(
    ("tables", "error", "what"),
    [
        (
            [
                EmbeddingConfig(name="a", embedding_dim=4, num_embeddings=3),
                EmbeddingConfig(name="b", embedding_dim=8, num_embeddings=3),
            ],
            ValueError,
            "one embedding_dim, got \\[4, 8\\]",
        ),
        ([EmbeddingConfig(name="a", embedding_dim=4, num_embeddings=3)] * 2, ValueError, "Duplicate table name a"),
    ],
)
def test_wrong_tables_are_refused(memory_store, tables, error, what):
    with pytest.raises(error, match=what):
        damo.EmbeddingCollection(tables, store=memory_store)
    assert memory_store.tables() == {}


def test_a_missing_feature_and_wrong_ids_are_refused(memory_store):
    _, ours = both(memory_store)
    with pytest.raises(KeyError, match="seen"):
        ours(kjt({"item": [[1]], "user": [[1]]}))
    bad = KeyedJaggedTensor(["item", "seen", "user"], torch.rand(3), lengths=torch.ones(3).long())
    with pytest.raises(TypeError, match=r"values must be int64 or int32, got torch.float32"):
        ours(bad)


@pytest.mark.parametrize(
    ("lengths", "what"),
    [([3, -1, 0], "must not be negative, got -1"), ([1, 1, 2], "must sum to the number of values, 3, got 4")],
)
def test_lengths_that_do_not_fit_are_refused(memory_store, lengths, what):
    _, ours = both(memory_store)
    features = KeyedJaggedTensor(["item", "seen", "user"], torch.arange(3), lengths=torch.tensor(lengths))
    with pytest.raises(ValueError, match=what):
        ours(features)
    assert memory_store.step == 0


def test_an_output_can_be_changed_in_place(memory_store):
    _, ours = both(memory_store)
    output = ours(next(iter(batches())))
    torch.relu_(output["user"].values()).sum().backward()
    assert memory_store.step == 1
