"""What a predictor answers: what the model does in eval mode; and what it refuses."""

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec import init
from damo_torchrec.optim.spec import OptimizerSpec
from damo_torchrec.serving.histogram import Histogram
from damo_torchrec.store.table_definition import TableDefinition
from serving_cases import (
    SGD,
    Groups,
    Pooled,
    Sequences,
    SharedTower,
    SomeSequences,
    TwoTowers,
    feed,
    random_features,
    train,
)
from support import small_store

BATCHES = (0, 1, 2, 33, 300)


def pooled_request(batch: int, weighted: bool = True) -> dict[str, Any]:
    return {"features": random_features("dbac", batch, weighted=weighted, seed=batch)}


def sequences_request(batch: int) -> dict[str, Any]:
    return {"features": random_features("dac", batch, seed=batch)}


def towers_request(batch: int) -> dict[str, Any]:
    return {"query": random_features("xu", batch, seed=batch), "item": random_features("yi", batch, seed=batch + 1)}


def shared_request(batch: int) -> dict[str, Any]:
    return {"query": random_features("xy", batch, seed=batch), "item": random_features("yx", batch, seed=batch + 1)}


def groups_request(batch: int) -> dict[str, Any]:
    return {"ids": torch.from_numpy(np.random.default_rng(batch).integers(-20, 20, (batch, 3)))}


def exported(model: nn.Module, request: Any, path: Path) -> Path:
    train(model, *(tuple(request(size).values()) for size in (16, 17, 18)))
    return damo.serving.export(model, tuple(request(3).values()), path)


