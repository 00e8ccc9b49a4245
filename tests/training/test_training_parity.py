"""Training over a store is training over TorchRec's own collections: the same rows, outputs, losses and quality."""

from dataclasses import replace

import pytest
import torch
import torchrec
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.models.dlrm import DLRM
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

import damo_torchrec as damo
from dlrm_data.census import Census
from dlrm_train import build_model, dense_optimizer, evaluate, table_configs, train_step
from support import A_HANDFUL_OF_ROWS, config, copy_rows, random_kjt, small_store

STEPS = 50
BATCH = 16
DIM = 8
DENSE = 5
FEATURES = ["item", "seen", "user"]


def tables():
    return [
        config("t_item", DIM, ["item", "seen"], num_embeddings=50),
        config("t_user", DIM, ["user"], num_embeddings=30),
    ]


def dlrm(collection):
    torch.manual_seed(0)
    return DLRM(collection, DENSE, [16, DIM], [16, 1])


def batches():
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        dense = torch.randn(BATCH, DENSE, generator=generator)
        yield dense, random_kjt(generator, FEATURES, BATCH, 30), (dense[:, 0] > 0).float()


def step(model, optimizer, dense, sparse, labels):
    optimizer.zero_grad()
    logits = model(dense, sparse).squeeze(-1)
    loss = binary_cross_entropy_with_logits(logits, labels)
    loss.backward()
    optimizer.step()
    return logits.detach(), loss.detach()


def assert_trains_alike(theirs, their_optimizer, ours, our_optimizer, tolerance):
    """The same pooled embeddings, outputs and losses at each step, and the same rows at the end."""
    collections = [model.sparse_arch.embedding_bag_collection for model in (theirs, ours)]
    for number, (dense, sparse, labels) in enumerate(batches()):
        with torch.no_grad():
            expected, pooled = (collection(sparse) for collection in collections)
        assert pooled.keys() == expected.keys()
        assert pooled.length_per_key() == expected.length_per_key()
        expected_step = (expected.values(), *step(theirs, their_optimizer, dense, sparse, labels))
        our_step = (pooled.values(), *step(ours, our_optimizer, dense, sparse, labels))
        for what, actual, wanted in zip(("embeddings", "outputs", "loss"), our_step, expected_step, strict=True):
            where = f"{what} of step {number}: "
            torch.testing.assert_close(actual, wanted, **tolerance, msg=where.__add__)
    for table in collections[1].tables():
        weight = collections[0].embedding_bags[table.name].weight.detach()
        torch.testing.assert_close(table.get(range(len(weight))), weight, **tolerance)


@pytest.fixture
def evicting_store(tmp_path):
    with small_store(tmp_path / "store", cache_bytes=A_HANDFUL_OF_ROWS) as store:
        yield store


def test_dlrm_with_sgd_trains_like_torchrecs_collection_with_torchs_sgd(evicting_store):
    theirs = dlrm(torchrec.EmbeddingBagCollection(tables()))
    collection = damo.EmbeddingBagCollection(tables(), torch.optim.SGD, {"lr": 0.1}, store=evicting_store)
    copy_rows(theirs.sparse_arch.embedding_bag_collection, collection)
    ours = dlrm(collection)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (theirs, ours)]
    assert_trains_alike(theirs, optimizers[0], ours, optimizers[1], {"rtol": 1e-5, "atol": 1e-6})


@pytest.mark.parametrize("optimizer_type", [torch.optim.SGD, torch.optim.Adagrad, torchrec.optim.RowWiseAdagrad])
@pytest.mark.parametrize("pooling", [torchrec.PoolingType.SUM, torchrec.PoolingType.MEAN])
def test_dlrm_trains_like_fbgemms_fused_collection(evicting_store, optimizer_type, pooling):
    # FBGEMM's default eps is not torch's.
    arguments = (optimizer_type, {"lr": 0.1} if optimizer_type is torch.optim.SGD else {"lr": 0.1, "eps": 1e-8})
    configs = [replace(table, pooling=pooling) for table in tables()]
    theirs = dlrm(FusedEmbeddingBagCollection(configs, *arguments))
    collection = damo.EmbeddingBagCollection(configs, *arguments, store=evicting_store)
    copy_rows(theirs.sparse_arch.embedding_bag_collection, collection)
    ours = dlrm(collection)
    optimizers = [torch.optim.Adagrad(dense_weights(model), lr=0.02) for model in (theirs, ours)]
    assert_trains_alike(theirs, optimizers[0], ours, optimizers[1], {"rtol": 1e-4, "atol": 1e-5})


def dense_weights(model):
    return [weight for part in (model.dense_arch, model.over_arch) for weight in part.parameters()]


class Modulo(torch.nn.Module):
    """FBGEMM's collection over raw ids: modulo the number of rows."""

    def __init__(self, collection):
        super().__init__()
        self.collection = collection
        self.rows = collection.embedding_bag_configs()[0].num_embeddings

    def embedding_bag_configs(self):
        return self.collection.embedding_bag_configs()

    def forward(self, features):
        ids = features.values() % self.rows
        return self.collection(torchrec.KeyedJaggedTensor(features.keys(), ids, lengths=features.lengths()))


@pytest.mark.slow
def test_census_reaches_the_auc_of_fbgemms_fused_collection(tmp_path):
    dataset = Census(batch_size=512)
    arguments = (table_configs(dataset, 16), torchrec.optim.RowWiseAdagrad, {"lr": 0.05})

    def auc(collection):
        torch.manual_seed(0)
        model = build_model(collection, dataset.dense_features)
        optimizer = dense_optimizer(model, 1e-3)
        for batch in dataset.train_batches(epoch=0):
            train_step(model, optimizer, batch)
        return evaluate(model, dataset.test_batches())[0]

    with small_store(tmp_path / "store") as store:
        ours = auc(damo.EmbeddingBagCollection(*arguments, store=store))
    torch.manual_seed(0)
    theirs = auc(Modulo(FusedEmbeddingBagCollection(*arguments)))
    assert ours > 0.9
    assert ours == pytest.approx(theirs, abs=0.003)
