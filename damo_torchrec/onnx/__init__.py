"""Models as ONNX files that take raw ids: ``damo.onnx.export`` makes one, ``damo.onnx.session`` runs it.

Needs ``pip install 'damo-torchrec[onnx]'``.
"""

try:
    import onnx as _onnx
    import onnxscript as _onnxscript

    from damo_torchrec import onnx_runtime as _onnx_runtime
except ImportError as error:
    raise ImportError(f"damo_torchrec.onnx needs pip install 'damo-torchrec[onnx]': {error}") from error

from damo_torchrec.onnx.card import model_card
from damo_torchrec.onnx.export import export
from damo_torchrec.onnx.session import session

del _onnx, _onnx_runtime, _onnxscript

__all__ = ["export", "model_card", "session"]
