"""Running what was exported."""

import os
from pathlib import Path
from typing import Any

import onnxruntime

from damo_torchrec.files import os_errors
from damo_torchrec.graph_check import check_exported_graph
from damo_torchrec.onnx_kernels import operators_file
from damo_torchrec.onnx_runtime import open_session
from damo_torchrec.options import StoreOptions

MODEL_FILE = "model.onnx"


def model_file(path: str | os.PathLike[str]) -> Path:
    """The graph's file: `path` itself if it ends in ``.onnx``, else ``model.onnx`` in the directory `path`."""
    path = Path(path).absolute()
    return path if path.suffix == ".onnx" else path / MODEL_FILE


def existing_model_file(path: str | os.PathLike[str]) -> Path:
    """The same, and ValueError if there is none."""
    file = model_file(path)
    if not file.is_file():
        raise ValueError(f"{file} is not a file: export makes one")
    return file


def session(
    path: str | os.PathLike[str], *, num_threads: int | None = None, operators: bool = True, **options: Any
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session of an exported model.

    Args:
        path: what `export` was given.
        num_threads: that one call may use; None for as many as there are processors.
        operators: whether to load this package's kernels for lookups, which give the same results sooner than the
            standard operators that the file has for them.
        options: of `onnxruntime.InferenceSession`.

    Raises:
        ValueError: there is no such file; `num_threads` is not in 1..1024.
        CorruptionError: it is no graph, or has operators that `export` does not make, or data outside of its directory.
        DamoError: it cannot be read, or ONNX Runtime is too old to look after that as well.
    """
    StoreOptions(num_threads=num_threads)  # refuses what ONNX Runtime would try to start
    file = existing_model_file(path)
    session_options = options.pop("sess_options", None) or onnxruntime.SessionOptions()
    if num_threads is not None:
        session_options.intra_op_num_threads = num_threads
    if operators:
        session_options.register_custom_ops_library(str(operators_file()))
    with os_errors(f"cannot read {file}"):
        check_exported_graph(file)
    return open_session(file, file, session_options, **options)
