"""The dense part as a graph, exported once and then given the parameters of the moment."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from damo_torchrec.graph_card import CARD, SEAL, UNSEALED, parse_card, sealed
from damo_torchrec.graph_check import check_dense_graph
from damo_torchrec.modules import store_of
from damo_torchrec.modules.collection import Collection
from damo_torchrec.modules.dense_weights import warn_of_nonfinite
from damo_torchrec.modules.wrappers import unwrapped
from damo_torchrec.serving.arrays import Array
from damo_torchrec.serving.dense import DENSE_FILE
from damo_torchrec.serving.exporting import dense_graph

_log = logging.getLogger(__name__)


def refresh_dense(graph: bytes, model: nn.Module) -> bytes:
    """A dense graph of a model with the model's parameters and buffers as they are now, at its store's step.

    Exporting it anew gives the same, but takes seconds.

    Args:
        graph: ``dense.onnx`` of a serving checkpoint, or of a delta.
        model: that it was exported from, or another one of the same structure.

    Raises:
        ValueError: the graph does not hold a parameter as the model has it, but something that torch.onnx made of it:
            it must be exported anew.
        CorruptionError: it is no dense graph.
    """
    proto = check_dense_graph(graph, Path(DENSE_FILE))
    state = _state(model)
    if missing := _missing(proto, state):
        raise ValueError(f"the graph does not hold {missing} of the model as they are: export it anew")
    for initializer in proto.graph.initializer:
        if initializer.name in state:
            initializer.CopyFrom(numpy_helper.from_array(state[initializer.name], initializer.name))
    for entry in proto.metadata_props:
        if entry.key == CARD:
            parse_card(entry.value, DENSE_FILE)
            entry.value = json.dumps({**json.loads(entry.value), "step": store_of(model).step, SEAL: UNSEALED})
    return sealed(proto.SerializeToString())


def digest_of(graph: bytes) -> str:
    """Of what a dense graph computes, whenever and wherever it was exported: its weights and its operators."""
    proto = onnx.load_from_string(graph)
    found = hashlib.sha256()
    for initializer in sorted(proto.graph.initializer, key=lambda initializer: initializer.name):
        value = numpy_helper.to_array(initializer)
        found.update(f"{initializer.name} {value.dtype} {value.shape}".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    for node in proto.graph.node:
        found.update(repr((node.op_type, list(node.input), list(node.output))).encode())
    return found.hexdigest()


class DenseGraph:
    """A model's dense part as a graph, as it is at each call of `now`.

    Args:
        model: with at least one collection of this package.
        args: as of `export`.
    """

    def __init__(self, model: nn.Module, args: Any) -> None:
        self._model = model
        self._args = args
        self._graph: bytes | None = None

    def now(self) -> bytes:
        """The graph. Errors as of `export`."""
        if self._graph is not None:
            warn_of_nonfinite(self._model, "export")
            return refresh_dense(self._graph, self._model)
        graph = dense_graph(self._model, self._args)
        computed = sorted(_computed(onnx.load_from_string(graph), _state(self._model)))
        if computed:
            _log.info("the dense part is exported anew each time, as its graph holds %s in another form", computed)
        else:
            self._graph = graph
        return graph


def _state(model: nn.Module) -> dict[str, Array]:
    """Parameters and buffers that a graph may depend on, by name."""
    model = unwrapped(model)  # as the graph is of it
    own = tuple(f"{name}." if name else "" for name, m in model.named_modules() if isinstance(m, Collection))
    return {
        name: value.detach().cpu().numpy()
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor)
        and not name.startswith(own)
        and not name.endswith("num_batches_tracked")  # which only training reads
    }


def _missing(proto: onnx.ModelProto, state: dict[str, Array]) -> list[str]:
    """What of the state the graph does not hold with this shape and dtype."""
    held = {i.name: (tuple(i.dims), onnx.helper.tensor_dtype_to_np_dtype(i.data_type)) for i in proto.graph.initializer}
    return [name for name, value in state.items() if held.get(name) != (value.shape, value.dtype)]


def _computed(proto: onnx.ModelProto, state: dict[str, Array]) -> Iterator[str]:
    """What of the state a graph that was exported just now does not hold as it is, and what may be made of it."""
    yield from _missing(proto, state)
    for initializer in proto.graph.initializer:
        value = numpy_helper.to_array(initializer)
        if initializer.name not in state:
            if np.issubdtype(value.dtype, np.floating) and value.size > 1:
                yield initializer.name
        elif not np.array_equal(value, state[initializer.name], equal_nan=True):
            yield initializer.name
