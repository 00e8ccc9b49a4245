"""Train pipelines: the exchange and the reads of later batches change no bit of what is trained."""

import dataclasses
from typing import Any

import pytest
import torch
from torchrec.datasets.utils import Batch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import EvalPipelineSparseDist, TrainPipelineBase, TrainPipelineSparseDist
from torchrec.models.dlrm import DLRMTrain
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import damo_torchrec as damo
import spread
from damo_torchrec.distributed import PrefetchTrainPipeline
from distributed_dlrm import Run, batch_of, model_over

_PIPELINES = {
    "base": TrainPipelineBase,
    "sparse dist": TrainPipelineSparseDist,
    "prefetch": PrefetchTrainPipeline,
}


def batches(run: Run, rank: int, size: int) -> list[Batch]:
    begin, end = 16 * rank // size, 16 * (rank + 1) // size
    return [Batch(*batch_of(run, step, begin, end)) for step in range(run.steps)]


def train(rank: int, run: Run, size: int, name: str | None) -> tuple[list[float], Any, int]:
    with spread.new_store(**run.store) as store:
        model = DistributedModelParallel(DLRMTrain(model_over(store)), sharders=damo.distributed.sharders())
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        losses = []
        if name is None:
            for batch in batches(run, rank, size):
                optimizer.zero_grad()
                loss, _ = model(batch)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        else:
            pipeline = _PIPELINES[name](model, optimizer, torch.device("cpu"))
            stream = iter(batches(run, rank, size))
            for _ in range(run.steps):
                loss, _, _ = pipeline.progress(stream)
                losses.append(loss.item())
            with pytest.raises(StopIteration):
                pipeline.progress(stream)
        return losses, spread.rows_of(store), sum(of_table.prefetched for of_table in store.stats().tables.values())


def test_pipelines_change_no_bit(two_ranks):
    run = Run(ids=2000, steps=5)
    plain = two_ranks(train, run, 2, None)
    for name in _PIPELINES:
        on_disk = {"backend": "rocksdb", "cache_bytes": 1 << 15, "path": None}
        found = two_ranks(train, dataclasses.replace(run, store=on_disk), 2, name)
        for (losses, rows, _), (others, other_rows, prefetched) in zip(plain, found, strict=True):
            assert losses == others, name
            assert (prefetched > 0) == (name == "prefetch")
            assert rows.keys() == other_rows.keys()
            assert all(torch.equal(row, other_rows[key]) for key, row in rows.items())


def train_with_pauses(rank: int, run: Run, size: int) -> tuple[list[float], Any]:
    """Four batches and then the others, with the model taken out of the pipeline amid them and between the two."""
    with spread.new_store(**run.store) as store:
        model = DistributedModelParallel(DLRMTrain(model_over(store)), sharders=damo.distributed.sharders())
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        pipeline = PrefetchTrainPipeline(model, optimizer, torch.device("cpu"))
        given = batches(run, rank, size)

        def evaluate_detached() -> None:
            assert pipeline.detach() is model
            model.eval()
            with torch.no_grad():
                model(given[0])
            model.train()

        losses = []
        for part in (given[:4], given[4:]):
            stream = iter(part)
            for step in range(len(part)):
                if step == 2:
                    evaluate_detached()
                losses.append(pipeline.progress(stream)[0].item())
            with pytest.raises(StopIteration):
                pipeline.progress(stream)
            evaluate_detached()
        return losses, spread.rows_of(store)


def test_a_detached_pipeline_goes_on_where_it_was(two_ranks):
    run = Run(ids=2000, steps=6)
    plain, found = two_ranks(train, run, 2, None), two_ranks(train_with_pauses, run, 2)
    for (losses, rows, _), (others, other_rows) in zip(plain, found, strict=True):
        assert losses == others
        assert rows.keys() == other_rows.keys()
        assert all(torch.equal(row, other_rows[key]) for key, row in rows.items())


def attach_amid_batches(rank: int) -> str:
    case = spread.Case({"t": (["f"], "SUM")}, sequences=True)
    with spread.new_store() as store:
        model = DistributedModelParallel(Summed(spread.collection(case, store)), sharders=damo.distributed.sharders())
        pipeline = TrainPipelineSparseDist(model, torch.optim.SGD([torch.zeros(1)], lr=1.0), torch.device("cpu"))
        stream = iter([spread.batch_of(case, step, *spread.share(case, rank, 2)) for step in range(4)])
        pipeline.progress(stream)
        pipeline.detach()
        try:
            pipeline.progress(stream)
        except damo.DamoError as error:
            return str(error)
        return "went on"


class Summed(torch.nn.Module):
    """A model whose loss is the sum of its rows."""

    def __init__(self, sparse: torch.nn.Module) -> None:
        super().__init__()
        self.sparse = sparse

    def forward(self, features: KeyedJaggedTensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss = self.sparse(features)["f"].values().sum()
        return loss, loss


def test_what_torchrec_sends_twice_is_refused(two_ranks):
    for told in two_ranks(attach_amid_batches):
        assert "detach() it where its batches have ended" in told


def evaluate(rank: int, run: Run, size: int) -> tuple[list[float], list[float], int]:
    with spread.new_store() as store:
        model = DistributedModelParallel(DLRMTrain(model_over(store)), sharders=damo.distributed.sharders())
        for batch in batches(run, rank, size)[:2]:
            model(batch)[0].backward()
        model.eval()
        rows = sum(len(store.table(name)) for name in store.tables())
        with torch.no_grad():
            plain = [model(batch)[0].item() for batch in batches(run, rank, size)]
        pipeline = EvalPipelineSparseDist(model, torch.optim.SGD(model.parameters(), lr=1.0), torch.device("cpu"))
        stream = iter(batches(run, rank, size))
        piped = [pipeline.progress(stream)[0].item() for _ in range(run.steps)]
        new = sum(len(store.table(name)) for name in store.tables()) - rows
        return plain, piped, new


def test_evaluation_makes_no_row(two_ranks):
    for plain, piped, new in two_ranks(evaluate, Run(ids=500), 2):
        assert plain == piped
        assert new == 0


def _iterate(rank: int) -> None:
    with spread.new_store() as store:
        model = DistributedModelParallel(DLRMTrain(model_over(store)), sharders=damo.distributed.sharders())
        with pytest.raises(ValueError, match=r"read ahead by damo_torchrec\.distributed\.PrefetchTrainPipeline"):
            damo.PrefetchIterator([], model)


def test_the_iterator_for_one_process_names_the_pipeline(two_ranks):
    two_ranks(_iterate)
