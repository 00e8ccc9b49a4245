"""What the package says under the logger `damo_torchrec`: INFO for what is routine, WARNING for what is set aside."""

import logging
import re
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
import processes
from mixed_run import collection
from support import kjt, needs_onnxruntime, small_store


@pytest.fixture
def said(caplog, tmp_path):
    """The lines of a level, on this test's stores, since it was asked last; the others are of no level above INFO."""
    caplog.set_level(logging.INFO, "damo_torchrec")

    def lines(level: int = logging.INFO) -> list[str]:
        ours = (record for record in caplog.records if record.name.startswith("damo_torchrec"))
        records = [record for record in ours if str(tmp_path) in record.getMessage()]
        found = [record.getMessage() for record in records if record.levelno == level]
        assert level > logging.INFO or len(found) == len(records)
        caplog.clear()
        return found

    return lines


def figures(line: str, pattern: str) -> dict[str, str]:
    """The named parts of a line."""
    match = re.fullmatch(pattern, line)
    assert match is not None, line
    return match.groupdict()


SECONDS = r"in \d+\.\d s"
SIZE = r"(?P<tables>\d+) tables, (?P<rows>\d+) rows, (?P<bytes>\d+) bytes"


def bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_a_stores_life_is_logged(tmp_path, said):
    path = tmp_path / "store"
    store = small_store(path)
    collection(store, "t")
    made, first = said()
    assert made == f"made the store {path}, in {64 << 20} bytes of memory"
    assert (
        figures(first, rf"made the checkpoint {path}/checkpoints/step_0: step 0, {SIZE}, .*, {SECONDS}")["rows"] == "0"
    )

    store.table("t").set(range(500), torch.ones(500, 4))
    checkpoint = store.checkpoint()
    (line,) = said()
    size = figures(line, rf"made the checkpoint {checkpoint}: step 0, {SIZE}, whose files are shared .*, {SECONDS}")
    assert size == {"tables": "1", "rows": "500", "bytes": str(bytes_of(checkpoint))}

    store.table("t").set([1], torch.ones(1, 4))
    in_background = store.checkpoint_async(link=False).result()
    (line,) = said()
    assert figures(line, rf"made the checkpoint {in_background}: step 0, {SIZE}, copied, {SECONDS}")["rows"] == "500"

    store.table("t").delete([0, 1])
    store.export_delta(tmp_path / "delta", since=checkpoint)
    (line,) = said()
    figures(line, rf"wrote the delta {tmp_path}/delta: steps 0 to 0, .* and 2 deleted rows, \d+ bytes, {SECONDS}")

    store.restore(checkpoint)
    (line,) = said()
    of = rf"the store {path} at {checkpoint}: step 0, {SIZE}, {SECONDS}"
    assert figures(line, f"restored {of}")["rows"] == "500"

    store.close()
    last, closed = said()
    newest = path / "checkpoints" / "step_0.3"
    figures(last, rf"made the checkpoint {newest}: .*")
    figures(closed, rf"closed the store {path} {SECONDS}")

    of = rf"the store {path} at {newest}: step 0, {SIZE}, {SECONDS}"
    with small_store(path):
        (line,) = said()
        opened = figures(line, f"opened {of}")
    manifest = (newest / "manifest.json").stat().st_size
    assert opened == {"tables": "1", "rows": "500", "bytes": str(bytes_of(newest) - manifest)}
    said()
    with damo.EmbeddingStore(path, memory_budget="64MiB", read_only=True):
        (line,) = said()
        assert figures(line, f"opened, to read alone, {of}")["rows"] == "500"


def train_and_die(path: Path) -> None:
    store = small_store(path)
    collection(store, "t")(kjt({"t": [[1]]})).values().sum().backward()
    processes.kill_this_process()


def test_a_recovery_is_a_warning_that_says_from_what_to_what(tmp_path, said):
    path = tmp_path / "store"
    processes.run_until_killed(train_and_die, path)
    small_store(path).close()
    (line,) = said(logging.WARNING)
    assert line == (
        f"the store {path} was not closed: it goes back to step_0 (step 0), and what came after it is set aside in "
        "live.unclean-1"
    )


def test_a_checkpoint_that_is_pruned_is_logged(tmp_path, said):
    with small_store(tmp_path / "store") as store:
        model = torch.nn.ModuleList([collection(store, "t")])
        manager = damo.CheckpointManager(tmp_path / "run", every_steps=1, keep=1)
        for step in range(2):
            manager.save(model, step)
            manager.wait()
    removed = [line for line in said() if line.startswith("removed")]
    gone = tmp_path / "run" / "step_0"
    assert removed == [f"removed the checkpoint {gone}: the newest 1 of CheckpointManager's stay"]


@needs_onnxruntime
def test_an_export_is_logged(tmp_path, said):
    class Model(torch.nn.Module):
        def __init__(self, store: damo.EmbeddingStore) -> None:
            super().__init__()
            self.ebc = collection(store, "t")

        def forward(self, features: object) -> torch.Tensor:
            return self.ebc(features).values()

    with small_store(tmp_path / "store") as store:
        model = Model(store)
        store.table("t").set(range(20), torch.ones(20, 4))
        said()
        damo.onnx.export(model, (kjt({"t": [[1]]}),), tmp_path / "model")
        (line,) = said()
    figures(line, rf"exported 20 rows of 1 tables to {tmp_path}/model/model.onnx, {SECONDS}")


def print_by_default(directory: Path) -> None:
    with damo.EmbeddingStore(directory / "store", memory_budget="64MiB") as store:
        collection(store, "t")
        store.table("t").set(range(100_000), torch.ones(100_000, 4))
        store.checkpoint()
        store.restore()


def test_a_program_that_configures_nothing_prints_nothing(tmp_path):
    done = processes.run_program(print_by_default, tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
