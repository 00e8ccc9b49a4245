"""Serving: a `Predictor` answers requests from a checkpoint that `export` made.

Needs ``pip install 'damo-torchrec[onnx]'``; a `Predictor` needs neither torch nor TorchRec.
"""

from typing import TYPE_CHECKING

from damo_torchrec import lazy

if TYPE_CHECKING:
    from damo_torchrec.serving.exporting import export as export
    from damo_torchrec.serving.histogram import Latencies as Latencies
    from damo_torchrec.serving.predictor import Predictor as Predictor
    from damo_torchrec.serving.publisher import DeltaPublisher as DeltaPublisher
    from damo_torchrec.serving.refresh import refresh_dense as refresh_dense
    from damo_torchrec.serving.requests import Argument as Argument
    from damo_torchrec.serving.requests import Request as Request
    from damo_torchrec.serving.stats import PredictorStats as PredictorStats

try:
    from damo_torchrec import onnx_runtime as _onnx_runtime
except ImportError as error:
    raise ImportError(f"damo_torchrec.serving needs pip install 'damo-torchrec[onnx]': {error}") from error

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
_get, __dir__ = lazy.attributes(
    __name__,
    {
        "Argument": "requests",
        "DeltaPublisher": "publisher",
        "Latencies": "histogram",
        "Predictor": "predictor",
        "PredictorStats": "stats",
        "Request": "requests",
        "export": "exporting",
        "refresh_dense": "refresh",
    },
)

if not TYPE_CHECKING:  # else a misspelt name would be of any type
    __getattr__ = _get
