"""Promise 3: the memory budget holds."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor

import damo_torchrec as damo
from mixed_run import collection, update
from processes import resident_bytes, run

MIB = 2**20
ROWS, DIM, BATCH = 300_000, 64, 10_000  # with Adam's state 780 bytes a row: 3.5 times the least budget


def train(store: damo.EmbeddingStore) -> damo.EmbeddingBagCollection:
    ebc = collection(store, "t", dim=DIM, optimizer=torch.optim.Adam, lr=0.01)
    for first in range(0, ROWS, BATCH):
        revisited = torch.arange(first % 7, first + BATCH, 61)
        ids = torch.cat([torch.arange(first, first + BATCH), revisited])
        output = ebc(one_id_bags(ids)).values()
        output.backward(output.detach() + 0.01)
    return ebc


def one_id_bags(ids: torch.Tensor) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys=["t"], values=ids, lengths=torch.ones_like(ids))


def sample_of(store: damo.EmbeddingStore) -> bytes:
    """Some rows' weights, which two steps and more of Adam have made."""
    assert len(store.table("t")) == ROWS
    return store.table("t").get(range(0, ROWS, 61)).numpy().tobytes()


def measure(path: Path, budget: int) -> tuple[dict[str, int], dict[str, int], bytes]:
    """Trains in this process; the most it grew by the end of each phase, what the store says of its use, and rows."""
    with damo.EmbeddingStore() as small:  # what is loaded and allocated once, whatever the store
        ebc = collection(small, "t", dim=DIM, optimizer=torch.optim.Adam)
        ebc(one_id_bags(torch.arange(BATCH))).values().sum().backward()
    base = resident_bytes()
    growth: dict[str, int] = {}
    reported: dict[str, int] = {}

    def note(phase: str, store: damo.EmbeddingStore) -> None:
        growth[phase] = resident_bytes("VmHWM") - base
        reported[phase] = store.stats().memory_bytes

    with damo.EmbeddingStore(path, memory_budget=budget) as store:
        ebc = train(store)
        note("training", store)
        checkpoint = store.checkpoint()
        note("checkpoint", store)
        seen = 0
        for ids, weights in store.table("t").items(batch_size=4096):
            seen += len(ids)
            assert weights.shape == (len(ids), DIM)
        assert seen == ROWS
        note("items", store)
        ebc(one_id_bags(torch.arange(0, ROWS, 50))).values().sum().backward()
        store.restore(checkpoint)
        note("restore", store)
        ebc.eval()(one_id_bags(torch.arange(0, ROWS, 25)))
        store.table("t").get(range(0, ROWS, 25))
        note("reading", store)
        rows = sample_of(store)
    return growth, reported, rows


def train_without_a_limit(path: Path) -> bytes:
    with damo.EmbeddingStore(path, memory_budget="2GiB") as store:
        train(store)
        return sample_of(store)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[dict[str, int], dict[str, int], bytes]:
    return run(measure, tmp_path_factory.mktemp("limited") / "store", 64 * MIB)


def test_promise_3_the_budget_holds(measured):
    growth, _, _ = measured
    allowed = (64 + 64) * MIB
    assert ROWS * (DIM * 4 * 3 + 8) > 3 * 64 * MIB
    assert {phase: f"{bytes // MIB} MiB" for phase, bytes in growth.items() if bytes > allowed} == {}


def test_promise_3_what_the_store_reports_is_within_the_budget(measured):
    _, reported, _ = measured
    assert {phase: bytes for phase, bytes in reported.items() if bytes > 64 * MIB} == {}
    assert reported["training"] > 32 * MIB, "less than was in use"


def test_promise_3_rows_are_those_of_a_store_without_a_limit(measured, tmp_path):
    _, _, rows = measured
    assert rows == run(train_without_a_limit, tmp_path / "store"), "a row differs"


@pytest.mark.parametrize("budget", [0, 1, 64 * MIB - 1, "63MiB"])
def test_promise_3_less_than_the_least_is_refused_with_the_figure(tmp_path, budget):
    with pytest.raises(ValueError, match=r'at least 67108864 bytes \("64MiB"\), got'):
        damo.EmbeddingStore(tmp_path / "store", memory_budget=budget)


def test_promise_3_a_batch_that_needs_more_is_refused_with_a_figure_that_suffices(tmp_path):
    ids = one_id_bags(torch.arange(20_000))
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        ebc = collection(store, "t", dim=256, optimizer=torch.optim.Adam)
        with pytest.raises(ValueError, match=r'should be at least "\d+MiB"') as refusal:
            ebc(ids)
        update(ebc, {"t": [[1]]})  # and the store goes on
    enough = str(refusal.value).rpartition('"')[0].rpartition('"')[2]
    with damo.EmbeddingStore(tmp_path / "store", memory_budget=enough) as store:
        ebc = collection(store, "t", dim=256, optimizer=torch.optim.Adam)
        ebc(ids).values().sum().backward()
        assert len(store.table("t")) == 20_000
        assert store.stats().memory_bytes <= store.stats().memory_budget


# ------------------------------------------------------------------ batches of many ids

# What a batch has: features, ids and bags of each, and dim; sequences where every id is a bag.
MANY_IDS = {
    "four million ids": (1, 4_000_000, 40_000, 16),
    "one bag of eight million": (1, 8_000_000, 1, 16),
    "sequences of 200,000": (1, 200_000, 200_000, 64),
    "sequences of several features": (4, 100_000, 100_000, 32),
}