def predictor_of(path: Path, **options: Any) -> damo.serving.Predictor:
    return damo.serving.Predictor(path, memory_budget="64MiB", num_threads=2, **options)


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A weighted model, and a checkpoint to serve it from."""
    path = tmp_path_factory.mktemp("pooled")
    with small_store(path / "store") as store:
        model = Pooled(store, weighted=True)
        yield model, exported(model, pooled_request, path / "checkpoint")


@pytest.fixture
def predictor(pooled: Any) -> Any:
    with predictor_of(pooled[1]) as opened:
        yield opened


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


@pytest.mark.parametrize("unseen", ["zeros", "initial"])
def test_unseen_ids_read_as_in_eval_mode(store: Any, tmp_path: Path, unseen: Any) -> None:
    options = {"t": damo.TableOptions(unseen_in_eval=unseen)}
    tables = [EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=10, feature_names=["a"])]
    model = Features(damo.EmbeddingBagCollection(tables, store=store, table_options=options, **SGD))
    features = random_features("a", 20)
    path = damo.serving.export(model, features, tmp_path / "checkpoint")
    with predictor_of(path) as predictor:
        expected = model.eval()(features)
        assert bool(expected.any()) == (unseen == "initial")
        np.testing.assert_array_equal(predictor.predict({"features": features})["output"], expected.numpy())


class Features(nn.Module):
    def __init__(self, collection: nn.Module) -> None:
        super().__init__()
        self.collection = collection

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.collection(features).values()


# ------------------------------------------------------------------ requests


def test_every_form_of_a_request_gets_the_same_answer(predictor: Any) -> None:
    request = pooled_request(5)
    arrays = feed(**request)
    forms = [
        request,
        {name: torch.from_numpy(array) for name, array in arrays.items()},
        {name: array.tolist() for name, array in arrays.items()},
        {name: array.astype(np.int16 if array.dtype.kind == "i" else np.float64) for name, array in arrays.items()},
        {name: np.asfortranarray(array) for name, array in arrays.items()},
        {name: array.astype(array.dtype.newbyteorder()) for name, array in arrays.items()},
    ]
    answers = [predictor.predict(form)["output"] for form in forms]
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


def test_keys_may_come_in_any_order_with_others_among_them(predictor: Any) -> None:
    features = pooled_request(6)["features"]
    by_key = features.to_dict()
    keys = ["a", "more", "c", "b", "d"]
    parts = [by_key[key if key != "more" else "a"] for key in keys]
    shuffled = KeyedJaggedTensor(
        keys=keys,
        values=torch.cat([part.values() for part in parts]),
        lengths=torch.cat([part.lengths() for part in parts]),
        weights=torch.cat([part.weights() for part in parts]),
    )
    expected = predictor.predict({"features": features})["output"]
    np.testing.assert_array_equal(predictor.predict({"features": shuffled})["output"], expected)


def test_every_int64_is_an_id(predictor: Any) -> None:
    ids = [-(2**63), 2**63 - 1, 0, -1]
    lists = {"features.values": ids, "features.lengths": [[1]] * 4, "features.weights": [1.0] * 4}
    arrays = {**lists, "features.values": np.array([2**64 - 1], dtype=np.uint64)}
    assert predictor.predict(lists)["output"].shape == (1, 27)
    with pytest.raises(ValueError, match=r"features.values must fit int64, got 18446744073709551615"):
        predictor.predict(arrays)


def inputs(**changes: Any) -> dict[str, Any]:
    """Two samples with one id for each of four keys, and what is wrong with them."""
    good = {"values": list(range(8)), "lengths": [[1, 1]] * 4, "weights": [1.0] * 8}
    return {f"features.{name}": value for name, value in (good | changes).items() if value is not None}


KJT = pooled_request(2)["features"]

BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no dict": ([1], TypeError, "must be a dict of arrays by name, got list"),
    "missing": (inputs(weights=None), ValueError, r"\['features.weights'\] are missing; expected .*, got "),
    "unknown": (inputs(more=[1]), ValueError, r"\['features.more'\] are not known; expected \['features.lengths'"),
    "name that is no text": ({**inputs(), 3: [1]}, ValueError, r"\['3'\] are not known"),
    "float ids": (inputs(values=[1.0] * 8), TypeError, "values must be integers, got float"),
    "float array": (inputs(values=np.ones(8)), TypeError, "values must be integers, got float64"),
    "float tensor": (inputs(values=torch.ones(8)), TypeError, "values must be integers, got float32"),
    "bool ids": (inputs(values=[True] * 8), TypeError, "values must be integers, got bool"),
    "one bool among ids": (inputs(values=[1] * 7 + [True]), TypeError, "values must be integers, got bool"),
    "bool array": (inputs(values=np.ones(8, dtype=bool)), TypeError, "values must be integers, got bool"),
    "bool weights": (inputs(weights=[True] * 8), TypeError, "weights must be numbers, got bool"),
    "text": (inputs(values="12345678"), TypeError, "values must be an array, a tensor or nested lists of numbers"),
    "texts": (inputs(values=["1"] * 8), TypeError, "values must be integers, got str"),
    "complex": (inputs(weights=np.ones(8, dtype=complex)), TypeError, "weights must be numbers, got complex128"),
    "None": (inputs(values=[None] * 8), TypeError, "values must be integers, got NoneType"),
    "above int64": (inputs(values=[2**63] + [0] * 7), ValueError, "values must fit int64"),
    "below int64": (inputs(values=[-(2**63) - 1] + [0] * 7), ValueError, "values must fit int64"),
    "huge": (inputs(values=[2**200] + [0] * 7), ValueError, "values must fit int64"),
    "huge weight": (inputs(weights=[10**400] + [0] * 7), ValueError, "weights must fit float32"),
    "ragged": (inputs(lengths=[[1, 1], [1], [1, 1], [1, 1]]), ValueError, "lengths must be one array, got ragged"),
    "ragged arrays": (inputs(values=[np.ones((2, 2)), np.ones((2, 3))]), ValueError, "must be one array, got ragged"),
    "sparse tensor": (inputs(weights=torch.eye(8).to_sparse()), TypeError, "weights must be a dense tensor"),
    "rank of values": (inputs(values=[[1] * 8]), ValueError, r"values must have the shape \(features.values\), got"),
    "rank of lengths": (inputs(lengths=[1] * 8), ValueError, r"lengths must have the shape \(4, batch\), got \(8,\)"),
    "keys": (inputs(lengths=[[2, 2]] * 2), ValueError, r"lengths must have the shape \(4, batch\), got \(2, 2\)"),
    "negative length": (inputs(lengths=[[-1, 3]] + [[1, 1]] * 3), ValueError, "must not be negative, got -1"),
    "too few": (inputs(lengths=[[1, 0]] + [[1, 1]] * 3), ValueError, r"sum to the 8 ids in features.values, got 7"),
    "too many": (inputs(lengths=[[9, 0]] + [[0, 0]] * 3), ValueError, r"sum to the 8 ids in features.values, got 9"),
    "sum beyond int64": (inputs(lengths=[[2**62, 2**62]] * 4), ValueError, "lengths must sum to the 8 ids"),
    "weights": (inputs(weights=[1.0] * 7), ValueError, "weights must have the shape .*: features.values is 8 in"),
    "no KeyedJaggedTensor": (
        {"features": None},
        TypeError,
        "features must be a KeyedJaggedTensor, got NoneType; as arrays it is features.values, .* and features.weights",
    ),
    "KeyedJaggedTensor and its part": ({"features": KJT, "features.more": [1]}, ValueError, "are not known"),
    "KeyedJaggedTensor without a key": (
        {"features": random_features("dba", 2, weighted=True)},
        ValueError,
        r"features lacks the keys \['c'\]; expected \['d', 'b', 'a', 'c'\], got \['d', 'b', 'a'\]",
    ),
    "KeyedJaggedTensor without weights": (
        {"features": random_features("dbac", 2)},
        ValueError,
        "features must have weights",
    ),
    "KeyedJaggedTensor of floats": (
        {"features": KeyedJaggedTensor(list("dbac"), torch.ones(4), torch.ones(4), lengths=torch.ones(4).long())},
        TypeError,
        "features.values must be integers",
    ),
}


@pytest.mark.parametrize(("request_", "error", "message"), BAD.values(), ids=BAD)
def test_a_wrong_request_is_refused_before_anything_runs(
    predictor: Any, request_: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        predictor.predict(request_)
    assert predictor.stats().rows == 0
    assert predictor.predict(inputs())["output"].shape == (2, 27)


def test_batch_sizes_that_disagree_are_refused(store: Any, tmp_path: Path) -> None:
    with predictor_of(exported(TwoTowers(store), towers_request, tmp_path / "checkpoint")) as predictor:
        request = towers_request(3) | {"item": towers_request(4)["item"]}
        with pytest.raises(
            ValueError, match=r"item.lengths must have the shape \(2, batch\), got \(2, 4\): batch is 3"
        ):
            predictor.predict(request)


def test_more_ids_than_the_budget_allows_are_refused(predictor: Any) -> None:
    most = (64 << 20) // 8
    request = inputs(
        values=np.zeros(most + 1, dtype=np.int64), weights=np.zeros(most + 1), lengths=[[most + 1]] + [[0]] * 3
    )
    with pytest.raises(ValueError, match="more than the 8388608 that memory_budget allows"):
        predictor.predict(request)


def test_nan_and_infinite_weights_pass(predictor: Any) -> None:
    answer = predictor.predict(inputs(weights=[float("nan"), float("inf"), -1e300, 0, 0, 0, 0, 0]))["output"]
    assert not np.isfinite(answer).all()


# ------------------------------------------------------------------ many at once


def test_threads_get_the_answers_that_one_gets(predictor: Any) -> None:
    requests = [pooled_request(batch) for batch in range(1, 40)]
    expected = [predictor.predict(request)["output"] for request in requests]
    barrier = threading.Barrier(4)

    def ask(_: int) -> None:
        barrier.wait()
        for request, answer in zip(requests, expected, strict=True):
            np.testing.assert_array_equal(predictor.predict(request)["output"], answer)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    stats = predictor.stats()
    assert stats.requests == 5 * len(requests)
    asked = [request["features"].length_per_key() for request in requests]
    assert stats.rows == 5 * sum(b + 2 * a + c for _, b, a, c in asked)
    assert 0 < stats.misses <= stats.rows
    assert 0 < stats.p50 <= stats.p99 < 60


def test_quantiles_are_those_of_numpy_up_to_a_bucket() -> None:
    histogram = Histogram()
    seconds = np.random.default_rng(0).lognormal(-7, 1.5, 1000)
    for each in seconds:
        histogram.add(each)
    latencies = histogram.latencies()
    assert latencies.count == 1000
    assert latencies.total == pytest.approx(seconds.sum())
    for q in (0.01, 0.5, 0.99, 1.0):
        exact = np.quantile(seconds, q, method="inverted_cdf")
        assert exact <= latencies.quantile(q) <= exact * 1.19
    assert Histogram().latencies().quantile(0.5) == 0
    histogram.add(1e9)
    assert histogram.latencies().quantile(1) == float("inf")


# ------------------------------------------------------------------ the checkpoint


def contents(directory: Path) -> dict[str, Any]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(f): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns) for f in files}


def test_nothing_is_written_into_the_checkpoint_or_left_beside_it(pooled: Any) -> None:
    path = pooled[1]
    before, beside = contents(path), sorted(path.parent.iterdir())
    with predictor_of(path) as predictor:
        predictor.predict(pooled_request(300))
        assert len(list(path.parent.iterdir())) == len(beside) + 1
    assert contents(path) == before
    assert sorted(path.parent.iterdir()) == beside


def test_what_a_killed_process_left_is_removed_but_not_what_is_in_use(pooled: Any) -> None:
    path = pooled[1]
    left = path.parent / f".{path.name}.serving-left"
    (left / "checkpoints").mkdir(parents=True)
    with predictor_of(path) as first, predictor_of(path) as second:
        assert not left.exists()
        answers = [each.predict(pooled_request(3))["output"] for each in (first, second)]
        np.testing.assert_array_equal(*answers)


def test_rows_go_among_temporary_files_where_the_checkpoint_has_no_place(
    pooled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from damo_torchrec.serving import working_copy

    make = working_copy.tempfile.mkdtemp

    def refuse(dir: Any = None, **options: Any) -> str:
        if dir is not None:
            raise PermissionError("read-only")
        return make(**options)

    monkeypatch.setattr(working_copy.tempfile, "mkdtemp", refuse)
    with predictor_of(pooled[1]) as predictor:
        assert predictor._store.path.parent == tmp_path
        predictor.predict(pooled_request(3))
    assert "nothing can be written beside" in caplog.text
    assert list(tmp_path.iterdir()) == []


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


# ------------------------------------------------------------------ the dense part


def dense_graph(card: Any, inputs: Any = (("pooled", ["batch", 4]),)) -> bytes:
    """A graph that gives its first input back."""
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs]
    output = helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, inputs[0][1])
    node = helper.make_node("Identity", [inputs[0][0]], ["output"])
    graph = helper.make_graph([node], "graph", values, [output])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if card is not None:
        proto.metadata_props.add(key="damo_torchrec", value=card if isinstance(card, str) else json.dumps(card))
    return proto.SerializeToString()


def card(**changes: Any) -> dict[str, Any]:
    output = {"key": "a", "table": "t", "dim": 4, "pooling": "SUM", "unseen": "zeros"}
    lookup = {"kind": "EmbeddingBagCollection", "path": "ebc", "input": "features", "graph_inputs": ["pooled"]}
    return {
        "format_version": 1,
        "kind": "dense",
        "seed": 0,
        "step": 0,
        "features": {"features": {"keys": ["a"], "weighted": False}},
        "lookups": [{**lookup, "weighted": False, "padding": None, "outputs": [{**output, **changes}]}],
    } | {key: value for key, value in changes.items() if key in ("format_version", "kind", "seed", "lookups")}


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [
        (b"no graph", damo.CorruptionError, "is no graph that ONNX Runtime can run"),
        (dense_graph(None), damo.CorruptionError, "has no metadata 'damo_torchrec'"),
        (dense_graph("{"), damo.CorruptionError, "does not say how to look up its inputs"),
        (dense_graph({"format_version": 1}), damo.CorruptionError, "does not say how to look up its inputs"),
        (dense_graph(card(format_version=2)), damo.CorruptionError, "format version 2; this version reads 1"),
        (dense_graph(card(kind="full")), damo.CorruptionError, "it is a full graph, expected a dense one"),
        (dense_graph(card(pooling="MAX")), damo.CorruptionError, "does not say how"),
        (dense_graph(card(), [("other", ["batch", 4])]), damo.CorruptionError, r"says that \['pooled'\] are inputs"),
        (dense_graph(card(seed=1)), damo.SchemaMismatchError, "the seed 1, expected 0"),
        (dense_graph(card(table="x")), damo.SchemaMismatchError, r"needs table 'x'; there are \['t'\]"),
        (dense_graph(card(dim=5)), damo.SchemaMismatchError, "table 't' with dim 5, but it has dim 4"),
        (dense_graph(card(key="b")), ValueError, r"looks up \['b'\], which features does not have: \['a'\]"),
    ],
)
def test_a_dense_part_that_does_not_go_with_the_rows_is_refused(
    store: Any, tmp_path: Path, graph: bytes, error: type[Exception], message: str
) -> None:
    tables = [EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=10, feature_names=["a"])]
    damo.EmbeddingBagCollection(tables, store=store, **SGD)
    path = store.session.checkpoint(tmp_path / "checkpoint", lambda _: {"dense.onnx": graph})
    with pytest.raises(error, match=message):
        predictor_of(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "store"]


# ------------------------------------------------------------------ tables, and the end


@pytest.mark.parametrize(
    "initializer",
    [
        init.Constant(0.5),
        init.Uniform(-0.25, 0.125),
        init.Normal(0.5, 2.0),
        init.TruncatedNormal(1.0, 2.0, -1.0, 4.0),
        init.XavierUniform(2.0),
    ],
)
@pytest.mark.parametrize("kind", ["SGD", "ADAGRAD", "FTRL", "LARS_SGD"])
def test_a_schema_says_how_to_open_a_table(initializer: Any, kind: str) -> None:
    optimizer = OptimizerSpec(kind, lr=0.1, initial_accumulator_value=0.25)
    definition = TableDefinition("t", 4, 100, optimizer, initializer, "initial", "float16")
    again = TableDefinition.of_schema("t", definition.schema(), "initial")
    assert again.schema() == definition.schema()
    assert again.unseen_in_eval == "initial"


def test_an_unknown_initializer_is_refused() -> None:
    schema = TableDefinition("t", 4, 1, OptimizerSpec("SGD", lr=0.1), init.Constant(0.0)).schema()
    schema.initializer["name"] = "Later"
    with pytest.raises(ValueError, match=r"Later.* is not known here"):
        TableDefinition.of_schema("t", schema)


def test_a_closed_predictor_says_so(pooled: Any) -> None:
    predictor = predictor_of(pooled[1])
    predictor.close()
    predictor.close()
    for call in (lambda: predictor.predict(inputs()), predictor.stats, lambda: predictor.watch(pooled[1])):
        with pytest.raises(damo.StoreClosedError, match="is closed"):
            call()


def test_closing_waits_for_requests(pooled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(pooled[1])
    begun, go_on = threading.Event(), threading.Event()
    run = predictor._lookups[0].run

    def slow(*arguments: Any) -> Any:
        begun.set()
        go_on.wait()
        return run(*arguments)

    monkeypatch.setattr(predictor._lookups[0], "run", slow)
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(predictor.predict, inputs())
        begun.wait()
        closed = pool.submit(predictor.close)
        assert not closed.done()
        go_on.set()
        assert answer.result()["output"].shape == (2, 27)
        closed.result()


def test_a_failed_export_leaves_nothing(store: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="args do not fit"):
        damo.serving.export(Pooled(store, weighted=False), (), tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_without_a_path_the_checkpoint_is_in_the_store(store: Any) -> None:
    path = damo.serving.export(Groups(store), torch.ones(2, 3, dtype=torch.int64))
    assert path.parent == store.path / "checkpoints"
    with predictor_of(path) as predictor:
        assert predictor.predict(groups_request(4))["output"].shape == (4, 1)
