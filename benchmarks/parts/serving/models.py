"""What is served: a DLRM over a store, as this package exports it, and what others would have in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.dlrm import DLRM

import damo_torchrec as damo
from damo_torchrec.onnx.trace_model import quiet

DENSE_FEATURES = 13
HIDDEN_UNITS = [512, 256]
# Ids are this times their row's number: they need a lookup, and a plain table's row number comes of them.
STRIDE = 1_000_003
_SET_ROWS = 100_000

Call = Callable[[], object]


class Served:
    """Tables of `rows` rows each, and sessions that look them up.

    Args:
        directory: for the store and for what is exported.
        tables: how many.
        rows: of each.
        dim: weights in a row.
        threads: that a call may use.
    """

    def __init__(self, directory: Path, tables: int, rows: int, dim: int, threads: int) -> None:
        self._directory, self._rows, self._dim, self._threads = directory, rows, dim, threads
        self._keys = [f"f{i}" for i in range(tables)]
        configs = [
            EmbeddingBagConfig(name=f"t_{key}", embedding_dim=dim, num_embeddings=rows, feature_names=[key])
            for key in self._keys
        ]
        self._store = damo.EmbeddingStore(directory / "store", memory_budget="2GiB")
        torch.manual_seed(0)
        self._ebc = damo.EmbeddingBagCollection(configs, store=self._store)
        self._plain = EmbeddingBagCollection(tables=configs)
        self._weights = {}
        for config in configs:
            weight = self._plain.embedding_bags[config.name].weight.detach()
            self._weights[config.name] = weight.numpy()
            for begin in range(0, rows, _SET_ROWS):
                numbers = torch.arange(begin, min(begin + _SET_ROWS, rows))
                self._store.table(config.name).set(numbers * STRIDE, weight[numbers])

    def close(self) -> None:
        self._store.close()

    def ids(self, batch: int, ids_per_bag: int) -> int:
        """Of all tables in a request."""
        return len(self._keys) * batch * ids_per_bag

    def request(self, batch: int, ids_per_bag: int, seed: int) -> dict[str, np.ndarray]:
        """Row numbers of every table, as ids, and dense features."""
        rng = np.random.default_rng(seed)
        numbers = rng.integers(0, self._rows, (len(self._keys), batch * ids_per_bag))
        return {
            "numbers": numbers,
            "values": numbers.reshape(-1) * STRIDE,
            "lengths": np.full((len(self._keys), batch), ids_per_bag),
            "dense": rng.standard_normal((batch, DENSE_FEATURES)).astype(np.float32),
        }

    # ------------------------------------------------------------------ lookups alone

    def lookup(self, operators: bool) -> Callable[[dict[str, np.ndarray]], Call]:
        """This package's, by standard operators or by its own kernels."""
        path = self._directory / "lookup"
        if not path.exists():
            damo.onnx.export(_Values(self._ebc), self._features(1), path)
        session = damo.onnx.session(path, num_threads=self._threads, operators=operators)
        return lambda r: lambda: session.run(None, {"features.values": r["values"], "features.lengths": r["lengths"]})

    def gather(self) -> Callable[[dict[str, np.ndarray]], Call]:
        """Rows by number, all tables one behind the other: what no lookup is faster than."""
        table = np.concatenate(list(self._weights.values()))
        nodes = [helper.make_node("Gather", ["table", "numbers"], ["rows"])]
        session = self._session("gather", nodes, {"numbers": ["n"]}, {"table": table})
        offsets = np.arange(len(self._keys))[:, None] * self._rows

        def prepare(r: dict[str, np.ndarray]) -> Call:
            numbers = (r["numbers"] + offsets).reshape(-1)
            return lambda: session.run(None, {"numbers": numbers})

        return prepare

    def label_encoder(self) -> Callable[[dict[str, np.ndarray]], Call]:
        """A LabelEncoder from ids to row numbers and a Gather for each table; no pooling."""
        nodes = self._label_encoders()
        nodes += [helper.make_node("Gather", [f"t_{key}", f"numbers_{key}"], [f"rows_{key}"]) for key in self._keys]
        nodes.append(helper.make_node("Concat", [f"rows_{key}" for key in self._keys], ["rows"], axis=0))
        session = self._session("label_encoder", nodes, {"ids": ["n"]}, self._weights)
        return lambda r: lambda: session.run(None, {"ids": r["values"]})

    def _label_encoders(self) -> list[onnx.NodeProto]:
        """Nodes from `ids`, of all tables, to the row numbers of each."""
        ids = np.arange(self._rows, dtype=np.int64) * STRIDE
        numbers = numpy_helper.from_array(np.arange(self._rows, dtype=np.int64))
        nodes = [helper.make_node("Split", ["ids"], [f"ids_{key}" for key in self._keys], num_outputs=len(self._keys))]
        nodes += [
            helper.make_node(
                "LabelEncoder",
                [f"ids_{key}"],
                [f"numbers_{key}"],
                domain="ai.onnx.ml",
                keys_tensor=numpy_helper.from_array(ids),
                values_tensor=numbers,
                default_tensor=numpy_helper.from_array(np.array([0], dtype=np.int64)),
            )
            for key in self._keys
        ]
        return nodes

    def _session(
        self,
        name: str,
        nodes: Sequence[onnx.NodeProto],
        inputs: dict[str, list[str]],
        arrays: dict[str, np.ndarray],
        output: tuple[str, int] = ("rows", TensorProto.FLOAT),
    ) -> onnxruntime.InferenceSession:
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info(i, TensorProto.INT64, shape) for i, shape in inputs.items()],
            [helper.make_tensor_value_info(*output, None)],
            [numpy_helper.from_array(array, key) for key, array in arrays.items()],
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 4)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        file = self._directory / f"{name}.onnx"
        onnx.save(proto, file, save_as_external_data=True, location=f"{name}.data", size_threshold=1 << 20)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    # ------------------------------------------------------------------ whole models

    def model(self, operators: bool) -> Callable[[dict[str, np.ndarray]], Call]:
        """A DLRM that this package exported."""
        path = self._directory / "model"
        if not path.exists():
            damo.onnx.export(self._dlrm(self._ebc), (torch.zeros(1, DENSE_FEATURES), self._features(1)), path)
        session = damo.onnx.session(path, num_threads=self._threads, operators=operators)
        return lambda r: (
            lambda: session.run(
                None,
                {
                    "dense_features": r["dense"],
                    "sparse_features.values": r["values"],
                    "sparse_features.lengths": r["lengths"],
                },
            )
        )

    def eager(self) -> Callable[[dict[str, np.ndarray]], Call]:
        """The same DLRM in torch, over TorchRec's tables by row number."""
        model = self._dlrm(self._plain).eval()

        def prepare(r: dict[str, np.ndarray]) -> Call:
            features = KeyedJaggedTensor(
                keys=self._keys,
                values=torch.from_numpy(r["numbers"].reshape(-1)),
                lengths=torch.from_numpy(r["lengths"].reshape(-1)),
            )
            dense = torch.from_numpy(r["dense"])

            @torch.inference_mode()
            def call() -> object:
                return model(dense, KeyedJaggedTensor(self._keys, features.values(), lengths=features.lengths()))

            return call

        return prepare

    def plain_export(self) -> Callable[[dict[str, np.ndarray]], Call]:
        """What torch.onnx makes of that: it takes row numbers."""
        run = self._run_plain
        return lambda r: lambda: run(r["dense"], r["numbers"].reshape(-1), r["lengths"])

    def label_encoded_export(self) -> Callable[[dict[str, np.ndarray]], Call]:
        """The same, after a graph with a LabelEncoder from ids to row numbers for each table."""
        nodes = self._label_encoders()
        nodes.append(helper.make_node("Concat", [f"numbers_{key}" for key in self._keys], ["numbers"], axis=0))
        session = self._session("numbers", nodes, {"ids": ["n"]}, {}, ("numbers", TensorProto.INT64))
        run = self._run_plain
        return lambda r: lambda: run(r["dense"], session.run(None, {"ids": r["values"]})[0], r["lengths"])

    @cached_property
    def _run_plain(self) -> Callable[..., object]:
        """Runs what torch.onnx makes of the model, of dense features, row numbers and lengths."""
        wrapper = _Flat(self._dlrm(self._plain).eval(), self._keys)
        file = self._directory / "plain.onnx"
        r = self.request(3, 2, 0)
        inputs = (torch.from_numpy(r["dense"]), *(torch.from_numpy(r[n]) for n in ("values", "lengths")))
        dynamic = torch.export.Dim.DYNAMIC
        with quiet():
            torch.onnx.export(
                wrapper,
                inputs,
                str(file),
                dynamo=True,
                verbose=False,
                external_data=True,
                dynamic_shapes=({0: dynamic}, {0: dynamic}, {1: dynamic}),
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))

    def _dlrm(self, ebc: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return DLRM(ebc, DENSE_FEATURES, [*HIDDEN_UNITS, self._dim], [*HIDDEN_UNITS, 1])

    def _features(self, batch: int) -> KeyedJaggedTensor:
        ones = torch.ones(len(self._keys) * batch, dtype=torch.int64)
        return KeyedJaggedTensor(keys=self._keys, values=ones, lengths=ones)


class Trained:
    """A DLRM over a store, as a checkpoint to serve, and what changes in it afterwards.

    Args:
        directory: for all of that.
        tables: how many.
        rows: of each.
        dim: weights in a row.
    """

    _CHANGED = 1024  # rows of each table, at most, from one delta to the next

    def __init__(self, directory: Path, tables: int, rows: int, dim: int) -> None:
        self._rows = rows
        self._keys = [f"f{i}" for i in range(tables)]
        configs = [
            EmbeddingBagConfig(name=f"t_{key}", embedding_dim=dim, num_embeddings=rows, feature_names=[key])
            for key in self._keys
        ]
        self._store = damo.EmbeddingStore(
            directory / "store", memory_budget="1GiB", options=damo.StoreOptions(num_threads=1)
        )
        ebc = damo.EmbeddingBagCollection(configs, store=self._store)
        self._model = DLRM(ebc, DENSE_FEATURES, [*HIDDEN_UNITS, dim], [*HIDDEN_UNITS, 1])
        for begin in range(0, rows, _SET_ROWS):
            numbers = torch.arange(begin, min(begin + _SET_ROWS, rows))
            for key in self._keys:
                self._store.table(f"t_{key}").set(numbers, torch.rand(len(numbers), dim))
        args = self._batch(2)
        self.served = damo.serving.export(self._model, args, directory / "served")
        self.deltas = directory / "deltas"
        self._publisher = damo.serving.DeltaPublisher(
            self._store, self.deltas, since=self.served, model=self._model, args=args, every_steps=1, keep=4
        )

    def __enter__(self) -> Trained:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def publish(self) -> Path | None:
        """Trains one step and publishes what it changed."""
        self._model.train()
        self._model(*self._batch(self._CHANGED)).sum().backward()
        return self._publisher.publish()

    def json_request(self, batch: int, seed: int) -> dict[str, Any]:
        """What the server takes: one id of each table."""
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, self._rows, (len(self._keys), batch, 1)).tolist()
        dense = rng.standard_normal((batch, DENSE_FEATURES)).round(3).tolist()
        return {"dense_features": dense, "sparse_features": dict(zip(self._keys, ids, strict=True))}

    def _batch(self, samples: int) -> tuple[torch.Tensor, KeyedJaggedTensor]:
        n = len(self._keys) * samples
        ids = torch.randint(0, self._rows, (n,))
        features = KeyedJaggedTensor(self._keys, ids, lengths=torch.ones(n, dtype=torch.int64))
        return torch.randn(samples, DENSE_FEATURES), features


