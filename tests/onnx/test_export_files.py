"""Exporting as a user meets it: files that are whole or not there, and errors that say what is wrong."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor

import damo_torchrec as damo
from serving_cases import SGD, Groups, Pooled, TwoTowers, bags, feed, random_features, train

REQUEST = random_features("abc", 16)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[damo.EmbeddingStore]:
    with damo.EmbeddingStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def model(store: damo.EmbeddingStore) -> nn.Module:
    pooled = Pooled(store, weighted=False)
    train(pooled, (REQUEST,))
    return pooled


def files_in(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def answer(path: Path, features: KeyedJaggedTensor = REQUEST) -> np.ndarray:
    return damo.onnx.session(path, operators=False).run(None, feed(features=features))[0]


def test_a_file_with_its_data_beside_it_moves_with_it(model: nn.Module, tmp_path: Path) -> None:
    where = tmp_path / "exported"
    file = damo.onnx.export(model, REQUEST, where / "ranker.onnx")
    assert file == where / "ranker.onnx"
    assert {p.name.split("-")[0] for p in where.iterdir()} == {"ranker.onnx", "ranker.data"}
    expected = answer(file)
    where.rename(tmp_path / "moved")
    np.testing.assert_array_equal(answer(tmp_path / "moved" / "ranker.onnx"), expected)


def test_another_export_takes_the_place_of_the_first(model: nn.Module, tmp_path: Path) -> None:
    damo.onnx.export(model, REQUEST, tmp_path / "m")
    before = files_in(tmp_path / "m")
    train(model, (REQUEST,))
    damo.onnx.export(model, REQUEST, tmp_path / "m")
    after = files_in(tmp_path / "m")
    assert len(before) == len(after)
    assert set(before) & set(after) == {"model.onnx"}
    np.testing.assert_allclose(answer(tmp_path / "m"), model(REQUEST).detach().numpy(), atol=1e-6)


class Cancelled(BaseException):
    """As KeyboardInterrupt, which pytest takes for its own."""


def fail_while_rows_are_written(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def update(*_: Any) -> None:
        raise error

    monkeypatch.setattr("tqdm.auto.tqdm.update", update)


@pytest.mark.parametrize("existing", [False, True])
def test_a_cancelled_export_leaves_what_was_there(
    model: nn.Module, tmp_path: Path, existing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "model"
    if existing:
        damo.onnx.export(model, REQUEST, path)
    before = files_in(tmp_path)
    with monkeypatch.context() as patch:
        fail_while_rows_are_written(patch, Cancelled())
        with pytest.raises(Cancelled):
            damo.onnx.export(model, REQUEST, path)
    assert files_in(tmp_path) == before
    assert (tmp_path / "new").exists() == existing
    damo.onnx.export(model, REQUEST, path)
    np.testing.assert_allclose(answer(path), model(REQUEST).detach().numpy(), atol=1e-6)


def test_a_full_disk_is_an_out_of_space_error(model: nn.Module, tmp_path: Path) -> None:
    damo.onnx.export(model, REQUEST, tmp_path / "m")
    before = files_in(tmp_path / "m")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        with pytest.raises(damo.OutOfSpaceError):
            damo.onnx.export(model, REQUEST, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert files_in(tmp_path / "m") == before


def test_the_rows_are_those_of_one_moment(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model(REQUEST).detach().numpy()
    trained = False

    def update(*_: Any) -> None:
        nonlocal trained
        if not trained:
            trained = True
            train(model, (REQUEST,))

    monkeypatch.setattr("tqdm.auto.tqdm.update", update)
    damo.onnx.export(model, REQUEST, tmp_path / "m")
    assert trained
    np.testing.assert_allclose(answer(tmp_path / "m"), expected, atol=1e-6)


def test_the_model_is_left_as_it_is(model: nn.Module, tmp_path: Path) -> None:
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    damo.onnx.export(model, REQUEST, tmp_path / "m")
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    train(model, (REQUEST,))


def test_the_model_card(model: nn.Module, store: damo.EmbeddingStore, tmp_path: Path) -> None:
    damo.onnx.export(model, REQUEST, tmp_path / "m", dtype="float16", max_length={"a": 9}, min_count=1)
    card = damo.onnx.model_card(tmp_path / "m")
    assert (card["kind"], card["store"], card["step"]) == ("full", str(store.path), store.step)
    assert card["features"] == {"features": {"keys": ["a", "b", "c"], "weighted": False}}
    assert {name: table["rows"] for name, table in card["tables"].items()} == {
        name: len(table) for name, table in store.tables().items()
    }
    assert card["options"]["dtype"] == "float16"
    assert card["options"]["max_length"] == {"a": 9}
    session = onnxruntime.InferenceSession(str(tmp_path / "m" / "model.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["damo_torchrec"]) == card


def test_inputs_and_outputs_have_names_and_free_sizes(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    request = (random_features("u", 2), random_features("i", 2))
    damo.onnx.export(TwoTowers(store), request, tmp_path / "m", output_names=["score"])
    session = damo.onnx.session(tmp_path / "m", operators=False)
    assert {i.name: i.shape for i in session.get_inputs()} == {
        "query.values": ["query.ids"],
        "query.lengths": [1, "batch"],
        "item.values": ["item.ids"],
        "item.lengths": [1, "batch"],
    }
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("score", ["batch"])]


ONE_EACH = np.ones((3, 1), dtype=np.int64)
WRONG_LENGTHS = "lengths are negative, beyond max_length, or not in sum the number of values"
WRONG_INPUT = "Got invalid dimensions|Unexpected input"
BAD_REQUESTS = {
    "too few ids": ({"values": np.arange(2), "lengths": ONE_EACH}, WRONG_LENGTHS),
    "too many ids": ({"values": np.arange(4), "lengths": ONE_EACH}, WRONG_LENGTHS),
    "a negative length": ({"values": np.arange(3), "lengths": np.array([[5], [-1], [-1]])}, WRONG_LENGTHS),
    "a negative length at the end": ({"values": np.arange(3), "lengths": np.array([[4], [0], [-1]])}, WRONG_LENGTHS),
    "more ids than memory": ({"values": np.arange(3), "lengths": np.array([[1 << 45], [1], [1]])}, WRONG_LENGTHS),
    "lengths whose sum wraps": (
        {"values": np.arange(3), "lengths": np.array([[2**62, 2**62], [2**62, 2**62], [3, 0]])},
        WRONG_LENGTHS,
    ),
    "too few keys": ({"values": np.arange(2), "lengths": np.ones((2, 1), dtype=np.int64)}, WRONG_INPUT),
    "too many keys": ({"values": np.arange(4), "lengths": np.ones((4, 1), dtype=np.int64)}, WRONG_INPUT),
    "no int64": ({"values": np.arange(3, dtype=np.int32), "lengths": ONE_EACH}, WRONG_INPUT),
}


def test_wrong_requests_are_refused(model: nn.Module, tmp_path: Path) -> None:
    damo.onnx.export(model, REQUEST, tmp_path / "m")
    session = damo.onnx.session(tmp_path / "m", operators=False)
    for bad, message in BAD_REQUESTS.values():
        with pytest.raises(Exception, match=message):
            session.run(None, {f"features.{name}": value for name, value in bad.items()})


@pytest.mark.parametrize("keys", ["abc", "axbc"], ids=["all keys", "some keys"])
def test_more_or_fewer_weights_than_ids_are_refused(store: damo.EmbeddingStore, tmp_path: Path, keys: str) -> None:
    model = Pooled(store, weighted=True).eval()
    damo.onnx.export(model, random_features(keys, 1, weighted=True), tmp_path / "m")
    session = damo.onnx.session(tmp_path / "m", operators=False)
    request = feed(features=random_features(keys, 5, weighted=True))
    session.run(None, request)
    weights = request["features.weights"]
    for wrong in (weights[1:], np.append(weights, weights[:1])):
        with pytest.raises(Exception, match="there is not one weight for each value"):
            session.run(None, request | {"features.weights": wrong})


def test_bags_beyond_the_declared_length_are_refused(model: nn.Module, tmp_path: Path) -> None:
    damo.onnx.export(model, REQUEST, tmp_path / "m", max_length=4)
    answer(tmp_path / "m", random_features("abc", 8, longest=4))
    long = KeyedJaggedTensor(keys=list("abc"), values=torch.arange(5), lengths=torch.tensor([5, 0, 0]))
    with pytest.raises(Exception, match=WRONG_LENGTHS):
        answer(tmp_path / "m", long)


def test_float16_refuses_what_it_cannot_hold(model: nn.Module, store: damo.EmbeddingStore, tmp_path: Path) -> None:
    store.table("secondFalse").set([77], torch.full((1, 3), 1e6))
    with pytest.raises(ValueError, match="77"):
        damo.onnx.export(model, REQUEST, tmp_path / "m", dtype="float16")
    assert not (tmp_path / "m").exists()


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


def test_models_and_arguments_that_cannot_be_exported(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = Pooled(store, weighted=True)
    for args, error, message in (
        ((REQUEST, REQUEST), TypeError, "do not fit Pooled.forward"),
        (({"a": 1},), TypeError, "must be a KeyedJaggedTensor, a tensor or a constant, got dict"),
        ((random_features("abc", 0),), ValueError, "at least one sample"),
        ((REQUEST,), RuntimeError, "is weighted, but the KeyedJaggedTensor in args has no weights"),
        ((random_features("ab", 2, weighted=True),), RuntimeError, "no feature 'c'"),
    ):
        with pytest.raises(error, match=message):
            damo.onnx.export(model, args, tmp_path / "m")
    plain = EmbeddingBagCollection(tables=bags("a", [4]))
    with pytest.raises(ValueError, match="found none"):
        damo.onnx.export(plain, random_features("a", 1), tmp_path / "m")
    meta = damo.EmbeddingBagCollection(bags("a", [4]), device="meta", **SGD)
    with pytest.raises(ValueError, match="meta"):
        damo.onnx.export(meta, random_features("a", 1), tmp_path / "m", store=store)
    for read in (damo.onnx.session, damo.onnx.model_card):
        with pytest.raises(ValueError, match="is not a file: export makes one"):
            read(tmp_path / "m")
    onnx.save(
        onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 18]> g (float x) => (float x) {}'),
        tmp_path / "o.onnx",
    )
    with pytest.raises(ValueError, match="is no model"):
        damo.onnx.model_card(tmp_path / "o.onnx")
    for threads in (0, -1, 100_000):
        with pytest.raises(ValueError, match=rf"num_threads must be in 1\.\.1024 or None, got {threads}"):
            damo.onnx.session(tmp_path / "o.onnx", num_threads=threads)


def test_save_model_for_serving_says_what_it_takes(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = Groups(store)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="takes no step"):
        damo.save_model(model, tmp_path / "m", False, dummy_input=ids, step=3)
    with pytest.raises(ValueError, match="takes no dummy_input"):
        damo.save_model(model, tmp_path / "m", dummy_input=ids)
    with pytest.raises(ValueError, match="needs a path, and dummy_input"):
        damo.save_model(model, tmp_path / "m", training=False)


def test_the_dense_part_alone(model: nn.Module, tmp_path: Path) -> None:
    file = damo.onnx.export(model, REQUEST, tmp_path / "dense.onnx", dense_only=True)
    assert files_in(tmp_path / "dense.onnx") == []
    assert [p.name for p in tmp_path.glob("dense*")] == ["dense.onnx"]
    session = onnxruntime.InferenceSession(str(file))
    assert [i.name for i in session.get_inputs()] == ["ebc.pooled"]
    pooled = np.random.default_rng(0).standard_normal((3, 27), dtype=np.float32)
    np.testing.assert_array_equal(session.run(None, {"ebc.pooled": pooled})[0], pooled)
    (lookup,) = damo.onnx.model_card(file)["lookups"]
    assert [(o["key"], o["table"], o["pooling"]) for o in lookup["outputs"]] == [
        ("c", "firstFalse", "MEAN"),
        ("a", "firstFalse", "MEAN"),
        ("b", "secondFalse", "SUM"),
        ("a", "thirdFalse", "SUM"),
    ]


OLDEST = Path(sys.prefix) / "onnxruntime-oldest"
RUN = """
import sys, numpy, onnxruntime
inputs = dict(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], onnxruntime.InferenceSession(sys.argv[1]).run(None, inputs)[0])
print(onnxruntime.__version__)
"""


@pytest.mark.skipif(not OLDEST.is_dir(), reason="no onnxruntime of this Python is as old as pyproject.toml admits")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_oldest_runtime_gives_the_same(model: nn.Module, tmp_path: Path, dtype: str) -> None:
    file = damo.onnx.export(model, REQUEST, tmp_path / "m", dtype=dtype, unseen="initial")
    np.savez(tmp_path / "inputs.npz", **feed(features=REQUEST))
    result = subprocess.run(
        [sys.executable, "-c", RUN, str(file), str(tmp_path / "inputs.npz"), str(tmp_path / "answer.npy")],
        env={**os.environ, "PYTHONPATH": str(OLDEST)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() != onnxruntime.__version__
    np.testing.assert_array_equal(np.load(tmp_path / "answer.npy"), answer(tmp_path / "m"))
