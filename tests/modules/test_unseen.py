"""What ids without a row read, and that their rows begin with their initial values all the same."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchrec
from torch.nn.functional import embedding_bag
from torchrec import EmbeddingConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType

import damo_torchrec as damo
from mixed_run import collection, look_up, rows_of, update
from support import A_HANDFUL_OF_ROWS, config, kjt, random_kjt, small_store

IDS, DIM = 40, 5
OPTIMIZERS = [(torchrec.optim.SGD, torch.optim.SGD), (torch.optim.Adagrad, torch.optim.Adagrad)]


@pytest.fixture(params=[0, A_HANDFUL_OF_ROWS], ids=["cached", "evicting"])
def store(request: pytest.FixtureRequest) -> Iterator[damo.EmbeddingStore]:
    with small_store(cache_bytes=request.param) as opened:
        yield opened


def bags_of(
    store: damo.EmbeddingStore, optimizer: type, pooling: PoolingType, **options: Any
) -> damo.EmbeddingBagCollection:
    return damo.EmbeddingBagCollection(
        [config("t", DIM, ["a", "b"], pooling=pooling)],
        optimizer,
        {"lr": 0.5},
        is_weighted=True,
        store=store,
        table_options={"t": damo.TableOptions(**options)},
    )


class Dense:
    """The same in torch: a dense table of all ids, of which those that no step had yet read zeros."""

    def __init__(self, initial: torch.Tensor, optimizer: type, pooling: PoolingType) -> None:
        self.weight = initial.clone().requires_grad_()
        self.seen = torch.zeros(len(initial), 1, dtype=torch.bool)
        self.optimizer = optimizer([self.weight], lr=0.5)
        self.mean = pooling is PoolingType.MEAN

    def __call__(self, features: KeyedJaggedTensor, weights: torch.Tensor) -> torch.Tensor:
        read = torch.where(self.seen, self.weight, self.weight - self.weight.detach())
        outputs = []
        for key, of_key in zip(features.keys(), torch.split(weights, features.length_per_key()), strict=True):
            part = features[key]
            sums = embedding_bag(part.values(), read, part.offsets()[:-1], per_sample_weights=of_key, mode="sum")
            ones = torch.ones(len(of_key), 1)
            totals = embedding_bag(torch.arange(len(ones)), of_key[:, None] * ones, part.offsets()[:-1], mode="sum")
            outputs.append(sums / torch.where(totals == 0, 1, totals) if self.mean else sums)
        return torch.cat(outputs, dim=1)

    def step(self, *features: KeyedJaggedTensor) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        for one in features:
            self.seen[one.values()] = True


@pytest.mark.parametrize("pooling", [PoolingType.SUM, PoolingType.MEAN])
@pytest.mark.parametrize(("ours", "oracle"), OPTIMIZERS, ids=["sgd", "adagrad"])
def test_reading_zeros_in_train_mode_trains_as_torch_does(
    store: damo.EmbeddingStore, pooling: PoolingType, ours: type, oracle: type
) -> None:
    ebc = bags_of(store, ours, pooling, unseen_in_train="zeros")
    with small_store() as other:
        initial = bags_of(other, ours, pooling, unseen_in_eval="initial").tables()[0].get(range(IDS))
    dense = Dense(initial, oracle, pooling)
    generator = torch.Generator().manual_seed(1)
    for step in range(12):
        features = random_kjt(generator, "ab", 4, IDS, weighted=True)
        weights = [features.weights().clone().requires_grad_() for _ in range(2)]
        if step % 3 == 0:
            ebc.prefetch(features)
        given = KeyedJaggedTensor(features.keys(), features.values(), weights[0], features.lengths())
        output, expected = ebc(given).values(), dense(features, weights[1])
        torch.testing.assert_close(output, expected)
        with torch.no_grad():
            assert torch.equal(ebc(given).values(), output)
        slope = torch.randn(output.shape, generator=generator)
        (output * slope).sum().backward()
        (expected * slope).sum().backward()
        torch.testing.assert_close(weights[0].grad, weights[1].grad)
        dense.step(features)
    seen = dense.seen[:, 0].nonzero()[:, 0]
    assert torch.equal(store.table("t").to_torch()[0], seen)
    torch.testing.assert_close(store.table("t").get(seen), dense.weight.detach()[seen])


def test_several_lookups_of_one_update_read_zeros(store: damo.EmbeddingStore) -> None:
    """Two collections in one backward pass, and passes that `accumulate` sums."""
    first, second = (collection(store, "t", initial=3.0, unseen_in_train="zeros") for _ in range(2))
    store.accumulate(2)
    for gradient in (1.0, 0.5):
        outputs = [look_up(ebc, {"t": [[1], [1, 2]]}) for ebc in (first, second)]
        assert not any(output.any() for output in outputs)
        (sum(output.sum() for output in outputs) * gradient).backward()
    assert store.table("t").get([1, 2])[:, 0].tolist() == [3.0 - 2 * 2 * 1.5, 3.0 - 2 * 1.5]
    assert look_up(first, {"t": [[1], [3]]})[:, 0].tolist() == [-3.0, 0.0]


def test_a_skipped_update_leaves_ids_unseen() -> None:
    with small_store(on_nonfinite="skip") as store:
        ebc = collection(store, "t", initial=3.0, unseen_in_train="zeros")
        output = look_up(ebc, {"t": [[1], [2]]})
        output.backward(torch.full_like(output, float("nan")))
        assert not look_up(ebc, {"t": [[1], [2]]}).any()
        update(ebc, {"t": [[1]]})
        assert look_up(ebc, {"t": [[1], [2]]})[:, 0].tolist() == [2.0, 0.0]


def test_a_backward_twice_finds_the_rows_again(store: damo.EmbeddingStore) -> None:
    ebc = collection(store, "t", initial=3.0, unseen_in_train="zeros")
    output = look_up(ebc, {"t": [[1], [2]]})
    for _ in range(2):
        output.sum().backward(retain_graph=True)
    assert store.table("t").get([1, 2])[:, 0].tolist() == [1.0, 1.0]


def test_sequences_read_zeros(store: damo.EmbeddingStore) -> None:
    tables = [EmbeddingConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["t"])]
    options = {"t": damo.TableOptions(initializer=damo.init.Constant(3.0), unseen_in_train="zeros")}
    ec = damo.EmbeddingCollection(tables, torchrec.optim.SGD, {"lr": 1.0}, store=store, table_options=options)
    for expected in ([0.0, 0.0, 0.0], [1.0, 1.0, 2.0]):
        rows = ec(kjt({"t": [[1, 1], [2]]}))["t"].values()
        assert rows[:, 0].tolist() == expected
        rows.sum().backward()


@pytest.mark.parametrize("unseen", ["zeros", "initial"])
def test_a_traced_model_reads_as_an_eager_one(store: damo.EmbeddingStore, unseen: str) -> None:
    ebc = collection(store, "t", initial=3.0, unseen="mean", unseen_in_train=unseen)
    torch.compiler.reset()
    compiled = torch.compile(lambda features: ebc(features).values() * 2, backend="eager", fullgraph=True)
    features = kjt({"t": [[1], [1, 2]]})
    value = 3.0 if unseen == "initial" else 0.0
    output = compiled(features)
    assert output[:, 0].tolist() == [2 * value, 4 * value]
    output.sum().backward()
    assert store.table("t").get([1, 2])[:, 0].tolist() == [-1.0, 1.0]
    ebc.eval()
    assert compiled(kjt({"t": [[7]]}))[0, 0] == 0.0
    assert compiled(kjt({"t": [[1, 7]]}))[0, 0] == -2.0


@pytest.mark.parametrize("threads", [1, 3])
def test_results_do_not_depend_on_threads_or_memory(tmp_path: Path, threads: int) -> None:
    def run(path: Path, **options: Any) -> tuple[Any, torch.Tensor]:
        with damo.EmbeddingStore(path, memory_budget="64MiB", options=damo.StoreOptions(**options)) as store:
            ebc = bags_of(store, torch.optim.Adagrad, PoolingType.MEAN, unseen_in_train="zeros", unseen_in_eval="mean")
            generator = torch.Generator().manual_seed(2)
            for _ in range(5):
                ebc(random_kjt(generator, "ab", 30, 300, weighted=True)).values().pow(2).sum().add(1).backward()
            return rows_of(store), ebc.eval()(random_kjt(generator, "ab", 30, 900, weighted=True)).values()

    rows, output = run(tmp_path / "a", num_threads=1)
    others, same = run(tmp_path / "b", num_threads=threads, cache_bytes=A_HANDFUL_OF_ROWS)
    assert rows == others
    assert torch.equal(output, same)


# ------------------------------------------------------------------ the mean row


def mean_of(weights: torch.Tensor) -> torch.Tensor:
    """One row after the other, in float64."""
    sums = np.add.accumulate(weights.double().numpy())[-1]
    return torch.from_numpy((sums / len(weights)).astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_mean_row_is_that_of_all_rows(store: damo.EmbeddingStore, dtype: torch.dtype) -> None:
    ebc = bags_of(store, torchrec.optim.SGD, PoolingType.SUM, unseen_in_eval="mean", row_dtype=dtype)
    table = store.table("t")
    ids = torch.randperm(1000, generator=torch.Generator().manual_seed(1)) - 500
    table.set(ids, torch.randn(1000, DIM, generator=torch.Generator().manual_seed(2)))
    weights = table.to_torch()[1]
    assert torch.equal(table.mean(), mean_of(weights))
    assert torch.equal(table.get([10**9])[0], table.mean())
    features = kjt({"a": [[-500, 10**9], [7000]], "b": [[], [3]]}, weights=[0.5, 2.0, 3.0, 1.0])
    expected = torch.cat([0.5 * table.get([-500]) + 2 * table.mean(), 3 * table.mean()[None]])
    assert torch.equal(ebc.eval()(features)["a"], expected)
    assert torch.equal(ebc(features)["b"], torch.cat([torch.zeros(1, DIM), table.get([3])]))


def test_the_mean_row_follows_the_rows(store: damo.EmbeddingStore, caplog: pytest.LogCaptureFixture) -> None:
    ebc = collection(store, "t", initial=8.0, unseen="mean").eval()
    table = store.table("t")

    def read() -> float:
        with caplog.at_level(logging.INFO, "damo_torchrec"):
            return float(look_up(ebc, {"t": [[-1]]})[0, 0])

    assert read() == 0.0  # of no rows
    update(ebc.train(), {"t": [[1], [2]]}, gradient=3.0)
    ebc.eval()
    assert [read(), read()] == [5.0, 5.0]
    table.set([7], torch.full((1, 4), 11.0))
    assert read() == 7.0
    table.delete([1])
    assert read() == 8.0
    assert sum("took the mean" in record.getMessage() for record in caplog.records) == 4
    assert look_up(ebc.train(), {"t": [[-1]]})[0, 0] == 8.0
    assert not table.contains([-1]).any()


def test_the_mean_row_comes_back_with_a_checkpoint(tmp_path: Path) -> None:
    with damo.EmbeddingStore(tmp_path / "s", memory_budget="64MiB") as store:
        ebc = collection(store, "t", initial=8.0, unseen="mean")
        update(ebc, {"t": [[1], [2]]}, gradient=3.0)
        assert store.table("t").mean()[0] == 5.0
        path = store.checkpoint()
        update(ebc, {"t": [[1], [2]]}, gradient=1.0)
        assert look_up(ebc.eval(), {"t": [[9]]})[0, 0] == 4.0
        store.restore(path)
        assert look_up(ebc, {"t": [[9]]})[0, 0] == 5.0


def test_a_table_that_is_not_trained_reads_the_mean_row_in_train_mode(store: damo.EmbeddingStore) -> None:
    update(collection(store, "t", initial=8.0), {"t": [[1], [2]]}, gradient=3.0)
    options = {"t": damo.TableOptions(initializer=damo.init.Constant(8.0), unseen_in_eval="mean", trainable=False)}
    ebc = damo.EmbeddingBagCollection(
        [config("t", 4), config("u", 4)], torchrec.optim.SGD, {"lr": 1.0}, store=store, table_options=options
    )
    output = look_up(ebc, {"t": [[9]], "u": [[9]]})
    assert output[0, 0] == 5.0
    output.sum().backward()
    assert [len(store.table(name)) for name in "tu"] == [2, 1]


def test_weights_of_unseen_ids_get_gradients_of_the_mean_row(store: damo.EmbeddingStore) -> None:
    ebc = bags_of(store, torchrec.optim.SGD, PoolingType.SUM, unseen_in_eval="mean")
    store.table("t").set([1, 2], [[1.0] * DIM, [3.0] * DIM])
    weights = torch.tensor([2.0, 1.0, 1.0], requires_grad=True)
    features = kjt({"a": [[1, 9]], "b": [[2]]})
    given = KeyedJaggedTensor(features.keys(), features.values(), weights, features.lengths())
    ebc.eval()(given)["a"].sum().backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [DIM * 1.0, DIM * 2.0, 0.0]
