"""What training loops do around a model: gradient scaling and clipping, and TorchRec's pipelines."""

from dataclasses import dataclass

import pytest
import torch
import torchrec
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.streamable import Pipelineable

import damo_torchrec as damo
from support import config, payloads, random_kjt, small_store

KEYS = ["a", "b"]


class Model(nn.Module):
    def __init__(self, store, sequence=False):
        super().__init__()
        torch.manual_seed(0)
        self.ebc = damo.EmbeddingBagCollection(
            [config("a", 4), config("b", 4)], torch.optim.Adagrad, {"lr": 0.5}, store=store
        )
        self.linear = nn.Linear(8, 1)

    def forward(self, batch):
        values = self.linear(self.ebc(batch.features).values()).squeeze(1)
        return (values - batch.labels).square().mean(), values


@dataclass
class Batch(Pipelineable):
    features: torchrec.KeyedJaggedTensor
    labels: torch.Tensor

    def to(self, device, non_blocking=False):
        return Batch(self.features.to(device, non_blocking), self.labels.to(device, non_blocking=non_blocking))

    def record_stream(self, stream):
        raise AssertionError("there is no stream on the CPU")

    def pin_memory(self):
        return self


def batches(n=8):
    generator = torch.Generator().manual_seed(4)
    return [Batch(random_kjt(generator, KEYS, 6, 20), torch.rand(6, generator=generator)) for _ in range(n)]


def plainly(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for batch in batches():
        optimizer.zero_grad()
        loss, _ = model(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("ahead", [False, True])
def test_train_pipeline_sparse_dist_trains_as_a_plain_loop(tmp_path, ahead):
    with small_store(tmp_path / "plain") as plain, small_store(tmp_path / "pipeline") as other:
        expected = plainly(Model(plain))
        model = Model(other)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pipeline = TrainPipelineSparseDist(model, optimizer, torch.device("cpu"))
        source = iter(damo.PrefetchIterator(batches(), model) if ahead else batches())
        outputs = [pipeline.progress(source) for _ in range(8)]
        assert len(outputs) == len(expected)
        for table in KEYS:
            assert payloads(other, table) == payloads(plain, table)


def test_a_grad_scaler_skips_rows_where_it_skips_the_dense_part(tmp_path):
    options = damo.StoreOptions(on_nonfinite="skip", backend="memory")
    with damo.EmbeddingStore(memory_budget="64MiB", options=options) as store:
        model = Model(store)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for number, batch in enumerate(batches(4)):
            optimizer.zero_grad()
            dense, step = model.linear.weight.detach().clone(), store.step
            store.grad_scale = scaler.get_scale()
            loss, _ = model(batch)
            scaler.scale(loss * (float("inf") if number == 2 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            skipped = number == 2
            assert torch.equal(model.linear.weight, dense) is skipped
            assert (store.step == step) is skipped
        assert store.stats().skipped_backwards == 1


def test_scaling_does_not_change_the_update(tmp_path):
    with small_store() as scaled, small_store() as plain:
        losses = plainly(Model(plain))
        model = Model(scaled)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        for batch, expected in zip(batches(), losses, strict=True):
            optimizer.zero_grad()
            scaled.grad_scale = scaler.get_scale()
            loss, _ = model(batch)
            assert loss.item() == pytest.approx(expected, rel=1e-5)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()


def test_clip_grad_norm_reaches_the_dense_part_alone(tmp_path):
    with small_store() as clipped, small_store() as plain:
        for store, limit in ((clipped, 1e-9), (plain, None)):
            model = Model(store)
            before = model.linear.weight.detach().clone()
            loss, _ = model(batches(1)[0])
            loss.backward()
            if limit is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
            torch.optim.SGD(model.parameters(), lr=0.1).step()
            assert torch.allclose(model.linear.weight, before, atol=1e-7) is (limit is not None)
        assert payloads(clipped, "a") == payloads(plain, "a")
