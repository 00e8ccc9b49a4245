"""Deltas of several ranks: a predictor that follows them answers as the ranks' rows do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

import damo_torchrec as damo
from damo_torchrec.serving.published import order_of
from rank_processes import run_ranks, values

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

IDS = 80
ALL = KeyedJaggedTensor(["f"], torch.arange(IDS), lengths=torch.ones(IDS, dtype=torch.int64))
LIFE = damo.TableOptions(
    max_rows=30, expire=[damo.Idle(steps=12)], initializer=damo.init.Constant(0.0), unseen_in_eval="mean"
)

Published = list[tuple[Path | None, dict[int, list[float]]]]


class Net(nn.Module):
    def __init__(self, store: damo.EmbeddingStore, bias: float = 0.0) -> None:
        super().__init__()
        table = EmbeddingBagConfig(name="t", embedding_dim=2, num_embeddings=IDS, feature_names=["f"])
        self.bags = damo.EmbeddingBagCollection(
            [table], torch.optim.SGD, {"lr": 0.5}, store=store, table_options={"t": LIFE}
        )
        self.layer = nn.Linear(2, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(2))
            self.layer.bias.fill_(bias)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.layer(self.bags(features).values())


def train(model: nn.Module, step: int) -> None:
    size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    ids = (torch.rand(12, generator=torch.Generator().manual_seed(step)) ** 2 * IDS).long()[rank::size]
    found = model(KeyedJaggedTensor(["f"], ids, lengths=torch.ones(len(ids), dtype=torch.int64)))
    (found * (1 + step % 5)).sum().backward()


def spread_net(store: damo.EmbeddingStore) -> nn.Module:
    net = Net(store)
    if not dist.is_initialized():
        return net
    return DistributedModelParallel(net, sharders=damo.distributed.sharders())


def rows_of(store: damo.EmbeddingStore) -> dict[int, list[float]]:
    ids, weights = store.table("t").to_torch()
    return dict(zip(ids.tolist(), weights.tolist(), strict=True))


def begin(rank: int, root: Path, saved: Path) -> None:
    with damo.distributed.open_store(root, memory_budget="64MiB") as store:
        model = spread_net(store)
        for step in range(10):
            train(model, step)
        damo.distributed.save_model(model, saved)


def publish(
    rank: int,
    root: Path,
    deltas: Path,
    rounds: int,
    since: Path | None = None,
    crash: bool = False,
    keep: int | None = None,
    **opening: Any,
) -> Published:
    """Trains and publishes in turns; what was published, and this rank's rows then."""
    store = damo.distributed.open_store(root, memory_budget="64MiB", **opening)
    model = spread_net(store)
    served = Net(store)
    publisher = damo.distributed.DeltaPublisher(
        store, deltas, since=since, model=served, args=(ALL,), every_steps=3, keep=keep
    )
    found: Published = []
    for turn in range(rounds):
        for step in range(3):
            train(model, store.step)
            if step == 1:
                store.table("t").delete(torch.arange(turn, IDS, 9))
            with torch.no_grad():
                served.layer.bias.fill_(store.step)
            path = publisher.step()
        found.append((path, rows_of(store)))
    assert publisher.publish() is None
    if crash:
        store.session.give_up_rows()
    else:
        store.close()
    return found


def respread(rank: int, *args: Any) -> Published:
    return publish(rank, *args, respread=True)


def export(saved: Path, one: Path, served: Path) -> Path:
    damo.distributed.gather(saved, one, memory_budget="64MiB", progress=False)
    with damo.EmbeddingStore(one, memory_budget="64MiB", restore="latest") as store:
        return damo.serving.export(Net(store), (ALL,), served)


def joined(of_ranks: list[Published]) -> Published:
    """Paths, which are the same on all ranks, and the rows of all."""
    whole: Published = []
    for turn in zip(*of_ranks, strict=True):
        assert len({path for path, _ in turn}) == 1
        rows: dict[int, list[float]] = {}
        for _, its in turn:
            assert not rows.keys() & its.keys()
            rows.update(its)
        whole.append((turn[0][0], rows))
    return whole


