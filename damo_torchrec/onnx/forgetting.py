"""An exported graph without some of its rows, in the place of the one that had them.

The slot of a row that is gone is as one that never was an id's: its weights are zeros, and its key is that of another
slot, so that no id finds it (csrc/serving/serving_rows.h).
"""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from damo_torchrec import _core
from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.checkpoints.rows_copy import copy_file
from damo_torchrec.erasing.report import Erased, ForgetReport
from damo_torchrec.erasing.wanted import Ids, Wanted
from damo_torchrec.errors import CorruptionError, DamoError
from damo_torchrec.files import os_errors
from damo_torchrec.graph_card import CARD, SEAL, UNSEALED, parse_card
from damo_torchrec.graph_check import check_exported_graph, data_file, parse_graph
from damo_torchrec.onnx.graph_files import write_graph
from damo_torchrec.onnx.sessions import model_file

_WHAT = "export"
_OF_TABLES = ("first_bucket", "bucket_mask")
_TRIED_KEYS = 1 << 12
_Array = npt.NDArray[Any]


def erase_from_graph(path: Path, wanted: Wanted, report: ForgetReport) -> None:
    """Has nothing left of the wanted rows in an export, and says so in the report, or why that cannot be.

    A server that has it open has the rows until it loads the graph anew.

    Args:
        path: what `export` was given.
        wanted: rows, by the names of tables.
        report: gets what was done. With its `dry_run` nothing is.
    """
    file = model_file(path)
    try:
        with os_errors(f"cannot read {file}"):
            check_exported_graph(file)
            graph = _Graph(file)
            found = graph.find(wanted)
        if not found:
            return
        if not report.dry_run:
            files = {source: os.lstat(source) for source in graph.sources(found)}
            write_graph(file, graph.proto, lambda directory: graph.write_without(found, directory))
            report.note_removed(files)
        report.erased.append(Erased(file, _WHAT, "rewritten", sum(len(slots.rows) for slots in found)))
    except CorruptionError as error:
        report.leave(file, _WHAT, f"it is damaged, and may hold them: {error}. Export the model anew, or remove it")
    except (DamoError, OSError, ValueError) as error:
        report.leave(file, _WHAT, f"it holds them, or may: {error}")


@dataclass(frozen=True)
class _Slots:
    """Rows of a table in the arrays of its dim.

    Args:
        table: its name.
        number: it has in the arrays.
        dim: weights in a row.
        rows: int64, their numbers.
        keys: int64, what they get as keys.
        none_left: whether all ids of the table lead to one of these: it has no others, and becomes one without rows.
    """

    table: str
    number: int
    dim: int
    rows: _Array
    keys: _Array
    none_left: bool


