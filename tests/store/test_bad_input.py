"""Wrong calls: each raises an exception that says what was wrong, and changes no row."""

import copy
import pickle

import pytest
import torch
import torchrec
from torchrec import DataType, EmbeddingConfig, KeyedJaggedTensor, PoolingType
from torchrec.modules.embedding_configs import CountBasedEvictionPolicy

import damo_torchrec as damo
from support import config, payloads, small_store
from wrong_batches import BATCHES, WEIGHTS, batch, collection, refused, trained

# ---------------------------------------------------------------- batches


@pytest.mark.parametrize(("make", "error", "match"), BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("training", [True, False])
def test_a_wrong_batch_is_refused(memory_store, make, error, match, training):
    ebc = trained(memory_store).train(training)
    with refused(memory_store, error, match):
        ebc(make())


@pytest.mark.parametrize("features", [None, torch.tensor([1, 2]), {"f": torch.tensor([1])}, [[1, 2]]], ids=type)
def test_what_is_no_keyed_jagged_tensor_is_refused_with_its_type(memory_store, features):
    ebc = trained(memory_store)
    ec = damo.EmbeddingCollection([EmbeddingConfig(name="s", embedding_dim=4, num_embeddings=9)], store=memory_store)
    for called in (ebc, ec):
        with refused(memory_store, TypeError, f"must be a KeyedJaggedTensor, got {type(features).__name__}"):
            called(features)


@pytest.mark.parametrize(("weights", "error", "match"), WEIGHTS.values(), ids=WEIGHTS)
def test_wrong_weights_of_a_batch_are_refused(memory_store, weights, error, match):
    ebc = trained(memory_store, is_weighted=True)
    with refused(memory_store, error, match):
        ebc(batch(weights=weights))


def test_a_batch_larger_than_the_budget_is_refused_with_what_it_needs(memory_store):
    ebc = trained(memory_store)
    wide = collection(memory_store, config("wide", 512))
    ids = torch.arange(30_000)
    with refused(memory_store, ValueError, r'memory_budget \(67108864 bytes.*should be at least "\d+MiB"'):
        wide(KeyedJaggedTensor(["wide"], ids, lengths=torch.ones_like(ids)))
    ebc(batch()).values().sum().backward()
    assert memory_store.step == 2


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_names_table_and_id_and_updates_no_table(memory_store, value):
    ebc = trained(memory_store)
    output = ebc(batch(torch.tensor([1, -7, 3]))).values()
    gradient = torch.ones_like(output)
    gradient[0, 6] = value
    with refused(memory_store, damo.NonFiniteGradientError, r'table "u", id -7, is not finite .*column 2'):
        output.backward(gradient)


def test_skipping_gradients_that_are_not_finite_updates_no_table_and_counts():
    with small_store(on_nonfinite="skip") as store:
        ebc = trained(store)
        before = {name: payloads(store, name) for name in "tu"}
        (ebc(batch()).values() * float("nan")).sum().backward()
        assert {name: payloads(store, name) for name in "tu"} == before
        assert (store.stats().skipped_backwards, store.step) == (1, 1)
        ebc(batch()).values().sum().backward()
        assert (store.stats().skipped_backwards, store.step) == (1, 2)


def test_a_computed_weight_that_is_nan_is_a_gradient_that_is_not_finite(memory_store):
    ebc = trained(memory_store, is_weighted=True)
    weights = torch.tensor([1.0, float("nan"), 1.0], requires_grad=True)  # which may be what a model has computed
    output = ebc(batch(weights=weights)).values()
    with refused(memory_store, damo.NonFiniteGradientError, 'table "u", id 2'):
        output.sum().backward()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("training", [True, False])
def test_a_weight_of_the_data_that_is_not_finite_is_named(memory_store, value, training):
    ebc = trained(memory_store, is_weighted=True).train(training)
    with refused(memory_store, ValueError, f"that of id 2, at place 1 of the KeyedJaggedTensor's weights, is {value}"):
        ebc(batch(weights=torch.tensor([1.0, value, 1.0])))


@pytest.mark.parametrize("kind", [damo.EmbeddingBagCollection, damo.EmbeddingCollection])
@pytest.mark.parametrize(
    ("tables", "error", "message"),
    [
        ([], ValueError, "tables is empty: a collection needs the config of at least one table"),
        (config("t"), TypeError, "tables must be a list of TorchRec's configs of tables, got EmbeddingBagConfig"),
        ([{"name": "t"}], TypeError, "tables must be a list of TorchRec's configs of tables, got one with a dict"),
        ("t", TypeError, "tables must be a list of TorchRec's configs of tables, got str"),
        (None, TypeError, "tables must be a list of TorchRec's configs of tables, got NoneType"),
    ],
)
def test_what_is_no_list_of_tables_is_refused(memory_store, kind, tables, error, message):
    with pytest.raises(error, match=message):
        kind(tables, store=memory_store)


# ---------------------------------------------------------------- tables and modules

TABLES = {
    "no pooling": (config("new", pooling=PoolingType.NONE), "table 'new': pooling must be SUM or MEAN, got .*NONE"),
    "8-bit integers": (
        config("new", data_type=DataType.INT8),
        "table 'new': data_type must be FP32, FP16 or BF16, got INT8",
    ),
    "an eviction policy": (
        config("new", use_virtual_table=True, virtual_table_eviction_policy=CountBasedEvictionPolicy()),
        "table 'new': its CountBasedEvictionPolicy removes rows by their count alone",
    ),
    "no columns": (config("new", 0), "table 'new': embedding_dim must be positive, got 0"),
    "more columns than an int has room for": (
        config("new", 2**31),
        "table 'new': embedding_dim must be at most 16777216, got 2147483648",
    ),
    "more columns than int64 has room for": (
        config("new", 2**64),
        "table 'new': embedding_dim must be at most 16777216",
    ),
    "the most columns there can be": (
        config("new", 2**24),
        "row of 67108888 bytes is too large for this memory budget",
    ),
    "a row beyond the budget": (config("new", 10**6), "new.*row of 4000024 bytes is too large for this memory budget"),
    "no name": (
        torchrec.EmbeddingBagConfig(name="", embedding_dim=4, num_embeddings=1, feature_names=["f"]),
        "every table needs a name",
    ),
    "a name that is there": (config("fine"), "Duplicate table name fine"),
}


@pytest.mark.parametrize(("table", "match"), TABLES.values(), ids=TABLES)
def test_a_wrong_table_is_refused_and_none_is_opened(memory_store, table, match):
    trained(memory_store)
    with refused(memory_store, ValueError, match):
        collection(memory_store, config("fine"), table)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"optimizer_kwargs": {"momentum": 0.9}}, ValueError, "RowWiseAdagrad: momentum=0.9 is not supported"),
        ({"optimizer_type": torch.optim.RMSprop}, ValueError, "no update rule for torch.optim.*RMSprop"),
        (
            {"optimizer_type": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)},
            TypeError,
            "optimizer_type must be an optimizer class, got an instance of torch.optim.SGD: give its class",
        ),
        ({"optimizer_type": "SGD"}, TypeError, "optimizer_type must be an optimizer class, got 'SGD'"),
        ({"device": "mps"}, ValueError, "device must be cpu, cuda or meta, got mps"),
        (
            {"table_options": {"x": damo.TableOptions()}},
            ValueError,
            r"not there: \['x'\]; there are \['t', 'new'\]",
        ),
        ({"table_options": {"t": {"unseen_in_eval": "zeros"}}}, TypeError, "TableOptions.*dict"),
    ],
    ids=str,
)
def test_wrong_arguments_of_a_collection_are_refused(memory_store, arguments, error, match):
    trained(memory_store)
    with refused(memory_store, error, match):
        collection(memory_store, config("t", 4, ["f"]), config("new"), **arguments)