def check(predictor: damo.serving.Predictor, rows: dict[int, list[float]]) -> None:
    mean = np.mean([*rows.values()], axis=0)
    expected = np.array([rows.get(i, mean) for i in range(IDS)]) + predictor.step
    np.testing.assert_allclose(predictor.predict({"features": ALL})["output"], expected, rtol=1e-5, atol=1e-5)


def follow(predictor: damo.serving.Predictor, published: Published) -> None:
    for path, rows in published:
        assert path is not None
        predictor.apply_delta(path)
        check(predictor, rows)


def test_a_predictor_answers_as_the_rows_of_all_ranks(two_ranks, tmp_path: Path) -> None:
    root, deltas = tmp_path / "store", tmp_path / "deltas"
    two_ranks(begin, root, tmp_path / "saved")
    served = export(tmp_path / "saved", tmp_path / "one", tmp_path / "served")
    first = joined(two_ranks(publish, root, deltas, 4, served))
    assert [path.name for path in sorted(deltas.iterdir())] == [path.name for path, _ in first if path is not None]
    assert all(first[i][1].keys() - first[i + 1][1].keys() for i in range(3))
    with damo.serving.Predictor(served, memory_budget="64MiB") as predictor:
        follow(predictor, first)
        follow(predictor, joined(two_ranks(publish, root, deltas, 2)))  # from where they were closed
        lost = joined(two_ranks(publish, root, deltas, 2, None, True))
        follow(predictor, lost)
        after = joined(two_ranks(publish, root, deltas, 2, None, False, 3))  # from a checkpoint before these
        follow(predictor, after)
        assert len([*deltas.iterdir()]) <= 3
    with damo.serving.Predictor(served, memory_budget="64MiB") as predictor:
        for path in sorted(deltas.iterdir(), key=order_of):
            predictor.apply_delta(path)
        check(predictor, after[-1][1])


def test_it_follows_other_numbers_of_ranks(two_ranks, tmp_path: Path) -> None:
    root, deltas = tmp_path / "store", tmp_path / "deltas"
    two_ranks(begin, root, root / "checkpoints" / "step_10.saved")
    served = export(root / "checkpoints" / "step_10.saved", tmp_path / "one", tmp_path / "served")
    three = joined(values(run_ranks(respread, 3, tmp_path, root, deltas, 3, served)))
    with damo.serving.Predictor(served, memory_budget="64MiB") as predictor:
        follow(predictor, three)


def fail(rank: int, root: Path, deltas: Path, since: Path) -> Any:
    store = damo.distributed.open_store(root, memory_budget="64MiB")
    model = spread_net(store)
    publisher = damo.distributed.DeltaPublisher(store, deltas, since=since, every_steps=1)
    train(model, store.step)
    told = ""
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:

            def full(*_: object) -> None:
                raise damo.OutOfSpaceError("the disk is full")

            patch.setattr("damo_torchrec.distributed.publishing.write_delta", full)
        try:
            publisher.publish()
        except damo.DamoError as error:
            told = f"{type(error).__name__}: {error}"
    left = [path.name for path in deltas.iterdir()]
    dist.barrier()
    train(model, store.step)
    found = [(publisher.publish(), rows_of(store))]
    store.close()
    return told, left, found


def test_what_one_rank_cannot_write_is_published_by_none_and_comes_with_the_next(two_ranks, tmp_path: Path) -> None:
    root = tmp_path / "store"
    two_ranks(begin, root, tmp_path / "saved")
    served = export(tmp_path / "saved", tmp_path / "one", tmp_path / "served")
    outcomes = two_ranks(fail, root, tmp_path / "deltas", served)
    for told, left, _ in outcomes:
        assert told.startswith("OutOfSpaceError: cannot write a part of a delta, on any of 2 ranks: rank 1")
        assert left in ([], [".parts"])
    with damo.serving.Predictor(served, memory_budget="64MiB") as predictor:
        (path, rows), *_ = joined([found for _, _, found in outcomes])
        assert path is not None
        predictor.apply_delta(path)
        assert len(rows) > 5
