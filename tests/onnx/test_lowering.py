"""Graphs whose lookups are replaced: which nodes they have, and what those check."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType

import damo_torchrec as damo
from exported_models import REQUEST, Rearranged, check_parity, files_in
from serving_cases import SGD, Pooled, Sequences, SomeSequences, bags, feed, random_features, train


class Bags(nn.Module):
    """Collections with nothing behind them."""

    def __init__(self, *collections: damo.EmbeddingBagCollection) -> None:
        super().__init__()
        self.collections = nn.ModuleList(collections)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return torch.cat([collection(features).values() for collection in self.collections], dim=1)


@pytest.mark.parametrize("collections", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pooling", [PoolingType.SUM, PoolingType.MEAN])
def test_several_dims(
    store: damo.EmbeddingStore, tmp_path: Path, pooling: PoolingType, weighted: bool, collections: int
) -> None:
    model = Bags(
        *(
            damo.EmbeddingBagCollection(
                bags("abc", [8, 4, 8], f"t{number}", pooling), is_weighted=weighted, store=store, **SGD
            )
            for number in range(collections)
        )
    )
    check_parity(model, lambda b: {"features": random_features("abc", b, weighted=weighted, seed=b)}, tmp_path / "m")


@pytest.mark.parametrize(
    ("make", "keys"), [(lambda store: Pooled(store, False), "axbc"), (Sequences, "cd"), (SomeSequences, "cda")]
)
@pytest.mark.parametrize("rows", ["none", "left out"])
def test_tables_without_rows(store: damo.EmbeddingStore, tmp_path: Path, make: Any, keys: str, rows: str) -> None:
    model = make(store)
    request = random_features(keys, 5)
    if rows == "left out":
        train(model, (request,))
    damo.onnx.export(model, request, tmp_path / "m", min_count=1000)
    session = onnxruntime.InferenceSession(tmp_path / "m" / "model.onnx")
    session.run(None, feed(features=request))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("make", "keys"), [(Pooled, "abc"), (Pooled, "axbc"), (Rearranged, "aebdc")])
def test_jagged_tensors_are_checked_before_all_else(
    store: damo.EmbeddingStore, tmp_path: Path, make: Any, keys: str, weighted: bool
) -> None:
    model = make(store, weighted).eval()
    damo.onnx.export(model, random_features(keys, 2, weighted=weighted), tmp_path / "m")
    session = damo.onnx.session(tmp_path / "m", operators=False)
    request = feed(features=random_features(keys, 2, weighted=weighted))
    session.run(None, request)
    for where, length in itertools.product(np.ndindex(len(keys), 2), (-1, -3, 2**28, 2**32, 2**45, 2**62)):
        lengths = request["features.lengths"].copy()
        lengths[where] = length
        with pytest.raises(Exception, match="lengths are negative, beyond max_length, or not in sum"):
            session.run(None, request | {"features.lengths": lengths})
    for name, message in (("values", "lengths are negative"), ("weights", "not one weight for each value")):
        if (array := request.get(f"features.{name}")) is not None:
            with pytest.raises(Exception, match=message):
                session.run(None, request | {f"features.{name}": np.append(array, array[:3])})


@pytest.mark.parametrize(("make", "keys", "checked"), [(Pooled, "abc", False), (Rearranged, "aebdc", True)])
def test_lookups_check_what_they_alone_read(
    store: damo.EmbeddingStore, tmp_path: Path, make: Any, keys: str, checked: bool
) -> None:
    damo.onnx.export(make(store, weighted=False), random_features(keys, 2), tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert ("CheckJagged" in {node.op_type for node in proto.graph.node}) == checked


def test_only_standard_operators(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    damo.onnx.export(Pooled(store, True), random_features("abc", 1, weighted=True), tmp_path / "m.onnx")
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    own = {function.name for function in proto.functions}
    assert {function.domain for function in proto.functions} == {"damo_torchrec"}
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in nodes:
            assert node.domain == "" or (node.domain == "damo_torchrec" and node.op_type in own)
    assert {(o.domain, o.version) for o in proto.opset_import} >= {("", 18)}


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