def test_a_store_that_is_none_is_refused():
    with pytest.raises(TypeError, match="store must be an EmbeddingStore, got str"):
        collection("embeddings/", config("t"))


def test_a_table_opened_again_with_another_schema_is_refused_with_both(tmp_path):
    path = tmp_path / "store"
    with small_store(path) as store:
        trained(store)
        with refused(store, damo.SchemaMismatchError, f"'t' of the store {path} has dim 4, got 8"):
            collection(store, config("t", 8))
    with small_store(path) as store:
        collection(store, config("u", 4))
        with refused(store, damo.SchemaMismatchError, f"'t' of the store {path} has dim 4, got 8"):
            collection(store, config("t", 8))
        with refused(store, damo.SchemaMismatchError, "has optimizer .*'ROWWISE_ADAGRAD'.*, got .*'ADAM'"):
            collection(store, config("t", 4), optimizer_type=torch.optim.Adam)


def test_wrong_ids_and_weights_of_a_table_are_refused(memory_store):
    trained(memory_store)
    table = memory_store.table("t")
    for call in (table.get, table.delete, table.contains, lambda ids: table.set(ids, torch.ones(1, 4))):
        for ids, error, match in [
            (torch.tensor([1.0]), TypeError, "of integers, .* got a tensor of torch.float32"),
            (torch.tensor([[1]]), ValueError, r"shape \(n,\), got \(1, 1\)"),
            (1, TypeError, "got int"),
            ([1.5], TypeError, r"must be ints, got \[1.5\]"),
            ([2**63], ValueError, str(2**63)),
        ]:
            with refused(memory_store, error, match):
                call(ids)
    for weights, error, match in [
        (torch.ones(1, 3), ValueError, r"'t': weights must have the shape \(1, 4\), got \(1, 3\)"),
        (torch.ones(1, 4).long(), TypeError, "floating point tensor .* got a tensor of torch.int64"),
        (torch.tensor([[0.0, float("nan"), 0.0, 0.0]]), ValueError, "'t': weights must be finite"),
    ]:
        with refused(memory_store, error, match):
            table.set([1], weights)


