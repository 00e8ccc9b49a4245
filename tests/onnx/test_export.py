"""What an exported graph computes: what the model does in eval mode."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.regroup import KTRegroupAsDict

import damo_torchrec as damo
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
    train,
)

BATCHES = (0, 1, 2, 33, 300)
Requests = Callable[[int], dict[str, Any]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[damo.EmbeddingStore]:
    with damo.EmbeddingStore(tmp_path / "store") as opened:
        yield opened


def worst_error(model: nn.Module, requests: Requests, session: onnxruntime.InferenceSession, batches: Any) -> float:
    errors = [0.0]
    for batch in batches:
        request = requests(batch)
        with torch.no_grad():
            expected = model(*request.values())
        expected = list(expected.values()) if isinstance(expected, dict) else [expected]
        answers = session.run(None, feed(**request))
        for wanted, got in zip(expected, answers, strict=True):
            assert got.shape == tuple(wanted.shape)
            assert got.dtype == np.float32
            scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
            errors.append(float(np.abs(got - wanted.numpy()).max(initial=0)) / scale)
    return max(errors)


def check_parity(
    model: nn.Module, requests: Requests, path: Path, tolerance: float = 1e-5, batches: Any = BATCHES, **options: Any
) -> None:
    train(model, *(tuple(requests(16).values()) for _ in range(3)))
    damo.onnx.export(model, tuple(requests(1).values()), path, **options)
    for threads in (1, 8):
        session = damo.onnx.session(path, num_threads=threads, operators=False)
        assert worst_error(model, requests, session, batches) < tolerance


def dlrm_requests(keys: str = "abc") -> Requests:
    def requests(batch: int) -> dict[str, Any]:
        dense = torch.from_numpy(np.random.default_rng(batch).standard_normal((batch, 5), dtype=np.float32))
        return {"dense_features": dense, "sparse_features": random_features(keys, batch, seed=batch)}

    return requests


def dlrm(store: damo.EmbeddingStore, kind: type[nn.Module] = DLRM, **options: Any) -> nn.Module:
    ebc = damo.EmbeddingBagCollection(bags("abc", [8] * 3), store=store, **SGD)
    return kind(ebc, 5, [8, 8], [8, 1], **options)


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


@pytest.mark.parametrize("weighted", [False, True])
def test_bags_of_very_different_lengths(store: damo.EmbeddingStore, tmp_path: Path, weighted: bool) -> None:
    def requests(batch: int) -> dict[str, Any]:
        rng = np.random.default_rng(batch)
        lengths = np.where(rng.random(4 * batch) < 0.05, rng.integers(0, 400, 4 * batch), 1)
        n = int(lengths.sum())
        weights = torch.from_numpy(rng.random(n, dtype=np.float32) / 100)
        values = torch.from_numpy(rng.integers(-60, 60, n))
        features = KeyedJaggedTensor(
            keys=list("axbc"), values=values, lengths=torch.from_numpy(lengths), weights=weights, stride=batch
        )
        return {"features": features}

    check_parity(Pooled(store, weighted), requests, tmp_path / "model", batches=(0, 1, 50, 500))


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


def test_sequences(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    check_parity(
        Sequences(store), lambda b: {"features": random_features("cd", b, seed=b)}, tmp_path / "m", batches=BATCHES[1:]
    )


class Rearranged(nn.Module):
    """Keys that are permuted and split before they are looked up, and columns regrouped afterwards."""

    def __init__(self, store: damo.EmbeddingStore, weighted: bool) -> None:
        super().__init__()
        options = {"is_weighted": weighted, "store": store, **SGD}
        self.first = damo.EmbeddingBagCollection(bags("abc", [8, 4, 8], "first"), **options)
        self.second = damo.EmbeddingBagCollection(bags("de", [4, 8], "second"), **options)

    def forward(self, features: KeyedJaggedTensor) -> dict[str, torch.Tensor]:
        first, second = features.permute([4, 0, 2, 1, 3]).split([3, 2])
        pooled = [self.first(first), self.second(second)]
        return dict(zip("xyz", KeyedTensor.regroup(pooled, [["e", "a"], ["c"], ["d", "b"]]), strict=True))


@pytest.mark.parametrize("weighted", [False, True])
def test_jagged_tensors_that_are_rearranged(store: damo.EmbeddingStore, tmp_path: Path, weighted: bool) -> None:
    def requests(batch: int) -> dict[str, Any]:
        return {"features": random_features("aebdc", batch, weighted=weighted, seed=batch)}

    check_parity(Rearranged(store, weighted), requests, tmp_path / "m", batches=BATCHES[1:])


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


class Regrouped(nn.Module):
    """Columns that TorchRec's module regroups, of bags that it weighs by position."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.weigh = PositionWeightedModuleCollection({"a": 8, "b": 8, "c": 8})
        self.first = damo.EmbeddingBagCollection(bags("abc", [8, 4, 8], "first"), is_weighted=True, store=store, **SGD)
        self.second = damo.EmbeddingBagCollection(bags("de", [4, 8], "second"), store=store, **SGD)
        self.regroup = KTRegroupAsDict([["e", "a"], ["c"], ["d", "b"]], ["x", "y", "z"])

    def forward(self, features: KeyedJaggedTensor, others: KeyedJaggedTensor) -> dict[str, torch.Tensor]:
        return self.regroup([self.first(self.weigh(features)), self.second(others)])


