"""Serving: a `Predictor` answers requests from a checkpoint that `export` made.

Needs ``pip install 'damo-torchrec[onnx]'``.
"""

try:
    from damo_torchrec import onnx_runtime as _onnx_runtime
except ImportError as error:
    raise ImportError(f"damo_torchrec.serving needs pip install 'damo-torchrec[onnx]': {error}") from error

from damo_torchrec.serving.export import export
from damo_torchrec.serving.histogram import Latencies
from damo_torchrec.serving.predictor import Predictor
from damo_torchrec.serving.publisher import DeltaPublisher
from damo_torchrec.serving.refresh import refresh_dense
from damo_torchrec.serving.requests import Argument, Request
from damo_torchrec.serving.stats import PredictorStats

del _onnx_runtime

__all__ = [
    "Argument",
    "DeltaPublisher",
    "Latencies",
    "Predictor",
    "PredictorStats",
    "Request",
    "export",
    "refresh_dense",
]