@pytest.mark.parametrize("n", [1.5, float("nan"), "2", None, True])
def test_a_number_of_passes_that_is_none_is_refused(memory_store, n):
    with pytest.raises(TypeError, match="accumulate needs an int, got "):
        memory_store.accumulate(n)


def test_a_table_that_is_not_there_is_a_key_error_with_those_that_are(memory_store):
    trained(memory_store)
    with refused(memory_store, KeyError, r"has no table 'x'; its tables are \['t', 'u'\]"):
        memory_store.table("x")


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "torch.save": lambda model: torch.save(model, "/dev/null"),
}


@pytest.mark.parametrize("copy_of", COPIES.values(), ids=COPIES)
def test_copies_and_pickles_are_refused_with_what_to_use_instead(memory_store, copy_of):
    ebc = trained(memory_store)
    for original in (ebc, memory_store, *ebc.tables(), torch.nn.Sequential(ebc)):
        with refused(memory_store, TypeError, "cannot be copied or pickled: use save_model and load_model"):
            copy_of(original)


# ---------------------------------------------------------------- stores


def test_a_wrong_table_option_is_refused():
    with pytest.raises(ValueError, match="unseen_in_eval must be 'zeros', 'initial' or 'mean', got 'ones'"):
        damo.TableOptions(unseen_in_eval="ones")
    with pytest.raises(ValueError, match="unseen_in_train must be 'initial' or 'zeros', got 'mean'"):
        damo.TableOptions(unseen_in_train="mean")


def test_what_a_store_in_memory_cannot_do_is_refused(tmp_path, memory_store):
    trained(memory_store)
    for call in (memory_store.checkpoint, memory_store.restore):
        with refused(memory_store, ValueError, 'backend="memory" has no checkpoints'):
            call()
    with pytest.raises(ValueError, match='backend="memory" keeps nothing on disk: it takes no path'):
        small_store(tmp_path / "store", backend="memory")


@pytest.mark.parametrize("path", [None, "store"], ids=["memory", "disk"])
def test_a_closed_store_says_so_with_its_path(tmp_path, path):
    store = small_store(path and tmp_path / path)
    ebc = trained(store)
    table = store.table("t")
    output = ebc(batch()).values()
    store.close()
    store.close()
    for call in (
        lambda: ebc(batch()),
        lambda: output.sum().backward(),
        lambda: table.get([1]),
        lambda: table.set([1], torch.ones(1, 4)),
        lambda: table.delete([1]),
        lambda: table.contains([1]),
        lambda: next(table.items()),
        lambda: len(table),
        lambda: table.iter,
        lambda: store.step,
        store.stats,
        store.flush,
        store.checkpoint,
        store.restore,
        lambda: collection(store, config("new")),
    ):
        with pytest.raises(damo.StoreClosedError, match=f"the store {store.path} is closed"):
            call()
    assert "closed" in repr(store)


@pytest.mark.parametrize("path", [None, "store"], ids=["memory", "disk"])
def test_an_iteration_ends_with_its_store_and_does_not_keep_it_open(tmp_path, path):
    store = small_store(path and tmp_path / path)
    trained(store)
    rows = store.table("t").items(batch_size=1)
    next(rows)
    store.close()
    with pytest.raises(damo.StoreClosedError, match=str(store.path)):
        next(rows)
    if path:
        with small_store(tmp_path / path) as again:
            trained(again)
            rows = again.table("t").items(batch_size=1)
            next(rows)
            again.restore()  # while an iteration is under way
            assert again.step == 1
