"""An HTTP server in front of a `Predictor`: what ``damo-torchrec serve`` runs.

Needs ``pip install 'damo-torchrec[serve]'``, and neither torch nor TorchRec.
"""

try:
    import fastapi as _fastapi
    import h11 as _h11
    import prometheus_client as _prometheus_client
    import uvicorn as _uvicorn
except ImportError as error:
    raise ImportError(f"a server needs pip install 'damo-torchrec[serve]': {error}") from error

del _fastapi, _h11, _prometheus_client, _uvicorn
