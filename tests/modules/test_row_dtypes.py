"""Rows of 16-bit weights: what is stored, how updates are rounded, and that it is the same in every run."""

import numpy as np
import pytest
import torch
import torchrec
from torchrec.modules.embedding_configs import DataType

import damo_torchrec as damo
from support import A_HANDFUL_OF_ROWS, config, kjt, payloads, random_kjt, small_store

HALVES = [torch.float16, torch.bfloat16]
INTERESTING = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1 / 3,
    65504.0,
    65519.9,
    1e-7,
    6e-8,
    2.9e-8,
    -3.1e-8,
    6.1e-5,
    6.097e-5,
    1e-30,
    123.456,
]


def collection(store, dtype, dim=7, optimizer=torch.optim.SGD, **kwargs):
    options = damo.TableOptions(row_dtype=dtype, initializer=damo.init.Normal())
    return damo.EmbeddingBagCollection(
        [config("t", dim)], optimizer, kwargs or {"lr": 0.1}, store=store, table_options={"t": options}
    )


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("dim", [1, 2, 7, 16, 64])
def test_weights_that_are_set_are_rounded_as_torch_does(store, dtype, dim):
    collection(store, dtype, dim)
    table = store.table("t")
    assert table.row_dtype is dtype
    generator = torch.Generator().manual_seed(0)
    values = torch.cat(
        [torch.tensor(INTERESTING), torch.randn(2000, generator=generator) * 10 ** torch.linspace(-9, 4, 2000)]
    )
    rows = torch.resize_as_(values.clone(), values)[: len(values) // dim * dim].view(-1, dim)
    table.set(torch.arange(len(rows)), rows)
    expected = rows.to(dtype).float()
    assert torch.equal(table.get(torch.arange(len(rows))), expected)
    store.flush()
    _, weights = table.to_torch()
    assert torch.equal(weights, expected)
    assert store.session.engine.payload_size(table.opened.index) == (2 * dim + 3) // 4 * 4 + 8
    stored = payloads(store, "t")
    assert stored[0][: 2 * dim] == rows[0].to(dtype).view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize("dtype", HALVES)
def test_every_16_bit_number_is_read_as_it_is(memory_store, dtype):
    collection(memory_store, dtype, 256)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    rows = torch.where(torch.isfinite(every), every, torch.zeros((), dtype=dtype)).view(256, 256)
    memory_store.table("t").set(torch.arange(256), rows.float())
    assert torch.equal(memory_store.table("t").get(torch.arange(256)), rows.float())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("value", [1.0, -0.3, 3e-6, 1000.0])
def test_updates_are_rounded_to_a_neighbour_and_right_in_the_mean(memory_store, dtype, value):
    ebc = collection(memory_store, dtype, 1, lr=1.0)
    n = 20_000
    memory_store.table("t").set(torch.arange(n), torch.full((n, 1), value))
    start = memory_store.table("t").get([0]).item()
    step = abs(start) * 3e-4
    ebc(kjt({"t": [[i] for i in range(n)]})).values().backward(torch.full((n, 1), -step))
    got = memory_store.table("t").get(torch.arange(n)).double().view(-1).numpy()
    target = start + step
    neighbours = np.unique(got)
    assert len(neighbours) <= 2
    assert neighbours[0] <= target <= neighbours[-1]
    spread = neighbours[-1] - neighbours[0]
    assert abs(got.mean() - target) < 5 * spread / np.sqrt(n) + 1e-7 * abs(target)


@pytest.mark.parametrize("dtype", HALVES)
def test_small_updates_are_not_lost(memory_store, dtype):
    """A thousand steps, each far below half of the last place, arrive in the mean."""
    ebc = collection(memory_store, dtype, 64, lr=1.0)
    memory_store.table("t").set([5], torch.ones(1, 64))
    for _ in range(1000):
        ebc(kjt({"t": [[5]]})).values().backward(torch.full((1, 64), 1e-4))
    assert memory_store.table("t").get([5]).mean().item() == pytest.approx(0.9, abs=0.01)


def trained(store, dtype, optimizer, steps=30):
    ebc = collection(store, dtype, 5, optimizer, lr=0.05)
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        features = random_kjt(generator, ["t"], 8, 50)
        ebc(features).values().backward(torch.randn(8, 5, generator=generator))
    return payloads(store, "t")


@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.Adam, torchrec.optim.RowWiseAdagrad, damo.optim.FTRL]
)
@pytest.mark.parametrize("dtype", HALVES)
def test_promise_2_the_same_bits_whatever_the_budget_threads_and_instructions(tmp_path, dtype, optimizer):
    with small_store(num_threads=1, instruction_set="plain") as store:
        expected = trained(store, dtype, optimizer)
    with small_store(tmp_path / "store", cache_bytes=A_HANDFUL_OF_ROWS, num_threads=2) as store:
        assert trained(store, dtype, optimizer) == expected