class _Values(nn.Module):
    def __init__(self, ebc: nn.Module) -> None:
        super().__init__()
        self.ebc = ebc

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.ebc(features).values()


class _Flat(nn.Module):
    def __init__(self, model: nn.Module, keys: list[str]) -> None:
        super().__init__()
        self._model, self._keys = model, keys

    def forward(self, dense: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        features = KeyedJaggedTensor(self._keys, values, lengths=lengths.reshape(-1), stride=lengths.shape[1])
        return self._model(dense, features)


def large_export(directory: Path, rows: int, dim: int, threads: int) -> Path:
    """Exports one table of so many rows; its file is returned, and the store is gone."""
    config = EmbeddingBagConfig(name="t", embedding_dim=dim, num_embeddings=rows, feature_names=["f"])
    options = damo.StoreOptions(num_threads=threads)
    with damo.EmbeddingStore(directory / "large", memory_budget="1GiB", options=options) as store:
        ebc = damo.EmbeddingBagCollection([config], store=store)
        weights = torch.rand(_SET_ROWS, dim)
        for begin in range(0, rows, _SET_ROWS):
            numbers = torch.arange(begin, min(begin + _SET_ROWS, rows))
            store.table("t").set(numbers * STRIDE, weights[: len(numbers)])
        features = KeyedJaggedTensor(keys=["f"], values=torch.ones(1, dtype=torch.int64), lengths=torch.ones(1).long())
        return damo.onnx.export(_Values(ebc), features, directory / "large.onnx")
