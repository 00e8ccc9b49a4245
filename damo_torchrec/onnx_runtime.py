"""ONNX Runtime as this package uses it: recent enough, and without telemetry.

From 1.29 on its builds for Linux send what they run to Microsoft, and keep a device's number and a database under
``~/.cache/Microsoft``, from their import on. That is switched off here, in full if nobody has imported it before.
"""

import os
import re
from pathlib import Path
from typing import Any

from damo_torchrec.errors import CorruptionError, DamoError

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when it is imported

import onnxruntime

# The first that lets no graph, given as a file or as bytes, read data outside of its directory: by "..", an absolute
# path or a link.
LEAST_VERSION = (1, 25)


def open_session(
    graph: bytes | Path, file: Path, options: onnxruntime.SessionOptions, **more: Any
) -> onnxruntime.InferenceSession:
    """A session of a graph that was checked (`graph_check`).

    Args:
        graph: its content, or its file.
        file: where it was read, for messages.
        options: an `onnxruntime.SessionOptions`.
        more: arguments of `onnxruntime.InferenceSession`.

    Raises:
        CorruptionError: it is no graph that ONNX Runtime can run.
        DamoError: this ONNX Runtime is older than `LEAST_VERSION`.
    """
    if _version(onnxruntime.__version__) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise DamoError(
            f"ONNX Runtime {onnxruntime.__version__} does not keep graphs from reading files elsewhere: expected "
            f"{least} or later"
        )
    if hasattr(onnxruntime, "disable_telemetry_events"):  # what the variable misses if it was imported earlier
        onnxruntime.disable_telemetry_events()
    more.setdefault("providers", ["CPUExecutionProvider"])
    try:
        return onnxruntime.InferenceSession(str(graph) if isinstance(graph, Path) else graph, options, **more)
    except (TypeError, ValueError):  # of other arguments
        raise
    except Exception as error:  # ONNX Runtime's, which have no common base
        raise CorruptionError(f"{file} is no graph that ONNX Runtime can run: {error}") from error


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
