"""`DistributedModelParallel` around a collection of ours, which it does not shard, and process groups of several."""

import warnings

import pytest
import torch
import torchrec
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

import damo_torchrec as damo
from mixed_run import collection, look_up, rows_of, update
from support import config, kjt, small_store


class KeyedTensorValues(nn.Module):
    def forward(self, output):
        return output.values()


class Model(nn.Module):
    def __init__(self, store):
        super().__init__()
        ebc = torchrec.EmbeddingBagCollection([config("t", 4)])
        self.sparse = damo.swap(ebc, store=store, optimizer_type=torch.optim.SGD, optimizer_kwargs={"lr": 1.0})
        self.dense = nn.Linear(4, 1)

    def forward(self, features):
        return self.dense(self.sparse(features).values())


def test_the_optimizer_of_distributed_model_parallel_has_that_of_rows(memory_store, gloo):
    model = DistributedModelParallel(Model(memory_store), device=torch.device("cpu"))
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())), lambda p: torch.optim.SGD(p, lr=1.0)
    )
    both = CombinedOptimizer([model.fused_optimizer, dense])
    assert [group["lr"] for group in model.fused_optimizer.param_groups] == [1.0]
    schedule = torch.optim.lr_scheduler.LambdaLR(both, lambda step: float(step > 0))
    batch = kjt({"t": [[1]]})
    moved = []
    for _ in range(2):
        before = look_up(model.module.sparse, {"t": [[1]]}).detach()
        both.zero_grad()
        model(batch).sum().backward()
        both.step()
        schedule.step()
        moved.append(bool((look_up(model.module.sparse, {"t": [[1]]}) != before).any()))
    assert moved == [False, True]


def test_checkpoints_of_a_wrapped_model_are_those_of_the_model(tmp_path, gloo):
    with small_store(tmp_path / "store") as store:
        model = Model(store)
        wrapped = DistributedModelParallel(model, device=torch.device("cpu"))
        for saved, loaded in ((wrapped, model), (model, wrapped)):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                model.sparse.fused_optimizer.param_groups[0]["lr"] = 0.25
                path = damo.save_model(saved)
            model.sparse.fused_optimizer.param_groups[0]["lr"] = 0.5
            weight = model.dense.weight.detach().clone()
            model.dense.weight.data.zero_()
            damo.load_model(path, loaded)
            assert torch.equal(model.dense.weight, weight)
            assert model.sparse.fused_optimizer.param_groups[0]["lr"] == 0.25
            update(model.sparse, {"t": [[1]]})


def test_a_collection_on_the_meta_device_comes_to_life_in_distributed_model_parallel(memory_store, gloo):
    made = {"optimizer_type": torch.optim.SGD, "optimizer_kwargs": {"lr": 1.0}}
    ebc = damo.EmbeddingBagCollection([config("t", 4)], device="meta", store=memory_store, **made)
    model = DistributedModelParallel(
        nn.Sequential(ebc, KeyedTensorValues(), nn.Linear(4, 1, device="meta")), device=torch.device("cpu")
    )
    model(kjt({"t": [[1], [2]]})).sum().backward()
    assert len(memory_store.table("t")) == 2


def test_training_in_one_of_several_processes_is_refused(memory_store):
    ebc = collection(memory_store, "t")
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        with pytest.raises(RuntimeError, match="the process group has 2 processes") as refusal:
            update(ebc, {"t": [[1]]})
        line = "DistributedModelParallel(model, sharders=damo_torchrec.distributed.sharders())"
        assert str(refusal.value).endswith(line)
        look_up(ebc.eval(), {"t": [[1]]})
    finally:
        torch.distributed.destroy_process_group()
    assert rows_of(memory_store) == {"t": {}}
    update(ebc.train(), {"t": [[1]]})
