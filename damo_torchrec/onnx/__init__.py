"""Models as ONNX files that take raw ids: ``damo.onnx.export`` makes one, ``damo.onnx.session`` runs it.

Needs ``pip install 'damo-torchrec[onnx]'``; `session` needs neither torch nor TorchRec.
"""

from typing import TYPE_CHECKING

from damo_torchrec import lazy

if TYPE_CHECKING:
    from damo_torchrec.onnx.card import model_card as model_card
    from damo_torchrec.onnx.exporting import export as export
    from damo_torchrec.onnx.sessions import session as session

try:
    import onnx as _onnx
    import onnxscript as _onnxscript

    from damo_torchrec import onnx_runtime as _onnx_runtime
except ImportError as error:
    raise ImportError(f"damo_torchrec.onnx needs pip install 'damo-torchrec[onnx]': {error}") from error

del _onnx, _onnx_runtime, _onnxscript

__all__ = ["export", "model_card", "session"]
_get, __dir__ = lazy.attributes(__name__, {"export": "exporting", "model_card": "card", "session": "sessions"})

if not TYPE_CHECKING:  # else a misspelt name would be of any type
    __getattr__ = _get
