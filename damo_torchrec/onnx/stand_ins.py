"""What a copy of a model has in place of its collections: modules that torch.onnx traces as one node each.

What a stand-in was asked for in the export is a `LookupCall`; the node carries its number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from damo_torchrec.graph_check import DOMAIN
from damo_torchrec.lookup_plan import LookupKind, LookupOutput, LookupPlan
from damo_torchrec.modules.collection import Collection
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


# What gives rows, float32 (n, dim), for an output and its ids, int64 (n,).
Rows = Callable[[LookupOutput, torch.Tensor], torch.Tensor]


class Tracer:
    """What the stand-ins are asked for: nodes of a graph, or, while there are `rows`, what these nodes would give.

    Attributes:
        calls: of the last forward that was traced.
        outputs: names of what it returned.
        rows: None to trace.
        found: what each call of the last forward with `rows` was given.
    """

    def __init__(self) -> None:
        self.calls: list[LookupCall] = []
        self.outputs: list[str] = []
        self.rows: Rows | None = None
        self.found: list[list[torch.Tensor]] = []
        self._inputs: dict[str, Any] = {}

    def begin(self, inputs: dict[str, Any]) -> None:
        """Notes, by name, what a forward is called with."""
        self._inputs = inputs
        self.found = []
        if self.rows is None:
            self.calls = []

    def source(self, features: Any) -> str | None:
        """The name of the input or argument that `features` is."""
        return next((name for name, given in self._inputs.items() if features is given), None)

    def look_up(
        self, call: LookupCall, inputs: Sequence[torch.Tensor], shapes: Sequence[Sequence[Any]]
    ) -> Sequence[torch.Tensor]:
        """What a call gives: one output if it is pooled, else one for each."""
        if self.rows is not None:
            self.found.append(looked_up(call, inputs, self.rows))
            return self.found[-1]
        self.calls.append(call)
        return torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{NODE}",
            inputs,
            attrs={NUMBER: len(self.calls) - 1},
            dtypes=[torch.float32] * len(shapes),
            shapes=shapes,
            version=VERSION,
        )


def looked_up(call: LookupCall, inputs: Sequence[torch.Tensor], rows: Rows) -> list[torch.Tensor]:
    """What a call gives of these rows."""
    if call.plan.kind is LookupKind.ROWS:
        found = rows(call.plan.outputs[0], inputs[0].reshape(-1))
        return [found.reshape(*inputs[0].shape, call.plan.width)]
    values, lengths, *weights = inputs
    sizes = lengths.sum(1).tolist()
    ids = torch.split(values, sizes)
    by_output = [rows(output, ids[key]) for output, key in zip(call.plan.outputs, call.positions, strict=True)]
    if call.plan.kind is LookupKind.SEQUENCES:
        return by_output
    of_ids = torch.split(weights[0], sizes) if weights else [torch.ones(size) for size in sizes]
    pooled = [
        _pool(found, lengths[key], of_ids[key], output.mean)
        for output, key, found in zip(call.plan.outputs, call.positions, by_output, strict=True)
    ]
    return [torch.cat(pooled, dim=1)]


def _pool(rows: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor, mean: bool) -> torch.Tensor:
    """Bags of rows ``(n, dim)``; a mean is 0 where weights cancel, as of an empty bag."""
    bag = torch.arange(len(lengths)).repeat_interleave(lengths)
    sums = torch.zeros(len(lengths), rows.shape[1]).index_add_(0, bag, rows * weights.unsqueeze(1))
    if not mean:
        return sums
    total = torch.zeros(len(lengths)).index_add_(0, bag, weights).unsqueeze(1)
    return torch.where(total == 0, 0.0, sums / torch.where(total == 0, 1.0, total))


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
        (values,) = self._tracer.look_up(call, inputs, [[lengths.shape[1], call.plan.width]])
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
        shapes = [[sizes[key], dim] for key, dim in zip(call.positions, call.plan.dims, strict=True)]
        rows = self._tracer.look_up(call, [values, lengths], shapes)
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
        (rows,) = self._tracer.look_up(call, [ids.to(torch.int64)], [[*ids.shape, plan.width]])
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
