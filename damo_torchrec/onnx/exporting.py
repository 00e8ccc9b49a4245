"""`export`: a model and its rows as one ONNX graph that takes raw ids."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from damo_torchrec import _core
from damo_torchrec.checkpoints.rank_identity import check_has_all_rows
from damo_torchrec.modules import store_of
from damo_torchrec.modules.collection import Collection
from damo_torchrec.modules.dense_weights import warn_of_nonfinite
from damo_torchrec.modules.wrappers import unwrapped
from damo_torchrec.onnx.arguments import read_arguments
from damo_torchrec.onnx.card import About
from damo_torchrec.onnx.graph_files import write_graph
from damo_torchrec.onnx.graphs import DenseGraph, FullGraph, RowOptions
from damo_torchrec.onnx.lowering import Layout
from damo_torchrec.onnx.row_dtypes import ROW_DTYPES, DtypeName
from damo_torchrec.onnx.samples import is_by_sample
from damo_torchrec.onnx.sessions import model_file
from damo_torchrec.onnx.sizes import check_sizes
from damo_torchrec.onnx.stand_ins import LookupCall
from damo_torchrec.onnx.trace_model import trace_model
from damo_torchrec.options import check_progress, parse_bytes
from damo_torchrec.progress import Progress
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.store.table import Table, open_tables

_log = logging.getLogger(__name__)

_LEAST_MEMORY = _core.LEAST_SERVING_MEMORY
_MOST = 2**62


def export(
    model: nn.Module,
    args: Any,
    path: str | os.PathLike[str],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, Sequence[int] | Mapping[int, str]] | None = None,
    dtype: DtypeName = "float32",
    unseen: Literal["zeros", "initial", "mean"] | None = None,
    dense_only: bool = False,
    max_length: int | Mapping[str, int] | None = None,
    min_count: int = 0,
    expire: int | None = None,
    top_n: int | Mapping[str, int] | None = None,
    store: EmbeddingStore | None = None,
    memory_budget: int | str | None = None,
    progress: Progress | bool | None = None,
    verify: bool = True,
    single_file: bool = False,
    inline: bool = False,
) -> Path:
    """Exports a model with its rows for serving. Returns the graph's file.

    Each KeyedJaggedTensor argument ``NAME`` of the model's forward becomes the inputs ``NAME.values``, int64 ``(N,)``;
    ``NAME.lengths``, int64 ``(F, B)`` in the order of its keys; and, if it has weights, ``NAME.weights``, float32
    ``(N,)``. A JaggedTensor likewise, with its own dtypes and lengths ``(B,)``. Tensors keep their names. A dict, list,
    tuple or dataclass, such as TorchRec's ``Batch``, is taken apart: fields have their own names, or
    ``ARGUMENT.FIELD`` where two arguments have a field of one name. The number of samples and of ids is free. Ids are
    looked up in the graph, by standard operators of opset 18. Lengths that are negative or do not sum to N are refused.

    The rows are those of the moment of the call, whatever happens to them meanwhile. They lie in files of a directory
    beside the graph's, ``STEM.data-XXXXXXXX``, which goes with it. An export that was there is replaced once the new
    one is whole.

    Args:
        model: with at least one collection of this package; it is left as it is. That in DistributedModelParallel and
            `torch.compile`'s module is what is exported.
        args: what its forward is called with, as for `torch.onnx.export`: a tuple, or the only argument. Values do not
            matter, but keys, dtypes and shapes beyond the first dimension.
        path: a file that ends in ``.onnx``, or a directory, which gets a ``model.onnx``.
        input_names: of tensors and jagged tensors, in their order; those of forward's parameters, or fields, if None.
        output_names: of what it returns; None: a dict's keys, ``output``, or ``output_0`` and so on.
        dynamic_axes: by input, dimensions of any size besides the first, as for `torch.onnx.export`.
        dtype: of exported rows. int8 has a scale for each row.
        unseen: what ids without a row read as; None: as in eval mode, by table. ``"initial"`` is for tables of float32
            with uniform or constant initial values; ``"mean"`` is that of all rows of the table, also of those that are
            left out, in float32 whatever `dtype` is.
        dense_only: without rows: what lookups give is an input, for `damo_torchrec.serving`.
        max_length: the longest bag that the graph takes, of all features or by feature. Longer ones are refused.
        min_count: leave out rows with fewer updates.
        expire: leave out rows that were not updated within their table's last so many updates.
        top_n: keep so many rows with the most updates, of each table or by table.
        store: where the rows are; None: the model's own. It has the same tables.
        memory_budget: what writing rows may take; None: a sixteenth of the store's, and 32 MiB at least.
        progress: as `StoreOptions.progress`; None: as the store's.
        verify: run the graph on `args`, and on 1, 2, 3 and 7 samples of those, before it takes its place, and compare
            its outputs with the model's; where rows are left out, their shapes. Whether the model answers each sample
            by itself is found out, too. False does neither.
        single_file: have all rows in the graph's file, which takes 2 GiB at most.
        inline: have standard operators alone, and no functions, for tools that do not know those. Kernels of this
            package are no use then.

    Raises:
        ValueError: the model has no collection of this package; its forward looks nothing up, or decides something by
            the size of a batch; an option is not possible, for example a weight that float16 cannot hold; outputs have
            the names of others or of inputs.
        TypeError: `args` do not fit the model, or hold what a graph cannot take; a number is not an int.
        RuntimeError: torch.onnx cannot export the dense part, or the graph cannot be loaded, or run, or answers
            otherwise than the model.
        OutOfSpaceError, DamoError: the disk is full or refuses. As after any error, nothing is left behind, and an
            export that was there stays.
    """
    _check_choice("dtype", dtype, tuple(ROW_DTYPES))
    _check_choice("unseen", unseen, (None, "zeros", "initial", "mean"))
    for name, number in (("min_count", min_count), ("expire", expire)):
        if number is not None:
            _check_count(name, number, least=0)
    began = time.monotonic()
    model = unwrapped(model)
    store = store or store_of(model)
    if not dense_only:
        check_has_all_rows(store.path, "the graph")
    progress = store.session.options.progress if progress is None else progress
    check_progress(progress)
    warn_of_nonfinite(model, "export")
    arguments = read_arguments(model, args, {k: list(axes) for k, axes in (dynamic_axes or {}).items()}, input_names)
    traced = trace_model(model, arguments, output_names)
    check_sizes(traced, arguments)
    if not traced.calls:
        raise ValueError("the model's forward looks nothing up: torch.onnx.export exports such a model")
    tables = _tables(model, traced.calls, store)
    outputs = [output for call in traced.calls for output in call.plan.outputs]
    options = RowOptions(
        dtype=dtype,
        unseen={output.table: unseen or output.unseen for output in outputs},
        max_length=_by_name("max_length", max_length, [output.feature for output in outputs]),
        min_count=min_count,
        expire=expire,
        top_n=_by_name("top_n", top_n, [table.name for table in tables]),
    )
    memory_bytes = _memory_bytes(memory_budget, store)
    file = model_file(path)
    by_sample = is_by_sample(traced, arguments) if verify else None
    about = About(store, arguments.features, arguments.jagged, by_sample, traced.calls)
    if dense_only:
        if single_file or inline:
            raise ValueError("a graph of dense_only is a single file, and without functions")
        dense = DenseGraph(traced, arguments, about, options)
        write_graph(file, traced.proto, lambda _: dense.make(), dense.check if verify else None)
        return file
    full = FullGraph(traced, arguments, about, options, tables)
    if verify:
        full.ask_model()  # before the moment at which rows are taken
    write_graph(
        file,
        traced.proto,
        lambda directory: full.make(directory, memory_bytes, progress, Layout(file.parent, single_file, inline)),
        full.check if verify else None,
    )
    _log.info(
        "exported %d rows of %d tables to %s, in %.1f s",
        sum(map(len, tables)),
        len(tables),
        file,
        time.monotonic() - began,
    )
    return file


def _tables(model: nn.Module, calls: Sequence[LookupCall], store: EmbeddingStore) -> list[Table]:
    """The tables that lookups ask, each once."""
    collections = {path: module for path, module in model.named_modules() if isinstance(module, Collection)}
    definitions = {d.name: d for call in calls for d in collections[call.path].table_definitions()}
    asked = dict.fromkeys(output.table for call in calls for output in call.plan.outputs)
    return open_tables(store.session, [definitions[name] for name in asked])


def _memory_bytes(memory_budget: int | str | None, store: EmbeddingStore) -> int:
    if memory_budget is None:
        return max(store.session.memory_budget // 16, _LEAST_MEMORY)
    memory_bytes = parse_bytes(memory_budget)
    if memory_bytes < _LEAST_MEMORY:
        raise ValueError(f"memory_budget must be at least {_LEAST_MEMORY} bytes, got {memory_budget!r}")
    return memory_bytes


def _check_choice(name: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {known}, got {value!r}")


def _by_name(what: str, value: int | Mapping[str, int] | None, names: Sequence[str]) -> dict[str, int]:
    if value is None:
        return {}
    by_name = dict(value) if isinstance(value, Mapping) else dict.fromkeys(names, value)
    if unknown := sorted(set(by_name) - set(names)):
        raise ValueError(f"{what} names {unknown}, which are not there; there are {sorted(set(names))}")
    for name, number in by_name.items():
        _check_count(f"{what} of {name!r}", number, least=1)
    return by_name


def _check_count(name: str, number: object, least: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an int, got {number!r}")
    if not least <= number <= _MOST:
        raise ValueError(f"{name} must be in {least}..2**62, got {number}")
