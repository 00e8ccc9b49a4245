"""Promise 2, with prefetches: training a DLRM reads and writes the same bits with them and without."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
import torchrec
from torch.utils.data import DataLoader
from torchrec import KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineBase
from torchrec.models.dlrm import DLRM, DLRMTrain

import damo_torchrec as damo
from mixed_run import Rows, assert_same_rows, collection, rows_of
from processes import resident_bytes, run
from support import A_HANDFUL_OF_ROWS, config, random_kjt, small_store

KEYS, DIM, STEPS = ["user", "item", "shop"], 8, 12
Source = Callable[[list[Batch]], Iterable[Batch]]


def make_batches(n: int = STEPS) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            dense_features=torch.randn(16, 4, generator=generator),
            sparse_features=random_kjt(generator, KEYS, 16, 300),
            labels=torch.randint(0, 2, (16,), generator=generator),
        )
        for _ in range(n)
    ]


class Training:
    """A DLRM on its way: a table of two features and one of one, and Adam for the dense layers."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        torch.manual_seed(0)
        self.store = store
        tables = [config("people", DIM, ["user", "item"]), config("shops", DIM, ["shop"])]
        self.ebc = damo.EmbeddingBagCollection(tables, torchrec.optim.RowWiseAdagrad, {"lr": 0.1}, store=store)
        self.model = DLRMTrain(DLRM(self.ebc, 4, dense_arch_layer_sizes=[8, DIM], over_arch_layer_sizes=[8, 1]))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.seen = hashlib.sha256()

    def step(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        loss, (_, logits, _) = self.model(batch)
        self.seen.update(logits.detach().numpy().tobytes())
        loss.backward()
        self.optimizer.step()

    def evaluate(self, batch: Batch) -> None:
        self.model.eval()
        with torch.no_grad():
            self.seen.update(self.model(batch)[1][1].numpy().tobytes())
        self.model.train()

    def result(self) -> tuple[Rows, str]:
        for weight in self.model.parameters():
            self.seen.update(weight.detach().numpy().tobytes())
        return rows_of(self.store), self.seen.hexdigest()


Loop = Callable[[Training, Iterable[Batch]], None]


def plain(training: Training, source: Iterable[Batch]) -> None:
    for batch in source:
        training.step(batch)


def with_evaluation(training: Training, source: Iterable[Batch]) -> None:
    for step, batch in enumerate(source):
        training.step(batch)
        if step % 3 == 1:
            training.evaluate(make_batches(step + 5)[step + 4])


def with_accumulation(training: Training, source: Iterable[Batch]) -> None:
    training.store.accumulate(3)
    plain(training, source)


def with_checkpoints(training: Training, source: Iterable[Batch]) -> None:
    for step, batch in enumerate(source):
        training.step(batch)
        if step % 4 == 1:
            training.store.checkpoint()


def with_a_step_back(training: Training, source: Iterable[Batch]) -> None:
    for step, batch in enumerate(source):
        training.step(batch)
        if step == 4:
            training.store.checkpoint()
        if step == 7:
            training.store.restore()


def with_rows_by_id(training: Training, source: Iterable[Batch]) -> None:
    people = training.store.table("people")
    for step, batch in enumerate(source):
        training.step(batch)
        if step % 2:
            people.delete(range(step, 300, 5))
            people.set(range(step, 300, 7), torch.full((len(range(step, 300, 7)), DIM), 0.25))
            training.seen.update(people.get(range(0, 300, 3)).numpy().tobytes())


def with_a_second_forward(training: Training, source: Iterable[Batch]) -> None:
    """Checkpointed activations look up twice and go back once."""
    for batch in source:
        training.model(batch)
        training.step(batch)


LOOPS = [plain, with_evaluation, with_accumulation, with_checkpoints, with_a_step_back, with_rows_by_id]
STORES = {
    "everything cached": {},
    "a handful cached": {"cache_bytes": A_HANDFUL_OF_ROWS},
    "a handful cached, wide reads": {"cache_bytes": A_HANDFUL_OF_ROWS, "direct_io": True},
}


def trained(store: damo.EmbeddingStore, loop: Loop, depth: int) -> tuple[Rows, str]:
    training = Training(store)
    batches: Iterable[Batch] = make_batches()
    loop(training, damo.PrefetchIterator(batches, training.model, depth) if depth else batches)
    return training.result()


def assert_equal(actual: tuple[Rows, str], expected: tuple[Rows, str]) -> None:
    assert_same_rows(actual[0], expected[0])
    assert actual[1] == expected[1], "the rows are equal, but outputs or dense weights are not"


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Callable[[Loop], tuple[Rows, str]]:
    """What a loop gives without prefetches, by loop."""
    results: dict[Loop, tuple[Rows, str]] = {}

    def result(loop: Loop) -> tuple[Rows, str]:
        if loop not in results:
            with small_store(tmp_path_factory.mktemp("expected") / "store") as store:
                results[loop] = trained(store, loop, depth=0)
        return results[loop]

    return result


@pytest.mark.parametrize("options", STORES.values(), ids=STORES)
@pytest.mark.parametrize("loop", [*LOOPS, with_a_second_forward], ids=lambda loop: loop.__name__)
def test_promise_2_whatever_is_read_ahead(tmp_path, expected, loop, options):
    for depth in (1, 4):
        with small_store(tmp_path / f"depth-{depth}", **options) as store:
            assert_equal(trained(store, loop, depth), expected(loop))


def test_the_loops_differ(expected):
    digests = {expected(loop)[1] for loop in LOOPS}
    # Checkpoints change nothing.
    assert len(digests) == len(LOOPS) - 1


def test_a_row_is_read_once_with_prefetches_as_without(tmp_path):
    read = []
    for depth in (0, 1, 4):
        with small_store(tmp_path / f"depth-{depth}") as store:
            trained(store, plain, depth)
            read.append(store.stats().rows_read)
    assert read[0] > 100
    assert read == [read[0]] * 3


def test_checkpoints_made_while_rows_are_read_hold_what_was_there(tmp_path):
    paths: list[list[Path]] = []
    for depth in (0, 4):
        with small_store(tmp_path / f"depth-{depth}", cache_bytes=A_HANDFUL_OF_ROWS) as store:
            trained(store, with_checkpoints, depth)
            paths.append(store.checkpoints())
    assert len(paths[0]) > 3
    for without, ahead in zip(*paths, strict=True):
        assert_same_rows(rows_in(ahead), rows_in(without))


def rows_in(checkpoint: Path) -> Rows:
    with damo.EmbeddingStore(checkpoint, read_only=True) as store:
        Training(store)
        return rows_of(store)


def test_a_store_that_closes_while_rows_are_read_has_every_update(tmp_path, expected):
    with small_store(tmp_path / "store") as store:
        training = Training(store)
        ahead = damo.PrefetchIterator(make_batches(STEPS + 5), training.model, 4)
        for _, batch in zip(range(STEPS), ahead, strict=False):
            training.step(batch)
    with small_store(tmp_path / "store") as store:
        Training(store)
        assert_same_rows(rows_of(store), expected(plain)[0])


def test_a_model_that_is_loaded_while_rows_are_read_goes_on_from_there(tmp_path, expected):
    with small_store(tmp_path / "store", cache_bytes=A_HANDFUL_OF_ROWS) as store:
        training = Training(store)
        ahead = damo.PrefetchIterator(make_batches(), training.model, 3)
        for _ in range(5):
            training.step(next(ahead))
        saved, seen = damo.save_model(training.model, optimizer=training.optimizer), training.seen.copy()
        for batch in make_batches()[7:10]:
            training.step(batch)
        damo.load_model(saved, training.model, optimizer=training.optimizer)
        training.seen = seen
        plain(training, iter(lambda: next(ahead, None), None))
        assert_equal(training.result(), expected(plain))


# ------------------------------------------------------------------ memory


def measure(path: Path) -> tuple[int, int]:
    """Trains with batches of a third of the cache in this process: by how much it grew, and how many rows it read."""
    wide, ids = 64, 10_000
    with damo.EmbeddingStore() as small:  # what is loaded and allocated once, whatever the store
        ebc = collection(small, "t", dim=wide, optimizer=torch.optim.Adam)
        ebc(one_id_bags(range(ids))).values().sum().backward()
    base = resident_bytes()
    with small_store(path, direct_io=True) as store:
        ebc = collection(store, "t", dim=wide, optimizer=torch.optim.Adam, lr=0.01)
        starts = [*range(0, 10 * ids, ids)] * 2
        source = (one_id_bags(range(start, start + ids)) for start in starts)
        for features in damo.PrefetchIterator(source, ebc, 2):
            ebc(features).values().sum().backward()
        assert store.stats().memory_bytes <= store.stats().memory_budget
        return resident_bytes("VmHWM") - base, store.stats().rows_read


def one_id_bags(ids: range) -> KeyedJaggedTensor:
    values = torch.tensor(ids)
    return KeyedJaggedTensor(keys=["t"], values=values, lengths=torch.ones_like(values))


def test_promise_3_the_budget_holds_with_rows_that_are_read_ahead(tmp_path):
    growth, rows_read = run(measure, tmp_path / "store")
    assert rows_read >= 100_000
    assert growth <= (64 + 64) * 2**20


# ------------------------------------------------------------------ TorchRec's train pipeline


def with_pipeline(training: Training, source: Iterator[Batch]) -> int:
    pipeline = TrainPipelineBase(training.model, training.optimizer, torch.device("cpu"))
    steps = 0
    while True:
        try:
            _, logits, _ = pipeline.progress(source)
        except StopIteration:
            return steps
        training.seen.update(logits.detach().numpy().tobytes())
        steps += 1


@pytest.mark.parametrize("options", STORES.values(), ids=STORES)
def test_a_train_pipeline_takes_its_batches_from_it(tmp_path, expected, options):
    with small_store(tmp_path / "store", **options) as store:
        training = Training(store)
        loader = DataLoader(make_batches(), batch_size=None)
        assert with_pipeline(training, damo.PrefetchIterator(loader, training.model, 2)) == STEPS
        assert_equal(training.result(), expected(plain))


def test_a_train_pipeline_finds_the_rows_in_memory(tmp_path):
    with small_store(tmp_path / "store") as store:
        training = Training(store)
        with_pipeline(training, iter(damo.PrefetchIterator(make_batches(), training.model)))
        assert {table.misses for table in store.stats().tables.values()} == {0}
