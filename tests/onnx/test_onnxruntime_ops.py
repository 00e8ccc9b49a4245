"""Kernels for ONNX Runtime: they compute what a graph's functions of standard operators and the model do."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, InvalidGraph, RuntimeException
from torch import nn
from torchrec import EmbeddingConfig, KeyedJaggedTensor, PoolingType

import damo_torchrec as damo
from damo_torchrec.onnx_kernels import operators_file
from serving_cases import SGD, Groups, Pooled, Sequences, TwoTowers, bags, feed, random_features, train

BATCHES = (0, 1, 33, 300, 2000)
DTYPES = ("float32", "float16", "int8")


def ran(session: onnxruntime.InferenceSession) -> set[str]:
    """The kernels of ours that a session ran since its beginning, by its profile."""
    return {
        event["args"]["op_name"]
        for event in json.loads(Path(session.end_profiling()).read_text())
        if "op_name" in event.get("args", {}) and event["args"]["op_name"].startswith(("Embedding", "Weighted"))
    }


def profiled(path: Path, directory: Path, operators: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(directory / "profile")
    return damo.onnx.session(path, operators=operators, sess_options=options)


def check(model: nn.Module, requests: list[dict[str, Any]], tmp_path: Path, kernels: set[str], **options: Any) -> None:
    train(model, *(tuple(request.values()) for request in requests[-3:]))
    damo.onnx.export(model, tuple(requests[0].values()), tmp_path / "model", **options)
    standard = damo.onnx.session(tmp_path / "model", operators=False)
    one_thread = damo.onnx.session(tmp_path / "model", num_threads=1, operators=True)
    session = profiled(tmp_path / "model", tmp_path)
    tolerance = {"float32": 1e-5, "float16": 1e-3, "int8": 2e-2}[options.get("dtype", "float32")]
    for request in requests:
        answers = session.run(None, feed(**request))
        with torch.no_grad():
            expected = model(*request.values())
        expected = list(expected.values()) if isinstance(expected, dict) else [expected]
        by_body = standard.run(None, feed(**request))
        by_one = one_thread.run(None, feed(**request))
        for answer, wanted, other, same in zip(answers, expected, by_body, by_one, strict=True):
            scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
            np.testing.assert_allclose(answer, other, atol=1e-5 * scale)
            np.testing.assert_allclose(answer, wanted.numpy(), atol=tolerance * scale)
            np.testing.assert_array_equal(answer, same)
    assert ran(session) == kernels


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pooled_bags(store: damo.EmbeddingStore, tmp_path: Path, weighted: bool, dtype: str) -> None:
    suffix = {"float32": "", "float16": "Float16", "int8": "Int8"}[dtype]
    prefix = "Weighted" if weighted else ""

    requests = [
        {"features": random_features("axbc", batch, longest=longest, weighted=weighted, seed=batch)}
        for longest, batch in ((5, 2), *((5, batch) for batch in BATCHES), (1, 2000), (150, 100))
    ]
    kernels = {f"{prefix}EmbeddingBagMeans{suffix}", f"{prefix}EmbeddingBags{suffix}"}
    check(Pooled(store, weighted), requests, tmp_path, kernels, dtype=dtype)


class WithMeans(nn.Module):
    """Means, sums and rows of ids, where ids without a row read the mean of some tables."""

    def __init__(self, store: damo.EmbeddingStore, weighted: bool) -> None:
        super().__init__()
        mean = damo.TableOptions(unseen_in_eval="mean", initializer=damo.init.Constant(3.0))
        tables = [*bags("ab", [8, 8], pooling=PoolingType.MEAN), *bags("cd", [8, 3])]
        options = {"t_a": mean, "t_d": mean}
        self.ebc = damo.EmbeddingBagCollection(tables, is_weighted=weighted, store=store, table_options=options, **SGD)
        config = EmbeddingConfig(name="rows", embedding_dim=5, num_embeddings=50, feature_names=["d", "a"])
        self.ec = damo.EmbeddingCollection([config], store=store, table_options={"rows": mean}, **SGD)

    def forward(self, features: KeyedJaggedTensor) -> dict[str, torch.Tensor]:
        return {"pooled": self.ebc(features).values(), "rows": self.ec(features)["a"].values()}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_unseen_ids_read_mean_rows(store: damo.EmbeddingStore, tmp_path: Path, weighted: bool, dtype: str) -> None:
    suffix = {"float32": "", "float16": "Float16", "int8": "Int8"}[dtype]
    prefix = "Weighted" if weighted else ""
    requests = [
        {"features": random_features("abcd", batch, longest=longest, ids=ids, weighted=weighted, seed=batch)}
        for longest, batch, ids in ((5, 33, 900), (1, 300, 900), (60, 50, 900), *[(2, batch, 9) for batch in (1, 5, 9)])
    ]
    kernels = {f"{prefix}EmbeddingBagMeans{suffix}MeanRows", f"{prefix}EmbeddingBags{suffix}MeanRows"}
    kernels.add(f"EmbeddingRows{suffix}MeanRows")
    check(WithMeans(store, weighted), requests, tmp_path, kernels, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_ids(store: damo.EmbeddingStore, tmp_path: Path, dtype: str) -> None:
    requests = [{"features": random_features("cd", batch, seed=batch)} for batch in BATCHES[1:]]
    suffix = {"float32": "", "float16": "Float16", "int8": "Int8"}[dtype]
    check(Sequences(store), requests, tmp_path, {f"EmbeddingRows{suffix}"}, dtype=dtype)


def test_two_towers(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    requests = [
        {"query": random_features("u", batch, seed=1), "item": random_features("i", batch, seed=2)}
        for batch in BATCHES[1:]
    ]
    check(TwoTowers(store), requests, tmp_path, {"EmbeddingBags"})


def test_damo_embedding(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    requests = [{"ids": torch.from_numpy(rng.integers(-30, 30, (batch, 3)))} for batch in BATCHES[1:]]
    check(Groups(store), requests, tmp_path, {"EmbeddingRows"})


def test_an_empty_store(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = Pooled(store, weighted=False).eval()
    damo.onnx.export(model, random_features("abc", 1), tmp_path / "model")
    session = damo.onnx.session(tmp_path / "model", operators=True)
    (answer,) = session.run(None, feed(features=random_features("abc", 5)))
    assert answer.shape == (5, 27)
    assert not answer.any()


# Weighted bags of the ids 7, 8 and 7, in a table of one row, that of id 7.
REQUEST = {"values": np.array([7, 8, 7]), "lengths": np.array([[2, 1]]), "weights": np.ones(3, np.float32)}
ARRAYS = {
    "tables": np.array([0]),
    "first_bucket": np.array([0]),
    "bucket_mask": np.array([0]),
    "middle_row": np.array([2]),
    "row_scale": np.array([2.0**-64]),
    "buckets": np.array([0]),
    "keys": np.array([0, 0, 7]),
    "rows_0": np.array([[0, 0], [1, 2], [3, 4]], np.float32),
}


def run_lookup(
    lengths: list[list[int]], weights: list[float], constant: bool = True, **changed: np.ndarray
) -> np.ndarray:
    """Bags of `REQUEST`'s values in `ARRAYS`, which are constants or inputs."""
    request = REQUEST | {"lengths": np.array(lengths), "weights": np.array(weights, np.float32)}
    arrays = ARRAYS | changed
    return run_node(request, arrays) if constant else run_node(request | arrays, {})