@pytest.mark.parametrize("dtype", HALVES)
def test_training_follows_float32s(memory_store, dtype):
    with small_store() as exact:
        for store, row_dtype in ((memory_store, dtype), (exact, torch.float32)):
            trained(store, row_dtype, torch.optim.Adam)
        ids = sorted(payloads(exact, "t"))
        difference = memory_store.table("t").get(ids) - exact.table("t").get(ids)
        assert difference.abs().max() < (0.05 if dtype is torch.bfloat16 else 0.01)


def test_the_configs_data_type_says_it_too(store):
    damo.EmbeddingBagCollection(
        [config("h", data_type=DataType.FP16), config("b", data_type=DataType.BF16)], store=store
    )
    assert [store.table(name).row_dtype for name in "hb"] == HALVES
    with pytest.raises(ValueError, match=r"data_type must be FP32, FP16 or BF16, got INT8"):
        damo.EmbeddingBagCollection([config("i", data_type=DataType.INT8)], store=store)
    with pytest.raises(ValueError, match=r"row_dtype must be torch.float32.*got torch.float64"):
        damo.TableOptions(row_dtype=torch.float64)


def test_it_is_part_of_the_schema_and_survives_a_restart(tmp_path):
    with small_store(tmp_path / "store") as store:
        collection(store, torch.float16)
        store.table("t").set([1], torch.full((1, 7), 1 / 3))
    with small_store(tmp_path / "store") as store:
        with pytest.raises(damo.SchemaMismatchError, match="row_dtype float16, got bfloat16"):
            collection(store, torch.bfloat16)
        collection(store, torch.float16)
        assert torch.equal(store.table("t").get([1]), torch.full((1, 7), 1 / 3).half().float())


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_of_ids_get_their_gradient(memory_store, dtype):
    ebc = damo.EmbeddingBagCollection(
        [config("t", 6)],
        torch.optim.SGD,
        {"lr": 0.1},
        is_weighted=True,
        store=memory_store,
        table_options={"t": damo.TableOptions(row_dtype=dtype)},
    )
    rows = torch.randn(3, 6).to(dtype).float()
    memory_store.table("t").set([0, 1, 2], rows)
    features = kjt({"t": [[0, 1], [2]]}, weights=[0.5, 2.0, 1.0])
    features.weights().requires_grad_()
    output = ebc(features).values()
    torch.testing.assert_close(output[0], 0.5 * rows[0] + 2 * rows[1])
    grad = torch.randn(2, 6)
    output.backward(grad)
    torch.testing.assert_close(features.weights().grad, (rows * grad[[0, 0, 1]]).sum(1))


@pytest.mark.parametrize("dtype", HALVES)
def test_zero_gradients_change_no_bit(memory_store, dtype):
    ebc = collection(memory_store, dtype, 256)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    rows = torch.where(torch.isfinite(every), every, torch.zeros((), dtype=dtype)).view(256, 256).float()
    memory_store.table("t").set(torch.arange(256), rows)
    for _ in range(5):
        ebc(kjt({"t": [[i] for i in range(256)]})).values().backward(torch.zeros(256, 256))
    assert torch.equal(memory_store.table("t").get(torch.arange(256)), rows)


@pytest.mark.parametrize("dtype", HALVES)
def test_an_update_to_what_is_no_number_is_refused(memory_store, dtype):
    options = damo.TableOptions(row_dtype=dtype)
    ebc = damo.EmbeddingBagCollection(
        [config("t", 3)], torch.optim.Adagrad, {"eps": 0.0}, store=memory_store, table_options={"t": options}
    )
    with pytest.raises(damo.NonFiniteGradientError, match="infinite or NaN"):
        ebc(kjt({"t": [[1]]})).values().backward(torch.zeros(1, 3))  # 0 / 0
    assert len(memory_store.table("t")) == 0
