"""Batches whose features have batch sizes of their own: TorchRec's variable batch per feature."""

import pytest
import torch
import torchrec
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from support import config, copy_rows

KEYS = ["a", "b", "c"]
SIZES = [3, 1, 2]
BATCH = 5


def tables(pooling):
    return [
        config("t_ab", 4, ["a", "b"], num_embeddings=20, pooling=pooling),
        config("t_c", 6, ["c"], num_embeddings=20, pooling=pooling),
        config("t_a", 2, ["a"], num_embeddings=20, pooling=pooling),
    ]


def batch(generator, weighted=False, keys=KEYS):
    lengths = torch.randint(0, 4, (sum(SIZES),), generator=generator)
    n = int(lengths.sum())
    indices = torch.stack([torch.randint(0, size, (BATCH,), generator=generator) for size in SIZES])
    return KeyedJaggedTensor(
        keys=KEYS,
        values=torch.randint(0, 20, (n,), generator=generator),
        lengths=lengths,
        weights=torch.rand(n, generator=generator) if weighted else None,
        stride_per_key_per_rank=[[size] for size in SIZES],
        inverse_indices=(KEYS, indices),
    )


@pytest.mark.parametrize("pooling", [torchrec.PoolingType.SUM, torchrec.PoolingType.MEAN])
def test_outputs_and_updates_are_torchrecs(memory_store, pooling):
    theirs = torchrec.EmbeddingBagCollection(tables(pooling))
    ours = damo.EmbeddingBagCollection(tables(pooling), torch.optim.SGD, {"lr": 0.5}, store=memory_store)
    copy_rows(theirs, ours)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        features = batch(generator)
        expected, output = theirs(features), ours(features)
        assert output.keys() == expected.keys()
        assert output.length_per_key() == expected.length_per_key()
        torch.testing.assert_close(output.values(), expected.values())
        assert output.values().shape == (BATCH, 16)
        grad = torch.randn(output.values().shape, generator=generator)
        optimizer.zero_grad()
        expected.values().backward(grad)
        optimizer.step()
        output.values().backward(grad)
    for table in ours.tables():
        weight = theirs.embedding_bags[table.name].weight.detach()
        torch.testing.assert_close(table.get(torch.arange(20)), weight)


def test_weights_get_their_gradient(memory_store):
    tables_ = tables(torchrec.PoolingType.SUM)
    theirs = torchrec.EmbeddingBagCollection(tables_, is_weighted=True)
    ours = damo.EmbeddingBagCollection(tables_, is_weighted=True, store=memory_store)
    copy_rows(theirs, ours)
    features = batch(torch.Generator().manual_seed(1), weighted=True)
    grads = []
    for collection in (theirs, ours):
        weights = features.weights().clone().requires_grad_()
        given = KeyedJaggedTensor(
            keys=KEYS,
            values=features.values(),
            lengths=features.lengths(),
            weights=weights,
            stride_per_key_per_rank=[[size] for size in SIZES],
            inverse_indices=features.inverse_indices(),
        )
        output = collection(given).values()
        (output * torch.arange(output.numel()).view_as(output)).sum().backward()
        grads.append(weights.grad)
    torch.testing.assert_close(grads[1], grads[0])


def test_without_inverse_indices_it_is_refused(memory_store):
    ours = damo.EmbeddingBagCollection(tables(torchrec.PoolingType.SUM), store=memory_store)
    features = KeyedJaggedTensor(
        keys=KEYS,
        values=torch.arange(6),
        lengths=torch.ones(6, dtype=torch.int64),
        stride_per_key_per_rank=[[size] for size in SIZES],
    )
    with pytest.raises(ValueError, match=r"\[3, 1, 2\].*inverse_indices"):
        ours(features)


def test_a_gradient_that_is_not_finite_is_found_wherever_it_is(memory_store):
    ours = damo.EmbeddingBagCollection(tables(torchrec.PoolingType.SUM), store=memory_store)
    for place in (0, 7, 15):
        features = batch(torch.Generator().manual_seed(3))
        grad = torch.zeros(BATCH, 16)
        grad[:, place] = float("nan")
        with pytest.raises(damo.NonFiniteGradientError):
            ours(features).values().backward(grad)
    assert memory_store.step == 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo looks at it
def test_a_traced_model_is_right_or_refuses(memory_store):
    ours = damo.EmbeddingBagCollection(tables(torchrec.PoolingType.SUM), store=memory_store)
    features = batch(torch.Generator().manual_seed(1))
    compiled = torch.compile(ours, backend="eager")
    assert torch.equal(compiled(features).values(), ours(features).values())
    with pytest.raises(ValueError, match=r"cannot be traced by torch.fx"):
        torch.fx.symbolic_trace(ours)(features)


def test_a_negative_size_is_refused(memory_store):
    ours = damo.EmbeddingBagCollection([config("a", 4), config("b", 4)], store=memory_store)
    features = KeyedJaggedTensor(
        keys=["a", "b"],
        values=torch.arange(3),
        lengths=torch.ones(3, dtype=torch.int64),
        stride_per_key_per_rank=[[-1], [4]],
        inverse_indices=(["a", "b"], torch.zeros(2, 2, dtype=torch.int64)),
    )
    with pytest.raises(ValueError, match=r"must not be negative, got \[-1, 4\]"):
        ours(features)


@pytest.mark.parametrize("index", [-1, 3])
def test_inverse_indices_out_of_range_are_refused(memory_store, index):
    ours = damo.EmbeddingBagCollection([config("a", 4)], store=memory_store)
    features = KeyedJaggedTensor(
        keys=["a"],
        values=torch.arange(3),
        lengths=torch.ones(3, dtype=torch.int64),
        stride_per_key_per_rank=[[3]],
        inverse_indices=(["a"], torch.tensor([[0, index]])),
    )
    with pytest.raises(ValueError, match=r"inverse_indices of feature 'a' must be in 0..2"):
        ours(features)
