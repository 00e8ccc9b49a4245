"""`damo-torchrec export` and `import`."""

import errno
import os
import subprocess
import sys

import pytest

import damo_torchrec as damo
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.convert import arrow_files
from support import payloads

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")


def rows_of(store, table):
    with damo.EmbeddingStore(store, memory_budget="64MiB", read_only=True) as opened:
        return payloads(opened, table)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("table", ["t", "half"])
def test_a_table_goes_to_a_new_store_to_the_bit(trained_once, tmp_path, call, document, table, suffix):
    file, store = tmp_path / f"rows{suffix}", tmp_path / "new"
    status, lines, err = call("export", trained_once, table, file, "--state", "--counts")
    columns = "id, weight, exp_avg, exp_avg_sq, last_step, updates"
    n = len(rows_of(trained_once, table))
    assert (status, lines, err) == (0, [f"{file}: {n} rows of table {table!r}, with {columns}"], "")
    assert call("import", store, table, file)[0] == 2
    assert not store.exists()
    assert document("import", store, table, file, "--create")[1]["new"]
    assert rows_of(store, table) == rows_of(trained_once, table)
    assert document("import", store, table, file)[1] == {
        "schema": 1,
        "command": "import",
        "store": str(store),
        "table": table,
        "file": str(file),
        "rows": n,
        "new": False,
    }
    assert rows_of(store, table) == rows_of(trained_once, table)
    assert call("verify", store)[0] == 0


def test_other_readers_have_the_rows(trained_once, tmp_path, call, document):
    for file in (tmp_path / "rows.parquet", tmp_path / "rows.arrow"):
        assert call("export", trained_once, "t", file, "--checkpoint", "then")[0] == 0
        read = pq.read_table(file) if file.suffix == ".parquet" else feather.read_table(file)
        rows = document("head", trained_once, "t", "--checkpoint", "then")[1]["rows"]
        assert read.to_pylist() == [{"id": row["id"], "weight": row["weights"]} for row in rows]


def test_a_file_of_somebody_else_needs_options(trained, tmp_path, call):
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": [1, -2], "weight": [[1.0, 2.0], [3.0, 4.0]]}), file)
    status, _, err = call("import", trained, "u", file, "--optimizer", "ADAM")
    assert status == 2
    assert "nothing says what it is" in err
    options = ["--optimizer", "ADAM", "--num-embeddings", 100, "--dim", 2, "--row-dtype", "float16"]
    assert call("import", trained, "u", file, *options)[0] == 0
    table = Manifest.read(max((trained / "checkpoints").glob("step_*"))).tables["u"]
    assert (table.rows, table.schema.dim, table.schema.row_dtype) == (2, 2, "float16")
    assert table.schema.initializer == {"name": "Uniform", "low": -0.1, "high": 0.1}
    status, _, err = call("import", trained, "u", file, "--dim", 2)
    assert status == 2
    assert "--dim is of a new one" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "{store}", "t", "{tmp}/rows.csv"), "must end in .parquet or .arrow"),
        (("export", "{store}", "t", "{tmp}/text.parquet"), "exists already"),
        (("export", "{store}", "u", "{tmp}/rows.parquet"), "has no table 'u'"),
        (("export", "{store}", "t", "{tmp}/no/rows.parquet"), "No such file"),
        (("import", "{store}", "t", "{tmp}/none.parquet"), "No such file"),
        (("import", "{store}", "t", "{tmp}/text.parquet"), "cannot be read"),
        (("import", "{store}", "t", "{tmp}/text.arrow"), "cannot be read"),
    ],
)
def test_wrong_usage_is_told_and_leaves_nothing(trained, tmp_path, call, arguments, message):
    for name in ("text.parquet", "text.arrow"):
        (tmp_path / name).write_text("text")
    before = sorted(tmp_path.rglob("*"))
    status, lines, err = call(*(word.format(store=trained, tmp=tmp_path) for word in arguments))
    assert (status, lines) == (2, [])
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_rows_that_are_wrong_leave_the_store_at_its_checkpoint(trained, tmp_path, call):
    checkpoints = sorted((trained / "checkpoints").iterdir())
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": [1, 1], "weight": [[1.0] * 8] * 2}), file)
    status, _, err = call("import", trained, "t", file)
    assert status == 2
    assert "id 1 comes more than once" in err
    assert sorted((trained / "checkpoints").iterdir()) == checkpoints
    assert not (trained / "live").exists()


def test_a_damaged_file_is_refused(trained, tmp_path, call):
    file = tmp_path / "rows.parquet"
    assert call("export", trained, "t", file)[0] == 0
    content = bytearray(file.read_bytes())
    content[4:60] = bytes(56)
    file.write_bytes(content)
    status, lines, err = call("import", trained, "t", file)
    assert (status, lines) == (2, [])
    assert err.startswith(f"damo-torchrec: {file} cannot be read: ")


def test_a_full_disk_is_told_with_the_file(trained, tmp_path, call, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(arrow_files.os, "fsync", full)
    status, _, err = call("export", trained, "t", tmp_path / "rows.parquet")
    assert (status, err) == (2, f"damo-torchrec: [Errno 28] No space left on device: '{tmp_path / 'rows.parquet'}'\n")
    assert [path.name for path in tmp_path.iterdir()] == [trained.name]


def test_an_export_leaves_files_of_similar_names(trained_once, tmp_path, call):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / f".rows.parquet.{os.getpid()}.0.damo-staged").symlink_to("precious")
    assert call("export", trained_once, "t", tmp_path / "rows.parquet")[0] == 0
    assert (tmp_path / "precious").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("command", ["export", "import"])
def test_without_pyarrow_it_is_said_how_to_get_it(trained_once, tmp_path, command):
    script = "import sys; sys.modules['pyarrow'] = None; from damo_torchrec.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, command, trained_once, "t", tmp_path / "rows.parquet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'damo-torchrec[arrow]'" in done.stderr
