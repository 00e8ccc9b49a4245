"""A model that was trained on real data ranks its test set as well when it is served."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchrec
from sklearn.metrics import roc_auc_score
from torch import nn
from torchrec.datasets.utils import Batch

import damo_torchrec as damo
from dlrm_data.census import Census
from dlrm_train import build_model, dense_optimizer, evaluate, table_configs, train_step
from serving_cases import feed

Answer = Callable[[Batch], np.ndarray]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The example's model after an epoch, its data, its AUC and its logits."""
    torch.manual_seed(0)
    data = Census(batch_size=512)
    with damo.EmbeddingStore(tmp_path_factory.mktemp("trained") / "store") as store:
        collection = damo.EmbeddingBagCollection(
            table_configs(data, 16), torchrec.optim.RowWiseAdagrad, {"lr": 0.05}, store=store
        )
        model = build_model(collection, data.dense_features)
        optimizer = dense_optimizer(model, lr=0.001)
        for batch in data.train_batches(0):
            train_step(model, optimizer, batch)
        model.eval()
        auc, samples = evaluate(model, data.test_batches())
        assert samples > 10_000
        assert auc > 0.85
        yield model, data, auc


def answers(session: Any) -> Answer:
    def answer(batch: Batch) -> np.ndarray:
        request = feed(dense_features=batch.dense_features, sparse_features=batch.sparse_features)
        logits: np.ndarray = session.run(None, request)[0]
        return logits

    return answer


def check(trained: tuple[nn.Module, Census, float], answer: Answer, auc_within: float, error: float) -> None:
    model, data, expected = trained
    truth, served, worst = [], [], 0.0
    for batch in data.test_batches():
        logits = answer(batch)
        with torch.no_grad():
            wanted = model(batch.dense_features, batch.sparse_features).numpy()
        worst = max(worst, float(np.abs(logits - wanted).max()))
        served.append(logits.ravel())
        truth.append(batch.labels.numpy())
    auc = roc_auc_score(np.concatenate(truth), np.concatenate(served))
    assert abs(auc - expected) < auc_within
    assert worst < error


@pytest.mark.parametrize(
    ("dtype", "auc_within", "error"), [("float32", 5e-5, 1e-5), ("float16", 1e-4, 1e-2), ("int8", 1e-3, 0.1)]
)
def test_exported(trained: Any, tmp_path: Path, dtype: Any, auc_within: float, error: float) -> None:
    batch = next(iter(trained[1].test_batches()))
    damo.onnx.export(trained[0], (batch.dense_features, batch.sparse_features), tmp_path / "model", dtype=dtype)
    check(trained, answers(damo.onnx.session(tmp_path / "model", operators=False)), auc_within, error)


def test_predicted(trained: Any, tmp_path: Path) -> None:
    batch = next(iter(trained[1].test_batches()))
    args = (batch.dense_features, batch.sparse_features)
    with damo.serving.Predictor(damo.serving.export(trained[0], args, tmp_path / "served")) as predictor:

        def answer(batch: Batch) -> np.ndarray:
            return predictor.predict(
                {"dense_features": batch.dense_features, "sparse_features": batch.sparse_features}
            )["output"]

        check(trained, answer, 5e-5, 1e-5)
