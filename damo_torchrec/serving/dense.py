"""The dense part of a served model: a graph, with what it says of its lookups."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from damo_torchrec.checkpoints.table_entry import TableEntry
from damo_torchrec.errors import CorruptionError, SchemaMismatchError
from damo_torchrec.graph_card import CARD, DenseCard
from damo_torchrec.graph_check import check_dense_graph
from damo_torchrec.lookup_plan import LookupKind
from damo_torchrec.onnx_runtime import open_session
from damo_torchrec.serving.arrays import Array
from damo_torchrec.serving.requests import BATCH, Argument

DENSE_FILE = "dense.onnx"
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype("float32"),
    "tensor(double)": np.dtype("float64"),
    "tensor(float16)": np.dtype("float16"),
    "tensor(bool)": np.dtype("bool"),
    **{f"tensor({u}int{bits})": np.dtype(f"{u}int{bits}") for u in ("", "u") for bits in (8, 16, 32, 64)},
}


class DensePart:
    """A dense graph in ONNX Runtime. `run` may be called by several threads at once.

    Attributes:
        file: the graph's, for messages.
        content: of it.
        card: what it says of its lookups.
        inputs: types and shapes by name, as ONNX Runtime has them.
        arguments: what a request has besides KeyedJaggedTensors.
        outputs: shapes by name: sizes, names of sizes, or None.

    Args:
        file: the graph's.
        num_threads: that one call may use; None for as many as there are processors.

    Raises:
        CorruptionError: it is no graph, or does not say how to look up its inputs.
    """

    def __init__(self, file: Path, content: bytes, num_threads: int | None) -> None:
        options = onnxruntime.SessionOptions()
        # Threads that wait in a loop take the processors from lookups, and from requests beside this one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        check_dense_graph(content, file)
        self._session = open_session(content, file, options)
        self.file = file
        try:
            card = self._session.get_modelmeta().custom_metadata_map.get(CARD)
        except UnicodeDecodeError as error:
            raise CorruptionError(f"{file} has metadata that are no text: {error}") from error
        self.card = DenseCard.parse(card, str(file))
        self.inputs = {node.name: (node.type, node.shape) for node in self._session.get_inputs()}
        self.outputs = {node.name: tuple(size or None for size in node.shape) for node in self._session.get_outputs()}
        looked_up = {name for lookup in self.card.lookups for name in lookup.graph_inputs}
        if absent := sorted(looked_up - set(self.inputs)):
            raise CorruptionError(f"{file} says that {absent} are inputs, but they are not")
        self._dtypes: dict[str, np.dtype[Any]] = {}
        for node in self._session.get_outputs():
            if node.type not in _DTYPES:
                raise CorruptionError(f"{file}: output {node.name!r} is a {node.type}, which answers cannot have")
            self._dtypes[node.name] = _DTYPES[node.type]
        self.arguments = self._arguments(looked_up)

    def _arguments(self, looked_up: set[str]) -> list[Argument]:
        """What a request has besides KeyedJaggedTensors: inputs that are not looked up, and ids of Embeddings."""
        arguments = []
        for name, (kind, shape) in self.inputs.items():
            if name not in looked_up:
                if kind not in _DTYPES:
                    raise CorruptionError(f"{self.file}: input {name!r} is a {kind}, which requests cannot have")
                arguments.append(Argument(name, _DTYPES[kind], tuple(size or None for size in shape)))
        for lookup in self.card.lookups:
            if lookup.plan.kind is LookupKind.ROWS:
                shape = self.inputs[lookup.graph_inputs[0]][1]
                sizes = tuple(size or None for size in shape[:-1]) if shape else None
                arguments.append(Argument(lookup.input, np.dtype(np.int64), sizes))
        return arguments

    def check(self, seed: int, tables: Mapping[str, TableEntry]) -> None:
        """Checks that it is for rows of this seed, in these tables.

        Raises:
            SchemaMismatchError: it is not.
            CorruptionError: its inputs are not what its lookups give.
        """
        if self.card.seed != seed:
            raise SchemaMismatchError(f"{self.file} is of a store with the seed {self.card.seed}, expected {seed}")
        for output in (output for lookup in self.card.lookups for output in lookup.plan.outputs):
            if output.table not in tables:
                raise SchemaMismatchError(f"{self.file} needs table {output.table!r}; there are {sorted(tables)}")
            if (dim := tables[output.table].schema.dim) != output.dim:
                raise SchemaMismatchError(
                    f"{self.file} needs table {output.table!r} with dim {output.dim}, but it has dim {dim}"
                )

        for lookup in self.card.lookups:
            sequences = lookup.plan.kind is LookupKind.SEQUENCES
            widths = lookup.plan.dims if sequences else [lookup.plan.width]
            for name, width in zip(lookup.graph_inputs, widths, strict=True):
                kind, shape = self.inputs[name]
                if kind != "tensor(float)" or (shape and (shape[-1] != width or sequences == (shape[0] == BATCH))):
                    raise CorruptionError(
                        f"{self.file}: input {name!r} is a {kind} {shape}, but is given float32 rows of {width} "
                        f"columns by {lookup.path}, a {lookup.plan.kind.value}"
                    )

    def check_replaces(self, other: "DensePart") -> None:
        """Raises SchemaMismatchError if it does not take the same requests, look up the same or answer the same."""
        for what, mine, wanted in (
            ("features", self.card.features, other.card.features),
            ("JaggedTensors", self.card.jagged, other.card.jagged),
            ("lookups", self.card.lookups, other.card.lookups),
            ("inputs", self.inputs, other.inputs),
            ("outputs", self.outputs, other.outputs),
        ):
            if mine != wanted:
                raise SchemaMismatchError(f"{self.file} has other {what} than {other.file}: {mine}, expected {wanted}")

    def of_no_sample(self) -> dict[str, Array] | None:
        """The outputs for a batch without samples, by name. None if their sizes are for the graph alone to tell."""
        outputs = {}
        for name, shape in self.outputs.items():
            known = [size for size in shape[1:] if isinstance(size, int)]
            if shape[:1] != (BATCH,) or len(known) < len(shape) - 1:
                return None
            outputs[name] = np.empty((0, *known), self._dtypes[name])
        return outputs

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name.

        Args:
            arrays: its inputs, and maybe others.

        Raises:
            ValueError: they do not fit each other in a way that only running it tells.
        """
        feed = {name: arrays[name] for name in self.inputs}
        try:
            outputs: Sequence[Array] = self._session.run(None, feed)
        except Exception as error:  # ONNX Runtime's, which have no common base
            raise ValueError(f"the model cannot take these inputs: {error}") from error
        return dict(zip(self.outputs, outputs, strict=True))
