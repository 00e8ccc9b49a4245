"""Running an export once against its model, before it takes its place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from damo_torchrec import _core
from damo_torchrec.errors import CorruptionError
from damo_torchrec.lookup_plan import LookupOutput
from damo_torchrec.onnx.stand_ins import Rows
from damo_torchrec.onnx.trace_model import Traced
from damo_torchrec.onnx_runtime import open_session
from damo_torchrec.store.table import Table
from damo_torchrec.tensors import address

Array = npt.NDArray[Any]
# Largest difference of an output, relative to its largest value: sums in another order, and rows of int8 that are
# rounded the other way; wrong graphs are farther off.
_TOLERANCE = 5e-3
_TOLERANCE_OF_16_BITS = 5e-2
_LEAST_DIFFERENCE = 1e-6
_WITHOUT = "verify=False exports it all the same"


@dataclass(frozen=True)
class Answers:
    """What a model answers.

    Args:
        inputs: of the graph, by name.
        outputs: by name.
        looked_up: by lookup, what the model was given.
        comparable: whether the graph gives the same values; else the same shapes alone.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    looked_up: Sequence[Sequence[torch.Tensor]]
    comparable: bool = True

    def is_of_rows_of(self, other: "Answers") -> bool:
        """Whether the model was given the same rows."""
        return all(all(map(torch.equal, *pair)) for pair in zip(self.looked_up, other.looked_up, strict=True))


class DifferentAnswerError(RuntimeError):
    """A graph answers otherwise than its model."""


class DifferentShapeError(DifferentAnswerError):
    """A graph's output has another shape or dtype than its model's, whatever the rows are."""


def ask_model(
    traced: Traced,
    inputs: Mapping[str, torch.Tensor],
    rows: Rows,
    lookup_inputs: Sequence[Sequence[str]] = (),
    comparable: bool = True,
) -> Answers:
    """What the copy of a model that was traced answers with these rows.

    Args:
        traced: the model.
        inputs: by name.
        rows: what is looked up.
        lookup_inputs: where what is looked up is an input of the graph, its names by lookup, as of `lower_to_inputs`.
        comparable: as of `Answers`.

    Raises:
        RuntimeError: it cannot be run.
    """
    try:
        outputs, found = traced.run(inputs, rows)
    except Exception as error:  # of whatever kind: it is the model's own code
        raise RuntimeError(f"the model cannot be run with args in eval mode ({_WITHOUT}): {error}") from error
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    for names, given in zip(lookup_inputs, found, strict=False):  # there are no names for what is of no use
        feed |= {name: tensor.numpy() for name, tensor in zip(names, given, strict=False) if name}
    answers = {name: _array(output) for name, output in zip(traced.outputs, outputs, strict=True)}
    return Answers(feed, answers, found, comparable)


def check_graph(content: bytes, file: Path, expected: Mapping[str, Answers]) -> list[str]:
    """Runs a graph. Returns the names of outputs that are whole numbers or truth values, and differ.

    Those may differ where scores are equal, or nearly so: which of two comes first is for the runtime to say.

    Args:
        content: of the graph.
        file: that it will be, beside its data.
        expected: what the model answers, by what it was asked with, in words.

    Raises:
        RuntimeError: ONNX Runtime cannot load or run it, or it has other outputs than the model.
        DifferentAnswerError: the outputs have other values or shapes.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
    try:
        session = open_session(content, file, options)
    except CorruptionError as error:
        raise RuntimeError(f"ONNX Runtime cannot load the graph that was made ({_WITHOUT}): {error}") from error
    odd = [name for asked, answers in expected.items() for name in _check_answer(session, asked, answers)]
    return list(dict.fromkeys(odd))


def _check_answer(session: onnxruntime.InferenceSession, asked: str, expected: Answers) -> list[str]:
    """As `check_graph`, of one answer."""
    names = [output.name for output in session.get_outputs()]
    if names != list(expected.outputs):
        raise RuntimeError(f"the graph has the outputs {names}, expected {list(expected.outputs)} ({_WITHOUT})")
    feed = {node.name: expected.inputs[node.name] for node in session.get_inputs()}
    try:
        outputs = session.run(None, feed)
    except Exception as error:  # ONNX Runtime's, which have no common base
        raise RuntimeError(f"ONNX Runtime cannot run the graph with {asked} ({_WITHOUT}): {error}") from error
    odd = []
    for (name, wanted), got in zip(expected.outputs.items(), outputs, strict=True):
        if (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
            raise DifferentShapeError(
                f"output {name!r} of the graph is {got.dtype} {got.shape}, but the model's is {wanted.dtype} "
                f"{wanted.shape}, with {asked} ({_WITHOUT})"
            )
        tolerance = _TOLERANCE_OF_16_BITS if wanted.dtype == np.float16 else _TOLERANCE
        if not expected.comparable or (most := difference(wanted, got, tolerance)) is None:
            continue
        if wanted.dtype.kind in "iub":
            odd.append(name)
        else:
            raise DifferentAnswerError(
                f"output {name!r} of the graph differs from the model's by {most:.3g}, where values are up to "
                f"{_largest(wanted):.3g}, with {asked}: the model is random, or does not export as it is ({_WITHOUT})"
            )
    return odd


def stored_rows(tables: Mapping[str, Table], unseen: Mapping[str, str], dtype: str) -> Rows:
    """Rows as an export of them has them.

    Args:
        tables: by name.
        unseen: by table, what ids without a row read as.
        dtype: of the exported rows.
    """

    def rows(output: LookupOutput, ids: torch.Tensor) -> torch.Tensor:
        table = tables[output.table]
        asked = ids.contiguous()
        found = torch.empty(len(asked), output.dim)
        kind = _core.UnseenRows[unseen[output.table].upper()]
        table.session.engine.get(table.opened.index, address(asked), len(asked), kind, address(found))
        return _KEPT[dtype](found)

    return rows


def _of_int8(rows: torch.Tensor) -> torch.Tensor:
    scale = rows.abs().amax(dim=1, keepdim=True) / 127
    return torch.where(scale == 0, 0.0, (rows / scale).round() * scale)


# What a dtype of rows keeps of them.
_KEPT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "float32": lambda rows: rows,
    "float16": lambda rows: rows.half().float(),
    "int8": _of_int8,
}


def _array(tensor: torch.Tensor) -> Array:
    if tensor.dtype is torch.bfloat16:
        raise RuntimeError(f"the model returns bfloat16, which no answer of ONNX Runtime can be in Python ({_WITHOUT})")
    array: Array = tensor.numpy()
    return array


def difference(wanted: Array, got: Array, tolerance: float) -> float | None:
    """The largest one of two arrays of one shape, if it is more than rounding makes: of integers, how many differ.

    Args:
        wanted: an array.
        got: another.
        tolerance: relative to the largest value that is wanted.
    """
    if wanted.dtype.kind in "iub":
        return float((wanted != got).sum()) or None
    wanted, got = (array.astype(np.result_type(array, np.float32)) for array in (wanted, got))
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], got[~finite], equal_nan=True):
        return float("inf")
    most = float(np.abs(wanted[finite] - got[finite]).max(initial=0))
    return None if most <= tolerance * _largest(wanted) + _LEAST_DIFFERENCE else most


def _largest(values: Array) -> float:
    return float(np.abs(values[np.isfinite(values)]).max(initial=0))
