"""What an exported graph computes: what the model does in eval mode; and which options `export` takes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM_DCN

import damo_torchrec as damo
from exported_models import BATCHES, REQUEST, answer, check_parity, dlrm, dlrm_requests
from serving_cases import SGD, Groups, Pooled, Sequences, SharedTower, TwoTowers, bags, feed, random_features, train


def test_dlrm(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    batches = (1, 2, 33, 300, 4096)  # the interaction of no samples is more than torch can do
    check_parity(dlrm(store), dlrm_requests(), tmp_path / "model", batches=batches)


def test_dlrm_dcn(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = dlrm(store, DLRM_DCN, dcn_num_layers=2, dcn_low_rank_dim=4)
    check_parity(model, dlrm_requests(), tmp_path / "model.onnx", batches=(1, 2, 33, 300))


def test_deepfm(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    ebc = damo.EmbeddingBagCollection(bags("abc", [8] * 3), store=store, **SGD)
    model = SimpleDeepFMNN(5, ebc, hidden_layer_size=8, deep_fm_dimension=4)
    check_parity(model, dlrm_requests(), tmp_path / "model", batches=(1, 2, 33, 300))


@pytest.mark.parametrize("weighted", [False, True])
def test_pooled_bags_of_any_kind(store: damo.EmbeddingStore, tmp_path: Path, weighted: bool) -> None:
    def requests(batch: int) -> dict[str, Any]:
        return {"features": random_features("axbc", batch, longest=6, weighted=weighted, seed=batch)}

    check_parity(Pooled(store, weighted), requests, tmp_path / "model")


def test_sequences(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    check_parity(
        Sequences(store), lambda b: {"features": random_features("cd", b, seed=b)}, tmp_path / "m", batches=BATCHES[1:]
    )


def test_collections_that_are_called_twice(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    def requests(batch: int) -> dict[str, Any]:
        return {"query": random_features("xy", batch, seed=1), "item": random_features("yx", batch, seed=2)}

    check_parity(SharedTower(store), requests, tmp_path / "m", batches=BATCHES[1:])


def test_two_towers(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    def requests(batch: int) -> dict[str, Any]:
        return {"query": random_features("u", batch, seed=1), "item": random_features("i", batch, seed=2)}

    check_parity(TwoTowers(store), requests, tmp_path / "model")


@pytest.mark.parametrize("padding", [None, 0])
def test_damo_embedding(store: damo.EmbeddingStore, tmp_path: Path, padding: int | None) -> None:
    def requests(batch: int) -> dict[str, Any]:
        return {"ids": torch.from_numpy(np.random.default_rng(batch).integers(-30, 30, (batch, 3)))}

    check_parity(Groups(store, padding), requests, tmp_path / "model")


def test_damo_embeddings_save_model(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = Groups(store)
    ids = torch.arange(12).view(4, 3)
    train(model, (ids,))
    file = damo.save_model(
        model,
        tmp_path / "eval",
        False,
        dummy_input=ids[:1],
        input_names=["feats"],
        output_names=["prob"],
        dynamic_axes={"feats": {0: "batch"}},
    )
    session = onnxruntime.InferenceSession(str(file))
    (answer,) = session.run(["prob"], {"feats": ids.numpy()})
    np.testing.assert_allclose(answer, model(ids).detach().numpy(), atol=1e-6)


def test_the_rows_of_another_store(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = Pooled(store, weighted=False)
    request = random_features("abc", 16)
    train(model, (request,))
    before = model(request).detach().numpy()
    checkpoint = store.checkpoint()
    train(model, (request,))
    with damo.EmbeddingStore(checkpoint, read_only=True) as older:
        damo.onnx.export(model, request, tmp_path / "model", store=older)
    (answer,) = damo.onnx.session(tmp_path / "model", operators=False).run(None, feed(features=request))
    np.testing.assert_allclose(answer, before, atol=1e-6)


def test_filters(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    ebc = damo.EmbeddingBagCollection(
        [EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=50, feature_names=["f"])], store=store, **SGD
    )

    def features(ids: list[int]) -> KeyedJaggedTensor:
        return KeyedJaggedTensor(keys=["f"], values=torch.tensor(ids), lengths=torch.ones(len(ids), dtype=torch.int64))

    class Values(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ebc = ebc

        def forward(self, f: KeyedJaggedTensor) -> torch.Tensor:
            return self.ebc(f).values()

    model = Values()
    train(model, *((features(ids),) for ids in ([1, 2, 3, 4], [2, 3, 4], [3, 4], [1])))  # counts 2, 2, 3, 3

    def exported(**filters: Any) -> list[int]:
        damo.onnx.export(model, features([1]), tmp_path / "model", **filters)
        (answer,) = damo.onnx.session(tmp_path / "model", operators=False).run(None, feed(f=features([1, 2, 3, 4])))
        kept = [i for i, row in zip([1, 2, 3, 4], answer, strict=True) if row.any()]
        assert damo.onnx.model_card(tmp_path / "model")["tables"]["t"]["rows"] == len(kept)
        return kept

    assert exported() == [1, 2, 3, 4]
    assert exported(min_count=3) == [3, 4]
    assert exported(expire=0) == [1]
    assert exported(expire=1) == [1, 3, 4]
    assert exported(top_n=3) == [1, 3, 4]
    assert exported(top_n={"t": 1}) == [3]
    assert exported(top_n=100) == [1, 2, 3, 4]


def test_the_rows_are_those_of_one_moment(model: nn.Module, tmp_path: Path) -> None:
    expected = model(REQUEST).detach().numpy()
    trained = False

    def update(*_: Any) -> None:
        nonlocal trained
        if not trained:
            trained = True
            train(model, (REQUEST,))

    damo.onnx.export(model, REQUEST, tmp_path / "m", progress=update)
    assert trained
    np.testing.assert_allclose(answer(tmp_path / "m"), expected, atol=1e-6)


def test_float16_refuses_what_it_cannot_hold(model: nn.Module, store: damo.EmbeddingStore, tmp_path: Path) -> None:
    store.table("secondFalse").set([77], torch.full((1, 3), 1e6))
    with pytest.raises(ValueError, match="77"):
        damo.onnx.export(model, REQUEST, tmp_path / "m", dtype="float16")
    assert not (tmp_path / "m").exists()


def test_float16_warns_of_rows_that_it_keeps_little_of(
    model: nn.Module, store: damo.EmbeddingStore, tmp_path: Path
) -> None:
    table = store.table("secondFalse")
    table.set(torch.tensor([70, 71, 72]), torch.tensor([[1e-9, 0, 0], [3e-5, -1e-6, 0], [0.0, 0, 0]]))
    with pytest.warns(UserWarning, match=r"float16 keeps little or nothing of 2 rows, .* {'secondFalse': 2}"):
        damo.onnx.export(model, REQUEST, tmp_path / "m", dtype="float16")
    for dtype in ("float32", "int8"):
        damo.onnx.export(model, REQUEST, tmp_path / "m", dtype=dtype)
    table.set(torch.tensor([70]), torch.full((1, 3), 1e-40))
    with pytest.warns(UserWarning, match="int8 keeps little or nothing of 1 rows"):
        damo.onnx.export(model, REQUEST, tmp_path / "m", dtype="int8")


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_rows_over_several_arrays(
    store: damo.EmbeddingStore, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = {"float32": 4, "int8": 1}[dtype]
    monkeypatch.setattr("damo_torchrec.onnx.rows._SHARD_BYTES", 40 * 8 * item)
    tolerance = {"float32": 1e-5, "int8": 2e-2}[dtype]
    check_parity(dlrm(store), dlrm_requests(), tmp_path / "model", tolerance, batches=(1, 300), dtype=dtype)
    graph = onnx.load(tmp_path / "model" / "model.onnx", load_external_data=False).graph
    assert sum("/rows_" in initializer.name for initializer in graph.initializer) > 2


WRONG_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "max_length 2.5": ({"max_length": 2.5}, r"max_length of '.' must be an int, got 2\.5"),
    "max_length True": ({"max_length": {"b": True}}, "max_length of 'b' must be an int, got True"),
    "max_length 2^70": ({"max_length": 2**70}, r"must be in 1\.\.2\*\*62"),
    "min_count '3'": ({"min_count": "3"}, "min_count must be an int, got '3'"),
    "min_count 2^70": ({"min_count": 2**70}, r"must be in 0\.\.2\*\*62"),
    "expire 1.5": ({"expire": 1.5}, r"expire must be an int, got 1\.5"),
    "top_n 2.0": ({"top_n": 2.0}, r"top_n of .* must be an int, got 2\.0"),
    "memory_budget": ({"memory_budget": "1MiB"}, "memory_budget must be at least 33554432 bytes, got '1MiB'"),
    "dtype": ({"dtype": "float64"}, "dtype must be one of"),
    "unseen": ({"unseen": "random"}, "unseen must be one of"),
    "max_length": ({"max_length": {"z": 3}}, r"max_length names \['z'\]"),
    "max_length 0": ({"max_length": 0}, r"must be in 1\.\.2\*\*62, got 0"),
    "top_n": ({"top_n": {"t": 1}}, "top_n names"),
    "min_count": ({"min_count": -1}, r"min_count must be in 0\.\.2\*\*62, got -1"),
    "output_names": ({"output_names": ["a", "b"]}, "must name 1 outputs"),
    "input_names": ({"input_names": ["a", "b"]}, "must name 1 arguments"),
}


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_wrong_options_are_refused(model: nn.Module, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError if "an int" in message else ValueError, match=message):
        damo.onnx.export(model, REQUEST, tmp_path / "m", **options)
    assert not (tmp_path / "m").exists()


def test_save_model_for_serving_says_what_it_takes(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = Groups(store)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="takes no step"):
        damo.save_model(model, tmp_path / "m", False, dummy_input=ids, step=3)
    with pytest.raises(ValueError, match="takes no dummy_input"):
        damo.save_model(model, tmp_path / "m", dummy_input=ids)
    with pytest.raises(ValueError, match="needs a path, and dummy_input"):
        damo.save_model(model, tmp_path / "m", training=False)
