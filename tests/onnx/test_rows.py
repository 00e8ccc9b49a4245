"""Rows for serving: files are read and looked up with numpy, by the formulas of docs/serving.md alone."""

import functools
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

import damo_torchrec as damo
from damo_torchrec import _core
from damo_torchrec.onnx.row_dtypes import ROW_DTYPES, DtypeName
from support import config, kjt, small_store

INT64 = torch.iinfo(torch.int64)
EXTREMES = [0, 1, -1, INT64.min, INT64.max, 1 << 32, -(1 << 32), (1 << 32) - 1]
DTYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8}
MEMORY = 64 << 20


@dataclass
class Group:
    """A row group's arrays, and where its tables are."""

    tables: list[_core.ServingTable]
    parts: np.ndarray
    keys: np.ndarray
    buckets: np.ndarray
    rows: np.ndarray
    scales: np.ndarray | None

    def find(self, table: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each id's row, 0 for none, and whether it has one."""
        c1, c2, c3 = (np.uint64(number) for number in _core.PERFECT_HASH_CONSTANTS)
        place = self.tables[table]
        h = ids.astype(np.int64).view(np.uint64)
        h = (h ^ (h >> np.uint64(32))) * c1
        h = (h ^ (h >> np.uint64(29))) * c2
        bucket = self.buckets[place.first_bucket + (h.view(np.int64) & place.bucket_mask)]
        part = self.parts[bucket & 0xFFFFFF]
        number = ((h ^ bucket.view(np.uint64)) * c3).view(np.int64).astype(np.float64)
        row = part["middle_row"] + (number * part["row_scale"]).astype(np.int64)
        row = np.where(self.keys[row] == ids, row, 0)
        return row, row != 0

    def weights(self, row: np.ndarray) -> np.ndarray:
        """What rows read as."""
        stored = self.rows[row].astype(np.float32)
        return stored if self.scales is None else stored * self.scales[row, None]


def add(group, snapshot, position, row_filter=None, progress=lambda rows: None):
    return group.add(snapshot, position, row_filter or _core.RowFilter(), progress)


def serving_rows(directory: Path, dim: int, dtype: str = "float32", shard_rows: int = 1 << 20, threads: int = 2):
    return _core.ServingRows(str(directory), "g", dim, dtype, shard_rows, MEMORY, threads)


def read(directory: Path, dim: int, dtype: str, group: _core.ServingRows, tables: list[_core.ServingTable]) -> Group:
    shards = [np.fromfile(directory / f"g.rows.{shard}", DTYPES[dtype]) for shard in range(group.num_shards)]
    scales = directory / "g.scales"
    assert scales.exists() == (dtype == "int8")
    result = Group(
        tables,
        np.frombuffer(group.parts, [("middle_row", np.int64), ("row_scale", np.float64)]),
        np.fromfile(directory / "g.keys", np.int64),
        np.fromfile(directory / "g.buckets", np.int64),
        np.concatenate(shards).reshape(-1, dim),
        np.fromfile(scales, np.float32) if scales.exists() else None,
    )
    assert len(result.keys) == len(result.rows) == group.num_rows
    assert len(result.buckets) == group.num_buckets
    assert not list(directory.glob("*spill*"))
    return result


def collection(store, names, dim=4, **options):
    return damo.EmbeddingBagCollection(
        [config(name, dim) for name in names],
        torch.optim.SGD,
        {"lr": 0.1},
        store=store,
        table_options={name: damo.TableOptions(**options) for name in names},
    )


def snapshot_of(store, *names):
    return _core.RowSnapshot(store.session.engine, [store.table(name).opened.index for name in names])


def export(directory, store, names, dtype="float32", shard_rows=1 << 20, threads=2, row_filter=None):
    dim = store.table(names[0]).dim
    group = serving_rows(directory, dim, dtype, shard_rows, threads)
    snapshot = snapshot_of(store, *names)
    tables = [add(group, snapshot, i, row_filter) for i in range(len(names))]
    group.finish()
    return read(directory, dim, dtype, group, tables)


def kept(group: Group, ids) -> set[int]:
    """Which of the ids have rows."""
    return set(np.asarray(ids)[group.find(0, np.asarray(ids))[0] != 0].tolist())


@functools.cache
def many_ids() -> np.ndarray:
    generator = np.random.default_rng(0)
    drawn = generator.integers(INT64.min, INT64.max, 3000, endpoint=True)
    steps = [np.arange(2000) * step for step in (1, -7, 1 << 32, 1 << 48)]
    return np.unique(np.concatenate([drawn, *steps, EXTREMES]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_is_found_and_no_other(store, tmp_path, dtype):
    dim = 5
    names = ["many", "none", "one", "few"]
    collection(store, names, dim)
    ids = {"many": many_ids(), "none": many_ids()[:0], "one": np.array([INT64.min]), "few": np.array(EXTREMES)}
    generator = np.random.default_rng(1)
    rows = {name: generator.normal(size=(len(ids[name]), dim)).astype(np.float32) for name in names}
    for name in names:
        store.table(name).set(torch.from_numpy(ids[name]), torch.from_numpy(rows[name]))
    # Tables run over the ends of shards.
    group = export(tmp_path, store, names, dtype, shard_rows=701)
    assert not group.rows[0].any()
    assert len(group.keys) < 1.02 * sum(map(len, ids.values())) + 2 * len(names) + 8
    absent = np.setdiff1d(generator.integers(INT64.min, INT64.max, 5000, endpoint=True), many_ids())
    for i, name in enumerate(names):
        assert group.tables[i].rows == len(ids[name])
        row, hit = group.find(i, ids[name])
        assert hit.all()
        assert len(np.unique(row)) == len(row)
        weights = group.weights(row)
        if dtype == "float32":
            np.testing.assert_array_equal(weights, rows[name])
        elif dtype == "float16":
            np.testing.assert_array_equal(weights, rows[name].astype(np.float16))
        else:
            step = np.abs(rows[name]).max(axis=1, keepdims=True) / np.float32(127)
            assert (np.abs(weights - rows[name]) <= step * 0.5001).all()
        row, hit = group.find(i, np.setdiff1d([*absent, *EXTREMES], ids[name]))
        assert not hit.any()
        assert not group.weights(row).any()


@pytest.mark.parametrize("row_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_float16_is_rounded_as_torch_and_numpy_do(store, tmp_path, row_dtype):
    collection(store, ["t"], 8, row_dtype=row_dtype)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, 8, generator=generator) * 10 ** torch.linspace(-9, 4, 4000)[:, None]
    values[0] = torch.tensor([0.0, -0.0, 65504.0, 65519.99, -65519.99, 6e-8, 2.9e-8, 6.097e-5])
    ids = torch.arange(4000)
    store.table("t").set(ids, values.clamp(-6e4, 6e4) if row_dtype is torch.bfloat16 else values)
    group = export(tmp_path, store, ["t"], "float16")
    row, hit = group.find(0, ids.numpy())
    assert hit.all()
    expected = store.table("t").get(ids)
    assert (
        group.rows[row].tobytes() == expected.half().numpy().tobytes() == expected.numpy().astype(np.float16).tobytes()
    )


def test_int8_rows_are_rounded_to_even_with_a_scale_of_their_own(store, tmp_path):
    collection(store, ["t"], 6)
    rows = np.zeros((5, 6), np.float32)
    rows[1] = [127, 0.5, 1.5, 2.5, -0.5, -126.5]
    rows[2] = [-254, 1, 3, -1, -5, 254]
    rows[3, 0] = 1e-45
    rows[4] = np.random.default_rng(0).normal(size=6)
    store.table("t").set(torch.arange(5), torch.from_numpy(rows))
    group = export(tmp_path, store, ["t"], "int8")
    row, _ = group.find(0, np.arange(5))
    q, scales = group.rows[row], group.scales[row]
    np.testing.assert_array_equal(scales, np.abs(rows).max(axis=1) / np.float32(127))
    assert q[:3].tolist() == [[0] * 6, [127, 0, 2, 2, 0, -126], [-127, 0, 2, 0, -2, 127]]
    assert not q[3].any()
    assert q[4].tolist() == np.rint(rows[4] / scales[4]).tolist()


def test_weights_beyond_float16_are_refused(store, tmp_path):
    collection(store, ["t"])
    rows = torch.zeros(10, 4)
    rows[7, 2] = 65520
    store.table("t").set(torch.arange(10), rows)
    group = serving_rows(tmp_path, 4, "float16")
    snapshot = snapshot_of(store, "t")
    with pytest.raises(
        ValueError, match=r'table "t", id 7: weight 2 is 65520.*, beyond float16\'s largest number, 65504'
    ):
        add(group, snapshot, 0)
    with pytest.raises(ValueError, match="given up after an error"):
        add(group, snapshot, 0)
    with pytest.raises(ValueError, match="given up after an error"):
        group.finish()


def test_filters(memory_store, tmp_path):
    module = collection(memory_store, ["t"])
    # Id i is updated in steps i + 1 to 20: 20 - i times. Ids below 0 as often as id 10, but before.
    for step in range(20):
        late = [i for i in range(20) if step >= i]
        early = [-1, -2, -3] if step < 10 else []
        module(kjt({"t": [late + early]})).values().sum().backward()
    ids = np.arange(-3, 20)
    count = np.where(ids < 0, 10, 20 - ids)
    last = np.where(ids < 0, 10, 20)

    def exported(**options):
        row_filter = _core.RowFilter()
        for name, value in options.items():
            setattr(row_filter, name, value)
        directory = tmp_path / repr(options)
        directory.mkdir()
        return kept(export(directory, memory_store, ["t"], row_filter=row_filter), ids)

    assert exported() == set(ids)
    assert exported(min_count=11) == set(ids[count >= 11])
    assert exported(min_count=10) == set(ids[count >= 10])
    assert exported(min_last_step=11) == set(ids[last >= 11])
    assert exported(min_last_step=21) == set()
    assert exported(min_count=11, min_last_step=11) == set(range(10))
    assert exported(top_n=0) == set()
    assert exported(top_n=4) == {0, 1, 2, 3}
    # Four rows have 10 updates; those with the smallest ids are taken.
    assert exported(top_n=12) == {*range(10), -3, -2}
    assert exported(top_n=12, min_last_step=11) == set(range(12))
    assert exported(top_n=1000) == set(ids)


def test_neither_memory_nor_threads_change_a_bit(tmp_path):
    with small_store() as store:
        collection(store, ["t"], 64)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(INT64.min, INT64.max, (150_000,), generator=generator).unique()
        store.table("t").set(ids, torch.randn(len(ids), 64, generator=generator))
        snapshot = snapshot_of(store, "t")
        contents = []
        for memory, threads in ((32 << 20, 1), (64 << 20, 3), (1 << 30, 1), (1 << 30, 3)):
            directory = tmp_path / f"{memory}-{threads}"
            directory.mkdir()
            group = _core.ServingRows(str(directory), "g", 64, "float32", 100_000, memory, threads)
            spilled = []
            add(group, snapshot, 0, progress=lambda _, d=directory, s=spilled: s.extend(d.glob("*spill*")))
            group.finish()
            assert bool(spilled) == (memory < 1 << 30)
            assert not list(directory.glob("*spill*"))
            contents.append({file.name: file.read_bytes() for file in directory.iterdir()})
            contents[-1]["parts"] = group.parts
            assert sorted(contents[-1]) == ["g.buckets", "g.keys", "g.rows.0", "g.rows.1", "parts"]
        assert all(other == contents[0] for other in contents[1:])


def test_a_snapshot_is_of_one_moment(store, tmp_path):
    module = collection(store, ["a", "b"])
    ids = torch.arange(100)
    for name in ("a", "b"):
        store.table(name).set(ids, torch.ones(100, 4))
    module(kjt({"a": [[1]], "b": [[1]]})).values().sum().backward()
    before = {name: store.table(name).get(ids).numpy() for name in ("a", "b")}
    snapshot = snapshot_of(store, "b", "a")
    module(kjt({"a": [[2, 500]], "b": [[3]]})).values().sum().backward()
    store.table("b").delete(ids[:50])
    store.flush()
    assert [(state.iter, state.rows) for state in snapshot.states] == [(1, 100), (1, 100)]
    group = serving_rows(tmp_path, 4)
    tables = [add(group, snapshot, position) for position in (1, 0, 1)]
    group.finish()
    found = read(tmp_path, 4, "float32", group, tables)
    for i, name in enumerate(("a", "b", "a")):
        row, hit = found.find(i, ids.numpy())
        assert hit.all()
        np.testing.assert_array_equal(found.weights(row), before[name])
        assert not found.find(i, np.array([500]))[1].any()


def test_a_snapshot_ends_with_its_store(tmp_path):
    store = small_store(tmp_path / "store")
    collection(store, ["t"])
    store.table("t").set(torch.arange(10), torch.ones(10, 4))
    snapshot = snapshot_of(store, "t")
    store.close()
    group = serving_rows(tmp_path, 4)
    with pytest.raises(damo.errors.StoreClosedError):
        add(group, snapshot, 0)
    with pytest.raises(damo.errors.StoreClosedError):
        _core.RowSnapshot(store.session.engine, [0])


def test_progress_may_end_it_and_so_may_a_signal(memory_store, tmp_path):
    collection(memory_store, ["t"], 1)
    memory_store.table("t").set(torch.arange(50_000), torch.ones(50_000, 1))
    snapshot = snapshot_of(memory_store, "t")
    seen = []
    (tmp_path / "whole").mkdir()
    add(serving_rows(tmp_path / "whole", 1), snapshot, 0, progress=seen.append)
    assert seen == sorted(seen)
    assert len(seen) > 2
    assert seen[-1] == 50_000

    class StopError(Exception):
        pass

    def stop(rows):
        raise StopError

    group = serving_rows(tmp_path, 1)
    with pytest.raises(StopError):
        add(group, snapshot, 0, progress=stop)
    with pytest.raises(ValueError, match="given up"):
        group.finish()
    (tmp_path / "other").mkdir()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            add(
                serving_rows(tmp_path / "other", 1),
                snapshot,
                0,
                progress=lambda rows: os.kill(os.getpid(), signal.SIGINT),
            )
    finally:
        signal.signal(signal.SIGINT, before)


def test_type_checkers_know_the_dtypes_of_the_engine():
    assert get_args(DtypeName) == tuple(ROW_DTYPES)


def test_wrong_calls_are_refused(memory_store, tmp_path):
    collection(memory_store, ["t"])
    snapshot = snapshot_of(memory_store, "t")
    with pytest.raises(ValueError, match='table "t": expected rows of dim 8, found 4'):
        add(serving_rows(tmp_path, 8), snapshot, 0)
    with pytest.raises(ValueError, match="exists"):
        serving_rows(tmp_path, 8)
    with pytest.raises(ValueError, match=f"memory_bytes must be at least {_core.LEAST_SERVING_MEMORY}, got 1000"):
        _core.ServingRows(str(tmp_path), "h", 4, "float32", 10, 1000, 1)
    with pytest.raises(ValueError, match="shard_rows must be at least 1, got 0"):
        _core.ServingRows(str(tmp_path), "h", 4, "float32", 0, MEMORY, 1)
    with pytest.raises(damo.errors.DamoError, match=r"no/h\.keys"):
        _core.ServingRows(str(tmp_path / "no"), "h", 4, "float32", 10, MEMORY, 1)