def run_node(inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray]) -> np.ndarray:
    """A graph of one node, which has these arrays for its inputs, in order."""
    node = onnx.helper.make_node("WeightedEmbeddingBags", [*inputs, *constants], ["pooled"], domain="damo_torchrec")
    graph = onnx.helper.make_graph(
        [node],
        "lookup",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
            )
            for name, array in inputs.items()
        ],
        [onnx.helper.make_tensor_value_info("pooled", onnx.TensorProto.FLOAT, ["b", "d"])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("damo_torchrec", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(operators_file()))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


@pytest.mark.parametrize(
    ("lengths", "weights", "message"),
    [
        ([[1, 1]], [1, 1, 1], "lengths must sum to the number of values, 3, got 2"),
        ([[1, 3, 1]], [1, 1, 1], "lengths must sum to the number of values, 3, got at least 4"),
        ([[2, -1, 2]], [1, 1, 1], "lengths must be at least 0, got -1 for bag 1 of key 0"),
        ([[2**62] * 5], [1, 1, 1], "lengths must sum to the number of values, 3, got at least"),
        ([[2, 1]], [1, 1], r"weights must have the shape \(3\), got \(2\)"),
        ([[2], [1]], [1, 1, 1], r"lengths must have a row for each of 1 keys, got the shape \(2, 1\)"),
    ],
)
@pytest.mark.parametrize("constant", [True, False])
def test_wrong_requests_are_refused(
    lengths: list[list[int]], weights: list[float], message: str, constant: bool
) -> None:
    np.testing.assert_array_equal(run_lookup([[2, 1]], [10, 2, 3], constant), [[30, 40], [9, 12]])
    with pytest.raises(InvalidArgument, match=f"WeightedEmbeddingBags: {message}"):
        run_lookup(lengths, weights, constant)


WRONG_ARRAYS: list[dict[str, Any]] = [
    {"tables": [1]},
    {"tables": [-1]},
    {"first_bucket": [1]},
    {"first_bucket": [-1]},
    {"bucket_mask": [1]},
    {"bucket_mask": [-1]},
    {"bucket_mask": [2**63 - 1]},
    {"middle_row": [3]},
    {"middle_row": [-1]},
    {"middle_row": np.zeros(0, np.int64), "row_scale": np.zeros(0)},
    {"row_scale": [3 * 2.0**-64]},
    {"row_scale": [0.0]},
    {"row_scale": [-(2.0**-64)]},
    {"row_scale": [np.nan]},
    {"row_scale": [np.inf]},
    {"buckets": [1]},
    {"buckets": [-1]},
]


@pytest.mark.parametrize("changed", WRONG_ARRAYS)
@pytest.mark.parametrize("constant", [True, False])
def test_arrays_that_do_not_fit_together_are_refused(changed: dict[str, Any], constant: bool) -> None:
    # Constants as the session is made, but for what buckets hold.
    error = RuntimeException if constant and "buckets" not in changed else InvalidArgument
    arrays = {name: np.array(array) for name, array in changed.items()}
    with pytest.raises(error, match="WeightedEmbeddingBags: the arrays of the row group do not fit together"):
        run_lookup([[2, 1]], [1, 1, 1], constant, **arrays)


@pytest.mark.parametrize(("name", "array"), [("keys", [0, 0]), ("row_scale", [2.0**-64] * 2), ("bucket_mask", [[0]])])
@pytest.mark.parametrize("constant", [True, False])
def test_arrays_of_wrong_shapes_are_refused(name: str, array: list[Any], constant: bool) -> None:
    with pytest.raises(RuntimeException if constant else InvalidArgument, match=f"{name} must have the shape"):
        run_lookup([[2, 1]], [1, 1, 1], constant, **{name: np.array(array)})


def other_types(array: np.ndarray) -> list[np.ndarray]:
    types = (np.float16, np.float32, np.float64, np.bool_, np.int32, np.int64, np.uint8, np.str_)
    return [array.astype(dtype) for dtype in types if array.dtype != dtype]


@pytest.mark.parametrize("name", [*REQUEST, *ARRAYS])
@pytest.mark.parametrize("constant", [True, False])
def test_graphs_with_inputs_missing_or_of_other_types_are_refused(name: str, constant: bool) -> None:
    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        constants = {key: array for key, array in inputs.items() if constant and key in ARRAYS}
        return run_node({key: array for key, array in inputs.items() if key not in constants}, constants)

    with pytest.raises(InvalidGraph):
        run({key: array for key, array in (REQUEST | ARRAYS).items() if key != name})
    for array in other_types((REQUEST | ARRAYS)[name]):
        with pytest.raises(InvalidGraph, match="Type Error"):
            run(REQUEST | ARRAYS | {name: array})


@pytest.mark.parametrize("name", [*REQUEST, *ARRAYS])
@pytest.mark.parametrize("constant", [True, False])
def test_inputs_of_other_ranks_or_without_elements_are_refused(name: str, constant: bool) -> None:
    array = (REQUEST | ARRAYS)[name]
    for changed in (array.reshape(-1)[0], array[None], array[:0]):
        inputs = REQUEST | ARRAYS | {name: np.asarray(changed)}
        arrays = {key: inputs.pop(key) for key in ARRAYS} if constant else {}
        with pytest.raises((InvalidArgument, RuntimeException), match=r"EmbeddingBags: .+ (must have|do not fit)"):
            run_node(inputs, arrays)


def test_rows_without_weights_and_bags_without_keys() -> None:
    assert run_lookup([[2, 1]], [1, 1, 1], rows_0=np.zeros((3, 0), np.float32)).shape == (2, 0)
    nothing = {"values": np.zeros(0, np.int64), "lengths": np.zeros((0, 2**40), np.int64)}
    request = REQUEST | nothing | {"weights": np.zeros(0, np.float32)}
    assert run_node(request, ARRAYS | {"tables": np.zeros(0, np.int64)}).shape == (2**40, 0)
