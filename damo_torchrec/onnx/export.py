"""`export`: a model and its rows as one ONNX graph that takes raw ids."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import onnx
from torch import nn
from tqdm.auto import tqdm

from damo_torchrec.files import os_errors, sync_directory
from damo_torchrec.modules import store_of
from damo_torchrec.modules.collection import Collection
from damo_torchrec.onnx.arguments import Arguments, read_arguments
from damo_torchrec.onnx.capture import LookupCall, capture
from damo_torchrec.onnx.lowering import lower_to_inputs, lower_to_rows
from damo_torchrec.onnx.rows import RowFilter, RowGroup, RowWriter
from damo_torchrec.onnx.session import CARD, model_file
from damo_torchrec.options import parse_bytes
from damo_torchrec.store import EmbeddingStore
from damo_torchrec.table import Table

_CARD_VERSION = 1
_DTYPES = ("float32", "float16", "int8")
_LEAST_MEMORY = 32 << 20


def export(
    model: nn.Module,
    args: Any,
    path: str | os.PathLike[str],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, Sequence[int] | Mapping[int, str]] | None = None,
    dtype: Literal["float32", "float16", "int8"] = "float32",
    unseen: Literal["zeros", "initial"] | None = None,
    dense_only: bool = False,
    max_length: int | Mapping[str, int] | None = None,
    min_count: int = 0,
    expire: int | None = None,
    top_n: int | Mapping[str, int] | None = None,
    store: EmbeddingStore | None = None,
    memory_budget: int | str | None = None,
    progress: bool = False,
) -> Path:
    """Exports a model with its rows for serving. Returns the graph's file.

    Each KeyedJaggedTensor argument ``NAME`` of the model's forward becomes the inputs ``NAME.values``, int64 ``(N,)``;
    ``NAME.lengths``, int64 ``(F, B)`` in the order of its keys; and, if it has weights, ``NAME.weights``, float32
    ``(N,)``. Tensors keep their names. The number of samples and of ids is free. Ids are looked up in the graph, by
    standard operators of opset 18. Lengths that are negative or do not sum to N are refused.

    The rows are those of the moment of the call, whatever happens to them meanwhile. They lie in files of a directory
    beside the graph's, ``STEM.data-XXXXXXXX``, which goes with it. An export that was there is replaced once the new
    one is whole.

    Args:
        model: with at least one collection of this package; it is left as it is.
        args: what its forward is called with, as for `torch.onnx.export`: a tuple, or the only argument. Values do not
            matter, but keys, dtypes and shapes beyond the first dimension.
        path: a file that ends in ``.onnx``, or a directory, which gets a ``model.onnx``.
        input_names: of the arguments that are tensors; those of forward's parameters if None.
        output_names: of what it returns; None: a dict's keys, ``output``, or ``output_0`` and so on.
        dynamic_axes: by input, dimensions of any size besides the first, as for `torch.onnx.export`.
        dtype: of exported rows. int8 has a scale for each row.
        unseen: what ids without a row read as; None: as each table's rows in eval mode. ``"initial"`` is for tables
            with a constant initial value.
        dense_only: without rows: what lookups give is an input, for `damo_torchrec.serving`.
        max_length: the longest bag that the graph takes, of all features or by feature. Longer ones are refused.
        min_count: leave out rows with fewer updates.
        expire: leave out rows that were not updated within their table's last so many updates.
        top_n: keep so many rows with the most updates, of each table or by table.
        store: where the rows are; None: the model's own. It has the same tables.
        memory_budget: what writing rows may take; None: a sixteenth of the store's, and 32 MiB at least.
        progress: whether to show a progress bar.

    Raises:
        ValueError: the model has no collection of this package, or an option is not possible, for example a weight that
            float16 cannot hold.
        TypeError: `args` do not fit the model, or hold what a graph cannot take.
        RuntimeError: torch.onnx cannot export the dense part.
        OutOfSpaceError, DamoError: the disk is full or refuses. As after any error, nothing is left behind, and an
            export that was there stays.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {_DTYPES}, got {dtype!r}")
    if unseen not in (None, "zeros", "initial"):
        raise ValueError(f"unseen must be 'zeros', 'initial' or None, got {unseen!r}")
    collections = {path: module for path, module in model.named_modules() if isinstance(module, Collection)}
    store = store or store_of(model)
    arguments = read_arguments(model, args, {k: list(axes) for k, axes in (dynamic_axes or {}).items()}, input_names)
    proto, calls = capture(model, arguments, output_names)
    tables = _tables(collections, calls, store)
    outputs = {output.table: output for call in calls for output in call.outputs}
    unseen_of = {name: unseen or outputs[name].unseen for name in outputs}
    file = model_file(path)
    if dense_only:
        inputs = lower_to_inputs(proto, calls)
        _set_card(proto, _dense_card(store, arguments, calls, inputs, unseen_of))
        with os_errors(f"cannot write {file}"):
            file.parent.mkdir(parents=path != file and not file.parent.exists(), exist_ok=True)
            _replace(file, proto)
        return file
    filters = _filters(tables, min_count, expire, top_n)
    limits = _by_name(max_length, {output.feature for call in calls for output in call.outputs}, "max_length")
    options = {
        "dtype": dtype,
        "unseen": unseen_of,
        "max_length": limits,
        "min_count": min_count,
        "expire": expire,
        "top_n": {name: f.top_n for name, f in filters.items() if f.top_n is not None},
    }
    budget = max(store._memory_budget // 16, _LEAST_MEMORY) if memory_budget is None else parse_bytes(memory_budget)
    data = file.with_name(f"{file.stem}.data-{secrets.token_hex(4)}")
    made = not file.parent.exists()
    with os_errors(f"cannot write {file}"):
        try:
            data.mkdir(parents=True)
            with tqdm(total=sum(map(len, tables)), unit="rows", unit_scale=True, disable=not progress) as bar:
                writer = RowWriter(data, dtype, filters, unseen_of, budget, store._options.threads(), _advance(bar))
                groups = writer.write(tables)
            lower_to_rows(proto, calls, groups, unseen_of, limits, file.parent)
            _set_card(proto, _card(store, arguments, calls, groups, options))
            sync_directory(data)
            _replace(file, proto)
        except BaseException:
            shutil.rmtree(data, ignore_errors=True)
            if made:
                shutil.rmtree(file.parent, ignore_errors=True)
            raise
        for old in file.parent.glob(f"{file.stem}.data-*"):
            if old != data:
                shutil.rmtree(old, ignore_errors=True)
    return file


def _advance(bar: "tqdm[NoReturn]") -> Callable[[int], None]:
    def advance(rows: int) -> None:
        bar.update(rows)

    return advance


def _tables(collections: Mapping[str, Collection], calls: Sequence[LookupCall], store: EmbeddingStore) -> list[Table]:
    """The tables that lookups ask, each once."""
    definitions = {definition.name: definition for call in calls for definition in collections[call.path]._definitions}
    asked = dict.fromkeys(output.table for call in calls for output in call.outputs)
    return store._open_tables([definitions[name] for name in asked])


def _filters(
    tables: Sequence[Table], min_count: int, expire: int | None, top_n: int | Mapping[str, int] | None
) -> dict[str, RowFilter]:
    for name, value, least in (("min_count", min_count, 0), ("expire", expire, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} must not be negative, got {value}")
    most = _by_name(top_n, {table.name for table in tables}, "top_n")
    return {table.name: RowFilter(min_count, expire, most.get(table.name)) for table in tables}


def _by_name(value: int | Mapping[str, int] | None, names: set[str], what: str) -> dict[str, int]:
    if value is None:
        return {}
    by_name = dict(value) if isinstance(value, Mapping) else dict.fromkeys(sorted(names), value)
    if unknown := sorted(set(by_name) - names):
        raise ValueError(f"{what} names {unknown}, which are not there; there are {sorted(names)}")
    for name, number in by_name.items():
        if number < 1:
            raise ValueError(f"{what} of {name!r} must be at least 1, got {number}")
    return by_name


def _replace(file: Path, proto: onnx.ModelProto) -> None:
    """Puts a graph in its place at once."""
    if proto.ByteSize() >= 2**31:
        raise ValueError(f"the dense part has {proto.ByteSize()} bytes: an ONNX file takes 2^31 - 1")
    staged = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with staged.open("wb") as opened:
            opened.write(proto.SerializeToString())
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(staged, file)
    finally:
        staged.unlink(missing_ok=True)
    sync_directory(file.parent)


def _set_card(proto: onnx.ModelProto, card: dict[str, Any]) -> None:
    proto.metadata_props.add(key=CARD, value=json.dumps(card))


def _card(
    store: EmbeddingStore,
    arguments: Arguments,
    calls: Sequence[LookupCall],
    groups: Mapping[int, RowGroup],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    rows = {name: count for group in groups.values() for name, count in group.num_rows.items()}
    dims = {name: group.dim for group in groups.values() for name in group.tables}
    return {
        **_about("full", store, arguments),
        "tables": {name: {"dim": dims[name], "rows": rows[name]} for name in rows},
        "options": dict(options),
    }


def _dense_card(
    store: EmbeddingStore,
    arguments: Arguments,
    calls: Sequence[LookupCall],
    inputs: Sequence[Sequence[str]],
    unseen: Mapping[str, str],
) -> dict[str, Any]:
    lookups = []
    for call, names in zip(calls, inputs, strict=True):
        if not names:
            continue
        if call.source is None:
            raise ValueError(
                f"{call.path} is not given an argument of the model's forward as it is: it cannot be exported alone"
            )
        outputs = [
            {
                "key": output.feature,
                "table": output.table,
                "dim": output.dim,
                "pooling": "MEAN" if output.mean else "SUM",
                "unseen": unseen[output.table],
            }
            for output in call.outputs
        ]
        lookups.append(
            {
                "kind": call.kind,
                "path": call.path,
                "input": call.source,
                "graph_inputs": list(names),
                "weighted": call.weighted,
                "padding": call.padding,
                "outputs": outputs,
            }
        )
    return {**_about("dense", store, arguments), "lookups": lookups}


def _about(kind: str, store: EmbeddingStore, arguments: Arguments) -> dict[str, Any]:
    return {
        "format_version": _CARD_VERSION,
        "kind": kind,
        "store": str(store.path),
        "seed": store.seed,
        "step": store.step,
        "features": {
            feature.name: {"keys": feature.keys, "weighted": feature.weighted} for feature in arguments.features
        },
    }