def test_torchrecs_modules_around_a_collection(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    def requests(batch: int) -> dict[str, Any]:
        return {"features": random_features("abc", batch, seed=batch), "others": random_features("de", batch, seed=1)}

    model = Regrouped(store)
    for weight in model.weigh.parameters():
        nn.init.uniform_(weight)
    check_parity(model, requests, tmp_path / "m", batches=BATCHES[1:])


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


EXTREMES = [0, -1, 1, 2**63 - 1, -(2**63), 2**32, -(2**32), 2**53 + 1, 12345678901234567]


def test_every_int64_is_an_id(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = Pooled(store, weighted=False)
    table = store.table("thirdFalse")
    table.set(EXTREMES, torch.arange(8.0 * len(EXTREMES)).view(-1, 8))
    model.eval()
    damo.onnx.export(model, random_features("abc", 1), tmp_path / "model")
    session = damo.onnx.session(tmp_path / "model", operators=False)
    near = [i for extreme in EXTREMES for i in (extreme - 1, extreme + 1) if -(2**63) <= i < 2**63]
    ids = torch.tensor(EXTREMES + near)
    lengths = torch.cat([torch.ones(len(ids), dtype=torch.int64), torch.zeros(2 * len(ids), dtype=torch.int64)])
    features = KeyedJaggedTensor(keys=list("abc"), values=ids, lengths=lengths)
    (answer,) = session.run(None, feed(features=features))
    np.testing.assert_array_equal(answer, model(features).detach().numpy())
    np.testing.assert_array_equal(answer[: len(EXTREMES), -8:], table.get(EXTREMES).numpy())
    unseen = ~np.isin(ids.numpy(), EXTREMES)
    assert not answer[unseen].any()


def test_unseen_ids_read_their_initial_value_exactly(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    options = {
        "t_a": damo.TableOptions(unseen_in_eval="initial"),
        "t_b": damo.TableOptions(unseen_in_eval="initial", initializer=damo.init.Constant(0.25)),
        "t_c": damo.TableOptions(),
        "t_d": damo.TableOptions(unseen_in_eval="initial"),
    }
    model = nn.Sequential(
        damo.EmbeddingBagCollection(bags("abcd", [6, 6, 6, 6]), store=store, table_options=options, **SGD)
    )

    class Values(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
            return self.model(features).values()

    values = Values()
    train(values, (random_features("abcd", 8),))
    store.table("t_d").delete(store.table("t_d").to_torch()[0])  # nothing is in it
    damo.onnx.export(values, random_features("abcd", 1), tmp_path / "model")
    session = damo.onnx.session(tmp_path / "model", operators=False)
    ids = np.array([*EXTREMES, *range(-100, 100)])
    features = KeyedJaggedTensor(
        keys=list("abcd"),
        values=torch.from_numpy(np.tile(ids, 4)),
        lengths=torch.ones(4 * len(ids), dtype=torch.int64),
    )
    (answer,) = session.run(None, feed(features=features))
    np.testing.assert_array_equal(answer, values(features).detach().numpy())
    assert (answer[:, :6] != 0).all()
    assert (answer[:, 18:] != 0).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_results_do_not_depend_on_threads(store: damo.EmbeddingStore, tmp_path: Path, weighted: bool) -> None:
    model = Pooled(store, weighted=weighted)
    # Few bags, too: fewer than threads.
    sizes = [(2000, 1), (2000, 5), (2000, 60), *itertools.product((1, 2, 3, 8), (6, 9, 61, 300))]
    requests = [random_features("abc", batch, longest=longest, weighted=weighted, seed=3) for batch, longest in sizes]
    train(model, (requests[0],))
    damo.onnx.export(model, requests[0], tmp_path / "model")
    sessions = [damo.onnx.session(tmp_path / "model", num_threads=n, operators=False) for n in (1, 2, 3, 8, 16)]
    for request in requests:
        first, *others = [session.run(None, feed(features=request))[0] for session in sessions]
        for other in others:
            np.testing.assert_array_equal(first, other)


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


def test_an_empty_store(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = Pooled(store, weighted=False).eval()
    damo.onnx.export(model, random_features("abc", 1), tmp_path / "model")
    session = damo.onnx.session(tmp_path / "model", operators=False)
    (answer,) = session.run(None, feed(features=random_features("abc", 5)))
    assert answer.shape == (5, 27)
    assert not answer.any()


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
