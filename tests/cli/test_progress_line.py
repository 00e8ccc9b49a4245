"""`damo_torchrec.cli.progress_line`."""

import io
import sys

from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.cli import main as cli


def test_progress_is_shown_on_a_terminal_alone(sample, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert cli.main(["verify", str(sample.checkpoint)]) == 0
        rows = sum(table.rows for table in Manifest.read(sample.checkpoint).tables.values())
        assert (f"rows of {sample.checkpoint}: {rows} of {rows}" in stream.getvalue()) == shown
        assert stream.getvalue().endswith("\x1b[K" if shown else "")
