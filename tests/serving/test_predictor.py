"""What a predictor answers: what the model does in eval mode; and which checkpoints it opens."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec.serving.dense import DensePart
from served_models import (
    BATCHES,
    exported,
    groups_request,
    inputs,
    pooled_request,
    predictor_of,
    sequences_request,
    shared_request,
    towers_request,
)
from serving_cases import (
    SGD,
    Groups,
    Pooled,
    Sequences,
    SharedTower,
    SomeSequences,
    TwoTowers,
    bags,
    feed,
    random_features,
)


@pytest.mark.parametrize(
    ("make", "request_of"),
    [
        (lambda store: Pooled(store, weighted=True), pooled_request),
        (lambda store: Pooled(store, weighted=False), lambda batch: pooled_request(batch, weighted=False)),
        (Sequences, sequences_request),
        (SomeSequences, sequences_request),
        (SharedTower, shared_request),
        (TwoTowers, towers_request),
        (Groups, groups_request),
        (lambda store: Groups(store, padding_idx=3), groups_request),
    ],
    ids=[
        "weighted",
        "pooled",
        "sequences",
        "some sequences",
        "shared tower",
        "towers",
        "embedding",
        "padded embedding",
    ],
)
def test_answers_as_the_model_does(store: Any, tmp_path: Path, make: Any, request_of: Any) -> None:
    model = make(store)
    with predictor_of(exported(model, request_of, tmp_path / "checkpoint")) as predictor:
        assert predictor.step == store.step
        for batch in BATCHES:
            request = request_of(batch)
            with torch.no_grad():
                expected = model(*request.values())
            expected = expected if isinstance(expected, dict) else {"output": expected}
            for inputs in (request, feed(**request)):
                outputs = predictor.predict(inputs)
                assert outputs.keys() == expected.keys() == predictor.outputs.keys()
                for name, value in expected.items():
                    assert outputs[name].shape == tuple(value.shape)
                    np.testing.assert_allclose(outputs[name], value.numpy(), atol=1e-6)


@pytest.mark.parametrize("unseen", ["zeros", "initial", "mean"])
def test_unseen_ids_read_as_in_eval_mode(store: Any, tmp_path: Path, unseen: Any) -> None:
    options = {"t": damo.TableOptions(unseen_in_eval=unseen)}
    tables = [EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=10, feature_names=["a"])]
    model = Features(damo.EmbeddingBagCollection(tables, store=store, table_options=options, **SGD))
    features = random_features("a", 20)
    store.table("t").set([10**6, 10**7], [[1.0, 2, 3, 4], [0.1, 0.2, 0.3, 0.4]])  # of which none is asked for
    path = damo.serving.export(model, features, tmp_path / "checkpoint")
    with predictor_of(path) as predictor:
        expected = model.eval()(features)
        assert bool(expected.any()) == (unseen != "zeros")
        np.testing.assert_array_equal(predictor.predict({"features": features})["output"], expected.numpy())


class Features(nn.Module):
    def __init__(self, collection: nn.Module) -> None:
        super().__init__()
        self.collection = collection

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.collection(features).values()


def test_threads_get_the_answers_that_one_gets(pooled_predictor: Any) -> None:
    requests = [pooled_request(batch) for batch in range(1, 40)]
    expected = [pooled_predictor.predict(request)["output"] for request in requests]
    barrier = threading.Barrier(4)

    def ask(_: int) -> None:
        barrier.wait()
        for request, answer in zip(requests, expected, strict=True):
            np.testing.assert_array_equal(pooled_predictor.predict(request)["output"], answer)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    stats = pooled_predictor.stats()
    assert stats.requests == 5 * len(requests)
    asked = [request["features"].length_per_key() for request in requests]
    assert stats.rows == 5 * sum(b + 2 * a + c for _, b, a, c in asked)
    assert 0 < stats.misses <= stats.rows
    assert 0 < stats.p50 <= stats.p99 < 60


@pytest.mark.parametrize(("threads", "error"), [(0, ValueError), (100_000, ValueError), ("2", TypeError)])
def test_a_wrong_number_of_threads_is_refused(pooled: Any, threads: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="num_threads must be"):
        damo.serving.Predictor(pooled[1], num_threads=threads)


def test_only_a_serving_checkpoint_opens(pooled: Any, store: Any, tmp_path: Path) -> None:
    Pooled(store, weighted=True)
    with pytest.raises(ValueError, match=r"is not a checkpoint: damo_torchrec.serving.export makes one to serve"):
        predictor_of(tmp_path)
    with pytest.raises(ValueError, match=r"has no dense.onnx: damo_torchrec.serving.export"):
        predictor_of(store.checkpoint(tmp_path / "rows"))


def copy_of(checkpoint: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(checkpoint, target))


@pytest.mark.parametrize("file", ["dense.onnx", "manifest.json", "rows/CURRENT"])
def test_a_damaged_file_is_refused(pooled: Any, tmp_path: Path, file: str) -> None:
    damaged = copy_of(pooled[1], tmp_path / "copy") / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(damo.CorruptionError, match=str(damaged)):
        predictor_of(tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_missing_row_file_is_refused(pooled: Any, tmp_path: Path) -> None:
    copy = copy_of(pooled[1], tmp_path / "copy")
    next(copy.glob("rows/*.sst")).unlink()
    with pytest.raises(damo.CorruptionError, match="expected a file of the checkpoint, found none"):
        predictor_of(copy)


def test_a_closed_predictor_says_so(pooled: Any) -> None:
    predictor = predictor_of(pooled[1])
    predictor.close()
    predictor.close()
    for call in (lambda: predictor.predict(inputs()), predictor.stats, lambda: predictor.watch(pooled[1])):
        with pytest.raises(damo.StoreClosedError, match="is closed"):
            call()


class Interacting(nn.Module):
    """Fails at no samples, in torch and in ONNX Runtime."""

    def __init__(self, store: Any) -> None:
        super().__init__()
        self.ebc = damo.EmbeddingBagCollection(bags("a", [4]), store=store, **SGD)

    def forward(self, dense: torch.Tensor, features: KeyedJaggedTensor) -> dict[str, torch.Tensor]:
        pooled = self.ebc(features).values() * dense
        return {"scores": pooled.reshape(pooled.shape[0], -1, 2).sum(1), "best": pooled.argmax(1)}


def test_no_sample_has_an_answer_whatever_the_graph_does(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = damo.serving.export(Interacting(store), (torch.ones(2, 4), random_features("a", 2)), tmp_path / "served")
    with predictor_of(path) as predictor:
        monkeypatch.setattr(DensePart, "run", lambda *_: pytest.fail("it reached the graph"))
        for inputs in (
            {"dense": [], "features.values": [], "features.lengths": [[]]},
            {"dense": np.empty((0, 4)), "features": random_features("a", 0)},
        ):
            answer = predictor.predict(inputs)
            assert {name: (array.shape, array.dtype) for name, array in answer.items()} == {
                "scores": ((0, 2), np.float32),
                "best": ((0,), np.int64),
            }
        with pytest.raises(ValueError, match="dense must have the shape"):
            predictor.predict({"dense": np.empty((0, 3)), "features": random_features("a", 0)})
