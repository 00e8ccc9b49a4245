"""Rows whose checksums all match, but which no store wrote: refused by whatever reads them, and nothing crashes."""

import os
import shutil
import struct
from dataclasses import asdict
from pathlib import Path

import pytest
import rocksdict
import torch

import damo_torchrec as damo
from damo_torchrec import _core
from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.rescue.verification import verify
from forging import forge
from mixed_run import collection, update
from support import small_store


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """With ten rows of the table ``t``, in table files."""
    where = tmp_path_factory.mktemp("checkpoint")
    with small_store(where / "store") as store:
        update(collection(store, "t"), {"t": [list(range(10))]})
        store.flush()
        return store.checkpoint(where / "made")


def key(number: int, row_id: int) -> bytes:
    return struct.pack(">IQ", number, (row_id & (2**64 - 1)) ^ (1 << 63))


def with_records(checkpoint: Path, target: Path, records: dict[bytes, bytes]) -> Path:
    """A copy with more records in a table file, as another program's RocksDB writes them."""
    shutil.copytree(checkpoint, target)
    rows = rocksdict.Rdict(str(target / "rows"), rocksdict.Options(raw_mode=True))
    for name, value in records.items():
        rows[name] = value
    rows.flush()
    rows.close()
    for name in ("LOG", "LOCK", "IDENTITY", "rocksdict-config.json"):
        (target / "rows" / name).unlink(missing_ok=True)
    for left in [*(target / "rows").glob("LOG.old.*"), *(target / "rows").glob("*.log")]:
        left.unlink()

    def describe(manifest):
        kept = {name: entry for name, entry in manifest["files"].items() if not name.startswith("rows/")}
        files = {f"rows/{file.name}": asdict(FileEntry.of(file)) for file in (target / "rows").iterdir()}
        manifest["files"] = {**kept, **files}
        manifest["tables"]["t"]["rows"] += len(records)

    forge(target, describe)
    return target


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (key(1, 5)[:5], b"\1" + bytes(40)),
        (key(1, 5) + b"x", b"\1" + bytes(40)),
        (key(1, 77), b"\1" + bytes(3)),
        (key(1, 77), b""),
        (key(1, 77), b"\7" + bytes(40)),
    ],
    ids=["short key", "long key", "short row", "no row", "version"],
)
def test_records_that_no_store_writes_are_corruption_wherever_they_are_read(checkpoint, tmp_path, name, value):
    path = with_records(checkpoint, tmp_path / "forged", {name: value})
    for where, how in ((path, {"read_only": True}), (tmp_path / "store", {"restore": path})):
        with damo.EmbeddingStore(where, memory_budget="64MiB", **how) as store:
            collection(store, "t")
            with pytest.raises(damo.CorruptionError, match="table 1"):
                store.table("t").to_torch()


@pytest.mark.parametrize("name", [b"", b"\0", b"\xff" * 12, b"\xff" * 40, key(2**31 - 1, 5)])
def test_keys_before_and_behind_those_of_all_tables_are_corruption_at_the_opening(checkpoint, tmp_path, name):
    path = with_records(checkpoint, tmp_path / "forged", {name: b"\1" + bytes(40)})
    for where, how in ((path, {"read_only": True}), (tmp_path / "store", {"restore": path})):
        with pytest.raises(damo.CorruptionError, match="has rows of a table of a number from"):
            damo.EmbeddingStore(where, memory_budget="64MiB", **how)
    assert any(verify(path, lambda *_: None))


@pytest.mark.parametrize("dim", [_core.MOST_DIM + 1, 2**30 + 1, 1431655766, 2**31 - 1])
def test_a_dim_beyond_the_cap_is_refused_and_told(checkpoint, tmp_path, dim):
    path = shutil.copytree(checkpoint, tmp_path / "forged")
    forge(path, lambda manifest: manifest["tables"]["t"]["schema"].update(dim=dim))
    with pytest.raises(damo.CorruptionError, match=rf"manifest.json .*{dim}"):
        damo.EmbeddingStore(path, memory_budget="64MiB", read_only=True)
    schema = _core.TableSchema()
    schema.dim = dim
    schema.optimizer = _core.OptimizerConfig("AMSGRAD")
    with pytest.raises(ValueError, match=rf"dim must be in 1..{_core.MOST_DIM}, got {dim}"):
        _core.payload_size(schema)


@pytest.mark.parametrize("place", ["manifest.json", "rows/CURRENT", "rows/MANIFEST", "rows/.sst", "origin.json"])
@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_what_is_no_regular_file_in_a_checkpoint_is_corruption(checkpoint, tmp_path, place, kind):
    path = shutil.copytree(checkpoint, tmp_path / "copy")
    folder, _, name = place.rpartition("/")
    file = next(f for f in (path / folder).iterdir() if f.name.startswith(name) or f.suffix == name)
    file.rename(tmp_path / "moved")
    file.symlink_to(tmp_path / "moved") if kind == "link" else os.mkfifo(file)
    with pytest.raises(damo.CorruptionError, match=file.name):
        damo.EmbeddingStore(path, memory_budget="64MiB", read_only=True)
    with pytest.raises(damo.CorruptionError, match=file.name):
        damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB", restore=path)


def test_a_link_beside_the_rows_is_not_copied(checkpoint, tmp_path):
    (tmp_path / "secret").write_text("secret")
    path = shutil.copytree(checkpoint, tmp_path / "copy")
    (path / "rows" / "notes.txt").symlink_to(tmp_path / "secret")
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB", restore=path) as store:
        assert len(store.table("t")) == 10
    assert not list((tmp_path / "store").rglob("notes.txt"))


# ---------------------------------------------------------------- arrays of any shape


@pytest.mark.parametrize("stride", [1, 2, -1])
def test_ids_and_weights_of_any_strides_are_taken_as_they_read(memory_store, stride):
    update(collection(memory_store, "t"), {"t": [[1]]})
    table = memory_store.table("t")
    ids = torch.arange(8)[:: abs(stride)]
    weights = torch.rand(table.dim, len(ids)).t()
    if stride < 0:
        ids, weights = ids.flip(0), weights.flip(0)
    table.set(ids, weights)
    assert torch.equal(table.get(ids), weights)
    expanded = torch.tensor([3]).expand(5)
    assert torch.equal(table.get(expanded), table.get(torch.tensor([3] * 5)))
    table.delete(expanded)
    assert not table.contains(expanded).any()


def test_no_ids_are_as_good_as_any(memory_store):
    update(collection(memory_store, "t"), {"t": [[1]]})
    table = memory_store.table("t")
    none = torch.empty(0, dtype=torch.int64)
    table.set(none, torch.empty(0, table.dim))
    table.delete([])
    assert table.get(none).shape == (0, table.dim)
    assert table.contains(none).shape == (0,)