class _Graph:
    """An exported graph and its arrays.

    Args:
        file: the graph's.

    Raises:
        CorruptionError: it is none that `export` made, or its arrays are not as it says.
        OSError: it cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.proto = parse_graph(file.read_bytes(), file)
        self._tensors: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in self.proto.graph.initializer}
        entry = next((entry for entry in self.proto.metadata_props if entry.key == CARD), None)
        if entry is None:
            raise CorruptionError(
                f"{file} is no model that damo_torchrec.onnx.export made: it has no metadata {CARD!r}"
            )
        self._entry = entry
        self._card = parse_card(entry.value, str(file))

    def find(self, wanted: Wanted) -> list[_Slots]:
        """The slots of wanted rows, by table."""
        if self._card["kind"] != "full":
            return []
        found, numbers = [], dict[int, int]()
        for name, table in self._card["tables"].items():
            number = numbers[table["dim"]] = numbers.get(table["dim"], 0) + 1
            ids = wanted.ids.get(name)
            if ids is not None and len(ids):
                found += self._slots_of(name, number, table["dim"], ids)
        return found

    def _slots_of(self, name: str, number: int, dim: int, ids: Ids) -> list[_Slots]:
        places = _Hash(self, dim, number)
        rows = places.rows_of(ids)
        rows = rows[(places.keys[rows] == ids) & (rows != 0)]
        if len(rows) == 0:
            return []
        keys = [places.key_elsewhere(int(row), without=ids) for row in rows]
        none_left = None in keys
        return [_Slots(name, number, dim, rows, np.array([key or 0 for key in keys], np.int64), none_left)]

    # ------------------------------------------------------------------ arrays

    def array(self, dim: int, name: str) -> _Array:
        """An array of the rows of a dim, read-only."""
        tensor = self._tensors.get(_tensor_name(dim, name))
        if tensor is None:
            raise CorruptionError(f"{self._file} has no array {_tensor_name(dim, name)!r}")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        source = self._source(tensor)
        content: Any = tensor.raw_data if source is None else np.memmap(source, np.uint8, "r")
        if len(content) != math.prod(shape) * dtype.itemsize:
            raise CorruptionError(f"{source or self._file}: {shape} {dtype} does not take its {len(content)} bytes")
        return np.frombuffer(content, dtype).reshape(shape)

    def _source(self, tensor: onnx.TensorProto) -> Path | None:
        where = {entry.key: entry.value for entry in tensor.external_data}
        return data_file(self._file, where["location"]) if where else None

    def _changed(self, found: list[_Slots]) -> set[str]:
        """Names of the tensors that rows, or keys, of these slots are in."""
        dims = {slots.dim for slots in found}
        emptied = {slots.dim for slots in found if slots.none_left}
        names = {name for dim in dims for name in self._tensors if _is_of_rows(name, dim)}
        return names | {_tensor_name(dim, name) for dim in emptied for name in _OF_TABLES}

    def sources(self, found: list[_Slots]) -> list[Path]:
        """The files of arrays that have something of the rows."""
        sources = [self._source(self._tensors[name]) for name in self._changed(found)]
        return sorted({source for source in sources if source is not None})

    # ------------------------------------------------------------------ writing

    def write_without(self, found: list[_Slots], directory: Path) -> None:
        """Puts all arrays that are in files into `directory`, without these rows, and has the graph fit."""
        changed = self._changed(found)
        for name, tensor in self._tensors.items():
            source = self._source(tensor)
            if source is not None:
                target = directory / source.name
                self._bring(source, target, shared=name not in changed)
                self._place(tensor, target)
            if name in changed:
                self._edit(tensor, None if source is None else target, found)
        for slots in found:
            self._card["tables"][slots.table]["rows"] -= len(slots.rows)
        files = sorted(directory.iterdir())
        self._card["files"] = {
            file.relative_to(self._file.parent).as_posix(): asdict(FileEntry.of(file)) for file in files
        }
        if SEAL in self._card:
            self._card[SEAL] = UNSEALED
        self._entry.value = json.dumps(self._card)

    @staticmethod
    def _bring(source: Path, target: Path, *, shared: bool) -> None:
        if shared:
            try:
                os.link(source, target)
                return
            except OSError:  # a file system without links
                pass
        copy_file(source, target)

    def _place(self, tensor: onnx.TensorProto, target: Path) -> None:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = target.relative_to(self._file.parent).as_posix()

    def _edit(self, tensor: onnx.TensorProto, target: Path | None, found: list[_Slots]) -> None:
        """Overwrites what a tensor has of the rows: in its file, or in the graph."""
        dtype, shape = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
        values: _Array
        if target is None:
            values = np.frombuffer(bytearray(tensor.raw_data), dtype).reshape(shape)
        else:
            values = np.memmap(target, dtype, "r+", shape=shape)
        for slots in found:
            kind = tensor.name.removeprefix(_tensor_name(slots.dim, ""))
            if kind == "keys":
                values[slots.rows] = slots.keys
            elif kind == "scales":
                values[slots.rows] = 0
            elif kind in _OF_TABLES and slots.none_left:
                values[slots.number] = 0  # as of table 0
            elif kind.startswith("rows_"):
                first = self._first_row(slots.dim, int(kind.removeprefix("rows_")))
                inside = slots.rows[(slots.rows >= first) & (slots.rows < first + len(values))]
                values[inside - first] = np.zeros((), dtype)
        if isinstance(values, np.memmap):
            values.flush()
        else:
            tensor.raw_data = values.tobytes()

    def _first_row(self, dim: int, shard: int) -> int:
        return sum(self._tensors[_tensor_name(dim, f"rows_{before}")].dims[0] for before in range(shard))


class _Hash:
    """Where rows of a table are: the function of csrc/serving/perfect_hash.h."""

    def __init__(self, graph: _Graph, dim: int, number: int) -> None:
        self.keys = graph.array(dim, "keys")
        self._buckets = graph.array(dim, "buckets")
        self._first, self._mask = (int(graph.array(dim, name)[number]) for name in ("first_bucket", "bucket_mask"))
        self._middle_row, self._row_scale = graph.array(dim, "middle_row"), graph.array(dim, "row_scale")

    def rows_of(self, ids: Ids) -> _Array:
        """The row of each id, if it has one: int64 ``(n,)``."""
        c1, c2, c3 = (np.uint64(number) for number in _core.PERFECT_HASH_CONSTANTS)
        h = ids.view(np.uint64)
        h = (h ^ h >> np.uint64(32)) * c1
        h = (h ^ h >> np.uint64(29)) * c2
        buckets = self._buckets[self._first + (h & np.uint64(self._mask)).astype(np.int64)]
        place = ((h ^ buckets.view(np.uint64)) * c3).view(np.int64)
        part = buckets & ((1 << _core.PERFECT_HASH_PART_BITS) - 1)
        from_middle = (place.astype(np.float64) * self._row_scale[part]).astype(np.int64)
        return np.asarray(self._middle_row[part] + from_middle)

    def key_elsewhere(self, row: int, without: Ids) -> int | None:
        """A key that leads to another row than this one, so that no id finds it; None if all lead there."""
        for first in range(0, _TRIED_KEYS, 64):
            keys = np.setdiff1d(np.arange(first, first + 64, dtype=np.int64), without)
            elsewhere = keys[self.rows_of(keys) != row]
            if len(elsewhere):
                return int(elsewhere[0])
        return None


def _tensor_name(dim: int, name: str) -> str:
    return f"rows/{dim}/{name}"


def _is_of_rows(name: str, dim: int) -> bool:
    kind = name.removeprefix(_tensor_name(dim, ""))
    return kind != name and (kind in ("keys", "scales") or kind.startswith("rows_"))
