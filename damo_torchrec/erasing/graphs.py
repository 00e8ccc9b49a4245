"""Exported graphs, of which nothing is known here: the room that makes them does it."""

import importlib
from pathlib import Path

from damo_torchrec.erasing.report import ForgetReport
from damo_torchrec.erasing.wanted import Wanted


def erase_from_graph(path: Path, wanted: Wanted, report: ForgetReport) -> None:
    """Has nothing left of the wanted rows in a graph, and says so in the report, or why that cannot be.

    Args:
        path: a graph's file, or the directory that it is in.
        wanted: rows, by the names of tables.
        report: gets what was done. With its `dry_run` nothing is.
    """
    try:
        # By its name: it lies above, and needs packages that stores do without.
        onnx = importlib.import_module("damo_torchrec.onnx.forgetting")
    except ImportError as error:
        report.leave(path, "export", f"it may hold them, and needs packages to be read: {error}")
        return
    onnx.erase_from_graph(path, wanted, report)
