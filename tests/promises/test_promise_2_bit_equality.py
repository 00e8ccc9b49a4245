"""Promise 2: ids, weights and optimizer state are the same bytes, whatever the machine and the budget."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from mixed_run import MixedRun, Rows, assert_same_rows, collection, rows_of, update
from processes import run
from support import A_HANDFUL_OF_ROWS, payloads


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> tuple[Rows, str]:
    """Rows and a digest of all outputs of a run with everything cached, on one thread."""
    with damo.EmbeddingStore(tmp_path_factory.mktemp("expected") / "store") as store:
        return trained(store)


@pytest.fixture(scope="module")
def ten_percent(expected) -> int:
    """A tenth of the bytes of all rows."""
    rows, _ = expected
    return sum(len(row) for table in rows.values() for row in table.values()) // 10


def trained(store: damo.EmbeddingStore, **how: bool) -> tuple[Rows, str]:
    whole = MixedRun(store)
    whole.train(**how)
    return rows_of(store), whole.outputs.hexdigest()


def assert_equal(actual: tuple[Rows, str], expected: tuple[Rows, str]) -> None:
    assert_same_rows(actual[0], expected[0])
    assert actual[1] == expected[1], "the rows are equal, but an output on the way was not"


def test_the_run_exercises_what_it_should(expected, ten_percent):
    rows, _ = expected
    assert {table: len(r) > 1000 for table, r in rows.items()} == dict.fromkeys(rows, True)
    assert ten_percent > 100_000
    accumulators = torch.stack(
        [torch.frombuffer(bytearray(r[12:24]), dtype=torch.float32) for r in rows["word"].values()]
    )
    assert ((accumulators > 0) & (accumulators < torch.finfo(torch.float32).tiny)).any(), "no subnormal state"


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("cache", ["everything", "ten percent", "a handful"])
def test_promise_2_whatever_the_cache_and_the_threads(cache, threads, expected, ten_percent, tmp_path):
    cache_bytes = {"everything": 0, "ten percent": ten_percent, "a handful": A_HANDFUL_OF_ROWS}[cache]
    options = damo.StoreOptions(cache_bytes=cache_bytes, num_threads=threads)
    with damo.EmbeddingStore(tmp_path / "store", options=options) as store:
        assert_equal(trained(store), expected)
        tables = store.stats().tables.values()
        cached = sum(table.cached_rows for table in tables) / sum(table.rows for table in tables)
        low, high = {"everything": (1.0, 1.0), "ten percent": (0.0, 0.5), "a handful": (0.0, 0.1)}[cache]
        assert low <= cached <= high


@pytest.mark.parametrize("cache_bytes", [0, A_HANDFUL_OF_ROWS])
@pytest.mark.parametrize("instruction_set", ["avx512", "avx2", "plain"])
def test_promise_2_whatever_the_instruction_set(instruction_set, cache_bytes, expected, tmp_path):
    options = damo.StoreOptions(instruction_set=instruction_set, cache_bytes=cache_bytes)
    try:
        store = damo.EmbeddingStore(tmp_path / "store", options=options)
    except ValueError as error:
        pytest.skip(str(error))
    with store:
        assert store.session.engine.instruction_set == instruction_set
        assert_equal(trained(store), expected)


@pytest.mark.parametrize("cache_bytes", [0, A_HANDFUL_OF_ROWS])
def test_promise_2_whatever_the_backend(cache_bytes, expected):
    options = damo.StoreOptions(backend="memory", cache_bytes=cache_bytes, num_threads=2)
    with damo.EmbeddingStore(options=options) as store:
        assert_equal(trained(store), expected)


def test_promise_2_with_direct_io_and_the_least_budget(expected, tmp_path):
    options = damo.StoreOptions(direct_io=True, cache_bytes=A_HANDFUL_OF_ROWS)
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB", options=options) as store:
        assert_equal(trained(store), expected)


def test_promise_2_whatever_the_order_of_keys(expected, tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        assert_equal(trained(store, reverse_keys=True), expected)


@pytest.fixture
def flush_denormal() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("flush_denormal")
def test_promise_2_whatever_the_callers_floating_point_environment(threads, expected, tmp_path):
    with damo.EmbeddingStore(tmp_path / "store", options=damo.StoreOptions(num_threads=threads)) as store:
        assert_equal(trained(store), expected)


@pytest.mark.usefixtures("flush_denormal")
def test_promise_2_a_subnormal_hyperparameter_is_not_flushed(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        ebc = collection(store, "t", initial=1.0, optimizer=torch.optim.Adagrad, eps=1e-40)
        update(ebc, {"t": [[1]]}, gradient=0.0)  # 0 / (0 + eps)
        assert store.table("t").get([1]).tolist() == [[1.0] * 4]


@pytest.mark.parametrize("stop", [1, 13, MixedRun.STEPS - 1])
@pytest.mark.parametrize("cache_bytes", [0, A_HANDFUL_OF_ROWS])
def test_promise_2_stopped_and_resumed(cache_bytes, stop, expected, tmp_path):
    for first, last in ((0, stop), (stop, MixedRun.STEPS)):
        with damo.EmbeddingStore(tmp_path / "store", options=damo.StoreOptions(cache_bytes=cache_bytes)) as store:
            MixedRun(store).train(first, last)
            rows = rows_of(store)
    assert_same_rows(rows, expected[0])


def test_promise_2_resumed_in_another_process(expected, tmp_path):
    run(train_until, tmp_path / "store", 11)
    with damo.EmbeddingStore(tmp_path / "store") as store:
        MixedRun(store).train(11)
        assert_same_rows(rows_of(store), expected[0])


def train_until(path: Path, stop: int) -> None:
    with damo.EmbeddingStore(path) as store:
        MixedRun(store).train(0, stop)


def test_promise_2_gone_back_to_a_checkpoint(expected, tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        whole = MixedRun(store)
        whole.train(0, 7)
        checkpoint = store.checkpoint()
        whole.train(15, 20)
        store.restore(checkpoint)
        whole.train(7)
        assert_same_rows(rows_of(store), expected[0])


def test_promise_2_a_set_and_a_delete_on_the_way(tmp_path):
    """Rows that come and go by id are as reproducible as those that training makes."""
    seen = []
    for cache_bytes in (0, A_HANDFUL_OF_ROWS):
        path = tmp_path / f"store-{cache_bytes}"
        with damo.EmbeddingStore(path, options=damo.StoreOptions(cache_bytes=cache_bytes)) as store:
            whole = MixedRun(store)
            for step in range(0, MixedRun.STEPS, 5):
                whole.train(step, step + 5)
                store.table("item").delete(range(step, 3000, 7))
                store.table("item").set(range(step, 3000, 11), torch.full((len(range(step, 3000, 11)), 64), 0.25))
            seen.append(payloads(store, "item"))
    assert_same_rows({"item": seen[1]}, {"item": seen[0]})
