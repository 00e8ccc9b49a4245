"""Requests in all their forms get the same answers; wrong ones are refused before anything runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrec import KeyedJaggedTensor

from served_models import exported, inputs, pooled_request, predictor_of, towers_request
from serving_cases import TwoTowers, feed, random_features


def test_every_form_of_a_request_gets_the_same_answer(pooled_predictor: Any) -> None:
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
    answers = [pooled_predictor.predict(form)["output"] for form in forms]
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])


def test_keys_may_come_in_any_order_with_others_among_them(pooled_predictor: Any) -> None:
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
    expected = pooled_predictor.predict({"features": features})["output"]
    np.testing.assert_array_equal(pooled_predictor.predict({"features": shuffled})["output"], expected)


def test_every_int64_is_an_id(pooled_predictor: Any) -> None:
    ids = [-(2**63), 2**63 - 1, 0, -1]
    lists = {"features.values": ids, "features.lengths": [[1]] * 4, "features.weights": [1.0] * 4}
    arrays = {**lists, "features.values": np.array([2**64 - 1], dtype=np.uint64)}
    assert pooled_predictor.predict(lists)["output"].shape == (1, 27)
    with pytest.raises(ValueError, match=r"features.values must fit int64, got 18446744073709551615"):
        pooled_predictor.predict(arrays)


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
    "weights that are not finite": (inputs(weights=[1.0] * 7 + [float("nan")]), ValueError, "weights must be finite"),
    "a KeyedJaggedTensor, and its part": (
        {"features": KJT, "features.values": [1]},
        ValueError,
        r"\['features.values'\] were given twice, once as the KeyedJaggedTensor 'features'",
    ),
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
    pooled_predictor: Any, request_: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pooled_predictor.predict(request_)
    assert pooled_predictor.stats().rows == 0
    assert pooled_predictor.predict(inputs())["output"].shape == (2, 27)


def test_batch_sizes_that_disagree_are_refused(store: Any, tmp_path: Path) -> None:
    with predictor_of(exported(TwoTowers(store), towers_request, tmp_path / "checkpoint")) as predictor:
        request = towers_request(3) | {"item": towers_request(4)["item"]}
        with pytest.raises(
            ValueError, match=r"item.lengths must have the shape \(2, batch\), got \(2, 4\): batch is 3"
        ):
            predictor.predict(request)


def test_more_ids_than_the_budget_allows_are_refused(pooled_predictor: Any) -> None:
    most = (64 << 20) // 8
    request = inputs(
        values=np.zeros(most + 1, dtype=np.int64), weights=np.zeros(most + 1), lengths=[[most + 1]] + [[0]] * 3
    )
    with pytest.raises(ValueError, match="more than the 8388608 that memory_budget allows"):
        pooled_predictor.predict(request)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1e300])
def test_weights_that_are_no_finite_float32_are_refused_as_by_the_model(pooled_predictor: Any, weight: float) -> None:
    with pytest.raises(ValueError, match=r"features.weights must be finite"):
        pooled_predictor.predict(inputs(weights=[weight, 0, 0, 0, 0, 0, 0, 0]))
