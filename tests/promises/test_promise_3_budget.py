"""Promise 3: the memory budget holds."""

from pathlib import Path

import pytest
import torch
from torchrec import KeyedJaggedTensor

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
