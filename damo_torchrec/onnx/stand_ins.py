"""What a copy of a model has in place of its collections: modules that torch.onnx traces as one node each.

What a stand-in was asked for in the export is a `LookupCall`; the node carries its number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from damo_torchrec.graph_check import DOMAIN
from damo_torchrec.modules.collection import Collection
from damo_torchrec.modules.lookup_plan import LookupKind, LookupPlan
from damo_torchrec.onnx.arguments import Arguments
from damo_torchrec.onnx.vocabulary import VERSION

NODE = "Lookup"
NUMBER = "number"


@dataclass(frozen=True)
class LookupCall:
    """A call of a collection in a graph.

    Args:
        plan: what the collection looks up.
        path: where it is in the model.
        source: the name of the argument that it is given, or None if the model made it out of arguments.
        num_keys: of its input.
        positions: by output, where among these keys its feature is.
    """

    plan: LookupPlan
    path: str
    source: str | None
    num_keys: int
    positions: list[int]


class Tracer:
    """What the stand-ins were asked for."""

    def __init__(self, arguments: Arguments) -> None:
        self.calls: list[LookupCall] = []
        self.output_names: list[str] = []
        self._names = [f.name for f in arguments.features]
        self._tensors = arguments.tensors

    def begin(self, arguments: list[Any]) -> None:
        """Notes what the model is called with."""
        self._features = [a for a in arguments if isinstance(a, KeyedJaggedTensor)]
        self._plain = [a for a in arguments if isinstance(a, torch.Tensor)]

    def source(self, features: Any) -> str | None:
        """The name of the argument that `features` is."""
        for name, given in zip([*self._names, *self._tensors], [*self._features, *self._plain], strict=True):
            if features is given:
                return name
        return None

    def add(self, call: LookupCall) -> dict[str, Any]:
        """Notes a call. Returns the attributes of its node."""
        self.calls.append(call)
        return {NUMBER: len(self.calls) - 1}


class _StandIn(nn.Module):
    """What a copy of a model has in place of a collection."""

    def __init__(self, collection: Collection, path: str, tracer: Tracer) -> None:
        super().__init__()
        # Not as a submodule: only for what the model asks it besides.
        self.__dict__["_collection"] = collection
        self._path = path
        self._tracer = tracer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_collection"], name)

    def _call(self, features: Any, keys: list[str]) -> LookupCall:
        plan: LookupPlan = self.__dict__["_collection"].lookup_plan
        return LookupCall(plan, self._path, self._tracer.source(features), len(keys), plan.positions(keys))


class _Bags(_StandIn):
    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        call = self._call(features, features.keys())
        lengths = _lengths(features)
        inputs = [features.values(), lengths]
        if call.plan.weighted:
            if features.weights_or_none() is None:
                raise ValueError(f"{self._path} is weighted, but the KeyedJaggedTensor in args has no weights")
            inputs.append(features.weights())
        values = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{NODE}",
            inputs,
            attrs=self._tracer.add(call),
            dtype=torch.float32,
            shape=[lengths.shape[1], call.plan.width],
            version=VERSION,
        )
        return KeyedTensor(keys=call.plan.names, length_per_key=call.plan.dims, values=values)


class _Sequences(_StandIn):
    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        collection = self.__dict__["_collection"]
        call = self._call(features, features.keys())
        lengths, values = _lengths(features), features.values()
        sizes: list[Any] = [values.shape[0]]
        if len(features.keys()) > 1:
            sizes = lengths.sum(1).tolist()
            for size in sizes:
                torch._check_is_size(size)  # type: ignore[no-untyped-call]  # torch's
            torch._check(sum(sizes) == values.shape[0])  # type: ignore[no-untyped-call]  # torch's
        rows = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{NODE}",
            [values, lengths],
            attrs=self._tracer.add(call),
            dtypes=[torch.float32] * len(call.positions),
            shapes=[[sizes[key], dim] for key, dim in zip(call.positions, call.plan.dims, strict=True)],
            version=VERSION,
        )
        ids = torch.split(values, sizes) if collection.need_indices() else None
        return {
            name: JaggedTensor(
                values=of_feature,
                lengths=lengths[key],
                weights=ids[key] if ids is not None else None,
            )
            for name, key, of_feature in zip(call.plan.names, call.positions, rows, strict=True)
        }


class _Rows(_StandIn):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        plan: LookupPlan = self.__dict__["_collection"].lookup_plan
        call = self._call(ids, plan.features)
        rows = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{NODE}",
            [ids.to(torch.int64)],
            attrs=self._tracer.add(call),
            dtype=torch.float32,
            shape=[*ids.shape, plan.width],
            version=VERSION,
        )
        if plan.padding is None:
            return rows
        return rows * (ids != plan.padding).unsqueeze(-1).to(rows.dtype)


_STAND_INS = {LookupKind.POOLED: _Bags, LookupKind.SEQUENCES: _Sequences, LookupKind.ROWS: _Rows}


def stand_in_for(collection: Collection, path: str, tracer: Tracer) -> _StandIn:
    """The one for a collection that is at `path`. Raises ValueError if that has no rows."""
    if collection.device.type == "meta":
        raise ValueError(f"{path} is on the meta device: it has no rows to export")
    return _STAND_INS[collection.lookup_plan.kind](collection, path, tracer)


def _lengths(features: KeyedJaggedTensor) -> torch.Tensor:
    """``(F, B)``."""
    return features.lengths().view(len(features.keys()), -1).to(torch.int64)