def train_on_many_ids(case: str, budget: int) -> tuple[int, int, int, list[int], list[int]]:
    """What this process grows by: with the cache full, at most by batches of many ids, and after them.

    Also what the store says that it uses, with a batch between forward and backward, and after each; and row 0's sum
    of gradients, in whole numbers.
    """
    features, ids_of_feature, bags, dim = MANY_IDS[case]
    names = [f"f{i}" for i in range(features)]
    configs = {"name": "t", "embedding_dim": dim, "num_embeddings": 1000, "feature_names": names}
    common = {"optimizer_type": torch.optim.SGD, "optimizer_kwargs": {"lr": 1.0}}
    options = {"t": damo.TableOptions(initializer=damo.init.Constant(0))}

    def lookup(store: damo.EmbeddingStore) -> Callable[[KeyedJaggedTensor], list[torch.Tensor]]:
        if bags == ids_of_feature:
            tables = [EmbeddingConfig(**configs)]
            ec = damo.EmbeddingCollection(tables, store=store, table_options=options, **common)
            return lambda features: [output.values() for output in ec(features).values()]
        tables = [EmbeddingBagConfig(**configs)]
        ebc = damo.EmbeddingBagCollection(tables, store=store, table_options=options, **common)
        return lambda features: [ebc(features).values()]

    def jagged(values: torch.Tensor, bags: int) -> KeyedJaggedTensor:
        lengths = torch.full((features * bags,), len(values) // (features * bags))
        return KeyedJaggedTensor(keys=names, values=values, lengths=lengths)

    def step(outputs: list[torch.Tensor]) -> None:
        torch.autograd.backward(outputs, [torch.full_like(output, -1.0) for output in outputs])

    with damo.EmbeddingStore() as small:  # what is loaded and allocated once, whatever the store
        step(lookup(small)(jagged(torch.arange(1000 * features), 10)))
    batch = jagged(torch.arange(features * ids_of_feature) % 1000, bags)
    few = torch.arange(20_000 * features)
    base = resident_bytes()
    between, after = [], []
    with damo.EmbeddingStore(memory_budget=budget) as store:
        forward = lookup(store)
        for i in range(40):
            step(forward(jagged(1000 + i * len(few) + few, 200)))
        full = resident_bytes() - base
        for _ in range(3):
            outputs = forward(batch)
            between.append(store.stats().memory_bytes)
            step(outputs)
            del outputs
            after.append(store.stats().memory_bytes)
        most = resident_bytes("VmHWM") - base
        ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps of torch's tensors
        given_back = resident_bytes() - base
        times = 3 * features * ids_of_feature // 1000
        assert torch.equal(store.table("t").get([0, 999]), torch.full((2, dim), float(times)))
    return full, most, given_back, between, after


@pytest.mark.parametrize("case", MANY_IDS)
def test_promise_3_batches_of_many_ids_stay_within_the_budget(case):
    features, _, bags, dim = MANY_IDS[case]
    full, most, given_back, between, after = run(train_on_many_ids, case, 64 * MIB)
    # Outputs and their gradients are the model's; those of several features are put together once more.
    outputs = features * bags * dim * 4
    assert most <= (64 + 64) * MIB + outputs * (2 if features == 1 else 3)
    assert given_back <= full + 32 * MIB
    assert max(between + after) <= 64 * MIB


def test_promise_3_many_ids_that_need_more_rows_than_fit_are_refused_with_a_figure_that_suffices(tmp_path):
    ids = one_id_bags(torch.arange(600_000))
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        ebc = collection(store, "t", dim=8)
        update(ebc, {"t": [[1]]})
        outputs = ebc(ids).values()  # which needs few of them at a time
        with pytest.raises(ValueError, match=r'should be at least "\d+MiB"') as refusal:
            outputs.sum().backward()
        assert (store.step, len(store.table("t"))) == (1, 1)
        update(ebc, {"t": [[1]]})  # and the store goes on
    enough = str(refusal.value).rpartition('"')[0].rpartition('"')[2]
    with damo.EmbeddingStore(tmp_path / "store", memory_budget=enough) as store:
        ebc = collection(store, "t", dim=8)
        ebc(ids).values().sum().backward()
        assert len(store.table("t")) == 600_000


def test_promise_3_more_ids_than_the_budget_are_refused_with_a_figure_that_suffices(tmp_path):
    ids = torch.zeros(8 * MIB + 1, dtype=torch.int64)
    one_bag = KeyedJaggedTensor(keys=["t"], values=ids, lengths=torch.tensor([len(ids)]))
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        ebc = collection(store, "t", dim=1)
        with pytest.raises(ValueError, match='it should be at least "65MiB"'):
            ebc(one_bag)
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="65MiB") as store:
        ebc = collection(store, "t", dim=1, initial=1.0)
        assert ebc(one_bag).values().item() == len(ids)


def restored(path: Path, budget: int) -> int:
    """The most that this process grew by training, a checkpoint and going back to it, with all rows in memory."""
    with damo.EmbeddingStore() as small:
        ebc = collection(small, "t", dim=DIM, optimizer=torch.optim.Adam)
        ebc(one_id_bags(torch.arange(BATCH))).values().sum().backward()
    base = resident_bytes()
    with damo.EmbeddingStore(path, memory_budget=budget) as store:
        ebc = train(store)
        checkpoint = store.checkpoint()
        ebc(one_id_bags(torch.arange(0, ROWS, 50))).values().sum().backward()
        store.restore(checkpoint)  # whose rows are all in a journal, and come into memory
        assert store.stats().tables["t"].cached_rows == ROWS
    return resident_bytes("VmHWM") - base


def test_promise_3_restoring_holds_one_cache_at_a_time(tmp_path):
    assert run(restored, tmp_path / "store", 384 * MIB) <= (384 + 64) * MIB
