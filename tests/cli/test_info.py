"""`damo-torchrec info`."""

import shutil
from datetime import datetime, timezone

import torch

import damo_torchrec as damo
from damo_torchrec.checkpoints.manifest import Manifest
from support import config, small_store


def test_info_tells_what_a_checkpoint_is(sample, call):
    status, lines, _ = call("info", sample.checkpoint)
    manifest = Manifest.read(sample.checkpoint)
    size = sum(file.stat().st_size for file in sample.checkpoint.rglob("*") if file.is_file())
    size -= (sample.checkpoint / "manifest.json").stat().st_size
    made = datetime.fromtimestamp((sample.checkpoint / "manifest.json").stat().st_mtime, timezone.utc)
    rows = {name: table.rows for name, table in manifest.tables.items()}
    assert status == 0
    assert lines == [
        f"checkpoint {sample.checkpoint}",
        f"made {made.isoformat(timespec='seconds')}",
        f"step 0, seed 0, {size} bytes, with a dense part",
        "table  rows  dim  weights  optimizer        updates",
        f"a      {rows['a']}  8    float32  ROWWISE_ADAGRAD  0",
        f"b      {rows['b']}  4    float32  ROWWISE_ADAGRAD  0",
        f"half   {rows['half']}  5    float16  ROWWISE_ADAGRAD  0",
    ]


def test_info_lists_a_stores_checkpoints_and_tells_of_the_newest(sample, call, tmp_path):
    status, lines, _ = call("info", sample.store)
    names = ["step_0", *(f"step_0.{i}" for i in range(1, 8))]
    assert status == 0
    assert lines[:2] == [f"store {sample.store}", f"checkpoints, oldest first: {', '.join(names)}"]
    assert lines[2:] == call("info", sample.checkpoint)[1]

    shutil.copytree(sample.store, tmp_path / "store")
    damaged = tmp_path / "store" / "checkpoints" / "step_0.7" / "manifest.json"
    damaged.unlink()
    status, lines, _ = call("info", tmp_path / "store")
    assert status == 1
    assert str(damaged.parent) in lines[0]
    assert lines[3] == f"checkpoint {damaged.parent.with_name('step_0.6')}"


def test_info_tells_how_long_rows_live(call, tmp_path):
    options = damo.TableOptions(expire=[damo.Idle(days=30)], max_rows=9)
    with small_store(tmp_path / "store") as store:
        damo.EmbeddingBagCollection(
            [config("t", 4)], torch.optim.SGD, {"lr": 0.1}, store=store, table_options={"t": options}
        )
    status, lines, _ = call("info", tmp_path / "store")
    assert (status, lines[-1]) == (0, "rows of t live by: expire=[Idle(days=30)], max_rows=9")
