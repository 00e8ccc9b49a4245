"""This package's kernels for ONNX Runtime, which opens their library itself."""

from pathlib import Path

from damo_torchrec import _core


def operators_file() -> Path:
    """The library: to be given to ``SessionOptions.register_custom_ops_library``."""
    return Path(_core.__file__).parent / "libdamo_onnxruntime_ops.so"
