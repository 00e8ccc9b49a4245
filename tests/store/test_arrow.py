"""`Table.to_arrow`, `from_arrow` and `EmbeddingStore.table_from_arrow`, read and written by pyarrow and DuckDB."""

import numpy as np
import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.convert.arrow_files import read_rows, write_rows
from support import config, kjt, payloads, small_store

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"lr": 0.1}),
    "ADAM": (torch.optim.Adam, {"lr": 0.1}),
    "AMSGRAD": (torch.optim.Adam, {"lr": 0.1, "amsgrad": True}),
    "ADAGRAD": (torch.optim.Adagrad, {"lr": 0.1}),
}
ALL = {"state": True, "counts": True}


def collection(store, optimizer="ADAM", dtype=torch.float32, dim=4):
    kind, kwargs = OPTIMIZERS[optimizer]
    options = {"t": damo.TableOptions(row_dtype=dtype)}
    return damo.EmbeddingBagCollection([config("t", dim)], kind, kwargs, store=store, table_options=options)


def train(ebc, steps=range(4)):
    for step in steps:
        ids = np.random.default_rng(step).integers(-40, 40, 30).tolist()
        ebc(kjt({"t": [[*ids, 2**63 - 1], [-(2**63)]]})).values().square().sum().backward()


@pytest.fixture
def store(tmp_path):
    """An open store with a table that was trained."""
    with small_store(tmp_path / "trained") as opened:
        train(collection(opened))
        yield opened


@pytest.fixture
def trained(store):
    """That table."""
    return store.table("t")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_table_goes_on_to_the_bit_in_another_store(tmp_path, optimizer, dtype, suffix):
    with small_store(tmp_path / "a") as first, small_store(tmp_path / "b") as second:
        ebc = collection(first, optimizer, dtype)
        train(ebc)
        table = first.table("t")
        file = tmp_path / f"rows{suffix}"
        assert write_rows(file, table.to_arrow(**ALL, batch_size=7), lambda n: None) == len(table)
        with read_rows(file) as (rows, total):
            assert total == len(table)
            made = second.table_from_arrow("t", rows)
        assert (len(made), made.iter, second.step) == (len(table), 4, 4)
        assert payloads(second, "t") == payloads(first, "t")
        del made
        other = collection(second, optimizer, dtype)
        for one in (ebc, other):
            train(one, range(4, 6))
        assert payloads(second, "t") == payloads(first, "t")
        expected = payloads(second, "t")
        second.checkpoint(tmp_path / "checkpoint")
    with damo.EmbeddingStore(tmp_path / "checkpoint", memory_budget="64MiB", read_only=True) as stored:
        assert payloads(stored, "t") == expected


def test_pyarrow_reads_what_the_table_says(trained):
    columns = trained.to_arrow(**ALL).read_all()
    ids, weights = trained.to_torch()
    known = trained.metadata(ids)
    assert columns["id"].to_pylist() == ids.tolist()
    assert columns["weight"].to_pylist() == weights.tolist()
    assert columns["last_step"].to_pylist() == known.last_step.tolist()
    assert columns["updates"].to_pylist() == known.updates.tolist()
    for name, values in trained.get_state(ids).items():
        assert columns[name].to_pylist() == values.tolist()
    assert not any(field.nullable for field in columns.schema)
    assert trained.to_arrow().schema.names == ["id", "weight"]


def test_parquet_has_split_floats_and_no_dictionaries(trained, tmp_path):
    write_rows(tmp_path / "rows.parquet", trained.to_arrow(**ALL), lambda n: None)
    group = pq.ParquetFile(tmp_path / "rows.parquet").metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    assert not any("DICTIONARY" in encoding for column in columns for encoding in column.encodings)
    split = {column.path_in_schema for column in columns if "BYTE_STREAM_SPLIT" in column.encodings}
    assert split == {f"{name}.list.element" for name in ("weight", "exp_avg", "exp_avg_sq")}


def test_duckdb_reads_and_writes_them(trained, tmp_path):
    duckdb = pytest.importorskip("duckdb")
    write_rows(tmp_path / "rows.parquet", trained.to_arrow(), lambda n: None)
    rows = dict(duckdb.sql(f"select id, weight from '{tmp_path / 'rows.parquet'}'").fetchall())
    ids, weights = trained.to_torch()
    assert rows == {
        number: tuple(row) for number, row in zip(ids.tolist(), weights.tolist(), strict=True)
    } or rows == dict(zip(ids.tolist(), weights.tolist(), strict=True))
    duckdb.sql(
        f"copy (select id, weight from '{tmp_path / 'rows.parquet'}' order by random()) to '{tmp_path / 'd.parquet'}'"
    )
    with small_store() as store:
        with read_rows(tmp_path / "d.parquet") as (read, _):
            made = store.table_from_arrow("t", read, optimizer="SGD", num_embeddings=9, dim=4)
        assert torch.equal(made.to_torch()[1], weights)


def batch(**columns):
    return pa.table({name: column for name, column in columns.items() if column is not None})


def floats(n, dim=4, kind=None, value=0.5):
    return pa.array([[value] * dim] * n, kind or pa.list_(pa.float32(), dim))


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float16(), 4), pa.list_(pa.float64(), 4)],
    ids=str,
)
@pytest.mark.parametrize("integer", [pa.int32(), pa.uint64(), pa.int8()], ids=str)
def test_other_types_are_taken_without_loss(trained, kind, integer):
    lists = pa.array([[0.5, 1, -2, 0.25], [4, 3, 2, 1], [9, 9, 9, 9]], kind)
    data = batch(id=pa.array([100, 3, 0], integer), weight=lists).slice(0, 2)
    assert trained.from_arrow(data) == 2
    assert trained.get([100, 3]).tolist() == [[0.5, 1, -2, 0.25], [4, 3, 2, 1]]
    assert trained.metadata([100, 3]).updates.tolist() == [0, 0]
    assert trained.metadata([100, 3]).last_step.tolist() == [4, 4]
    assert trained.get_state([100])["exp_avg"].tolist() == [[0] * 4]


def test_state_without_counts_comes_along(trained):
    data = batch(id=pa.array([7]), weight=floats(1), exp_avg=floats(1, value=3))
    assert trained.from_arrow(data) == 1
    assert (trained.get_state([7])["exp_avg"] == 3).all()
    assert (trained.get_state([7])["exp_avg_sq"] == 0).all()
    trained.from_arrow(data, state=False)
    assert (trained.get_state([7])["exp_avg"] == 0).all()


def test_rows_with_counts_replace_those_that_are_there(trained):
    before = payloads_of(trained)
    rows = trained.to_arrow(**ALL).read_all()
    trained.set(rows["id"].to_pylist(), torch.ones(len(rows), 4))
    assert payloads_of(trained) != before
    order = np.random.default_rng(0).permutation(len(rows))
    assert trained.from_arrow(rows.take(order)) == len(rows)
    assert payloads_of(trained) == before


def payloads_of(table):
    rows = table.to_arrow(**ALL).read_all()
    return {row["id"]: row for row in rows.to_pylist()}


NAN, LATE = float("nan"), 9
WRONG = {
    "no id": ({"weight": floats(1)}, "column 'id' is missing"),
    "no weight": ({"id": pa.array([1])}, "column 'weight' is missing"),
    "another dim": ({"id": pa.array([1]), "weight": floats(1, 5)}, "must be of lists of 4 floats"),
    "lists of another dim": (
        {"id": pa.array([1]), "weight": floats(1, 5, pa.list_(pa.float32()))},
        "of 4 numbers, got 5",
    ),
    "no lists": ({"id": pa.array([1]), "weight": pa.array([1.5])}, "must be of lists of 4 floats, got double"),
    "integers for floats": ({"id": pa.array([1]), "weight": pa.array([[1] * 4])}, "must be of lists of 4 floats"),
    "floats for ids": ({"id": pa.array([1.0]), "weight": floats(1)}, "must be of integers, got double"),
    "null id": ({"id": pa.array([1, None]), "weight": floats(2)}, "column 'id' has nulls"),
    "null weight": ({"id": pa.array([1]), "weight": pa.array([None], pa.list_(pa.float32(), 4))}, "has nulls"),
    "null in a weight": (
        {"id": pa.array([1]), "weight": pa.array([[1, None, 1, 1]], pa.list_(pa.float32(), 4))},
        "nulls",
    ),
    "id twice": ({"id": pa.array([1, 2, 1]), "weight": floats(3)}, "id 1 comes more than once"),
    "beyond int64": ({"id": pa.array([2**63], pa.uint64()), "weight": floats(1)}, "must fit int64"),
    "not finite": ({"id": pa.array([1]), "weight": floats(1, value=NAN)}, "weight of id 1 is not finite"),
    "beyond float32": ({"id": pa.array([1]), "weight": floats(1, 4, pa.list_(pa.float64(), 4), 1e39)}, "is not finite"),
    "unknown column": ({"id": pa.array([1]), "weight": floats(1), "price": pa.array([1])}, "has no column 'price'"),
    "another optimizer's": ({"id": pa.array([1]), "weight": floats(1), "z": floats(1)}, "has no column 'z'"),
    "negative square": ({"id": pa.array([1]), "weight": floats(1), "exp_avg_sq": floats(1, value=-1)}, "is negative"),
    "one of two": ({"id": pa.array([1]), "weight": floats(1), "updates": pa.array([1])}, "both are needed"),
    "late": (
        {"id": pa.array([1]), "weight": floats(1), "updates": pa.array([1]), "last_step": pa.array([LATE])},
        "the last step of id 1 is 9, but the table has had 4 updates",
    ),
    "negative count": (
        {"id": pa.array([1]), "weight": floats(1), "updates": pa.array([-1]), "last_step": pa.array([1])},
        "updates must be in 0..4294967295",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_before_anything_changes(store, trained, what):
    columns, message = WRONG[what]
    before = payloads_of(trained)
    with pytest.raises(ValueError, match=message):
        trained.from_arrow(batch(**columns))
    assert payloads_of(trained) == before
    assert list(store.tables()) == ["t"]


def test_an_id_that_comes_again_in_a_later_batch_is_found(trained):
    before = payloads_of(trained)
    tables = [batch(id=pa.array(ids), weight=floats(len(ids))) for ids in ([5, 900], [901], [6, 900])]
    data = pa.concat_tables(tables)
    with pytest.raises(ValueError, match="id 900 comes more than once"):
        trained.from_arrow(data)
    assert payloads_of(trained) == before


def test_a_failing_source_changes_nothing(store, trained):
    before = payloads_of(trained)
    first = batch(id=pa.array([5]), weight=floats(1))

    def batches():
        yield from first.to_batches()
        raise RuntimeError("no more")

    for make in (trained.from_arrow, lambda data: store.table_from_arrow("u", data, **NEW)):
        with pytest.raises(RuntimeError, match="no more"):
            make(pa.RecordBatchReader.from_batches(first.schema, batches()))
    assert payloads_of(trained) == before
    assert list(store.tables()) == ["t"]


NEW = {"optimizer": "SGD", "num_embeddings": 10}


def test_state_of_another_rule_by_the_same_name_is_refused(tmp_path, trained):
    with small_store() as store:
        damo.EmbeddingBagCollection([config("t", 4)], damo.optim.Lion, {"lr": 0.1}, store=store)(
            kjt({"t": [[1]]})
        ).values().sum().backward()
        rows = store.table("t").to_arrow(state=True).read_all()
    with pytest.raises(ValueError, match="'exp_avg' is the state of LION, not of ADAM: import without state"):
        trained.from_arrow(rows)
    assert trained.from_arrow(rows, state=False) == 1


def test_new_tables_need_to_be_told_of(store):
    data = batch(id=pa.array([1]), weight=floats(1))
    with pytest.raises(ValueError, match="nothing says what it is"):
        store.table_from_arrow("u", data)
    with pytest.raises(ValueError, match="has a table 't' already"):
        store.table_from_arrow("t", data, **NEW)
    with pytest.raises(ValueError, match="num_embeddings must be a positive int"):
        store.table_from_arrow("u", data, optimizer="SGD", num_embeddings=0)
    made = store.table_from_arrow("u", data, row_dtype="bfloat16", **NEW)
    assert (made.dim, made.row_dtype, len(made), made.iter) == (4, torch.bfloat16, 1, 0)


def test_limits_and_rules_of_a_table_are_kept_to(tmp_path):
    with small_store(tmp_path / "store") as store:
        options = {"t": damo.TableOptions(max_rows=100)}
        ebc = damo.EmbeddingBagCollection(
            [config("t", 4)], torch.optim.SGD, {"lr": 0.1}, store=store, table_options=options
        )
        train(ebc, range(1))
        table = store.table("t")
        before = payloads_of(table)
        many = batch(id=pa.array(range(1000, 1099)), weight=floats(99))
        with pytest.raises(ValueError, match=r"may have 100 \(max_rows\)"):
            table.from_arrow(many)
        with pytest.raises(ValueError, match="import without counts"):
            table.from_arrow(table.to_arrow(counts=True).read_all())
        assert payloads_of(table) == before
        assert table.from_arrow(many.slice(0, 20), counts=False) == 20
        assert len(table) == len(before) + 20


def test_deltas_begin_anew_where_counts_come(store, trained, tmp_path):
    store.checkpoint(tmp_path / "base")
    trained.from_arrow(batch(id=pa.array([5]), weight=floats(1)))
    delta = damo.Delta.read(store.export_delta(tmp_path / "delta", since=tmp_path / "base"))
    assert 5 in delta.tables["t"].ids
    store.checkpoint(tmp_path / "second")
    trained.from_arrow(trained.to_arrow(**ALL).read_all())
    store.checkpoint(tmp_path / "third")
    with pytest.raises(ValueError, match="were imported with their counts"):
        store.export_delta(tmp_path / "other", since=tmp_path / "second")


def test_rows_of_the_moment_are_exported_whatever_comes(trained):
    rows = trained.to_arrow(batch_size=3)
    expected = trained.to_torch()[0].tolist()
    trained.delete(expected[:5])
    assert rows.read_all()["id"].to_pylist() == expected


def test_other_data_and_stores_to_read_are_refused(store, trained, tmp_path):
    with pytest.raises(TypeError, match="data must be a RecordBatchReader"):
        trained.from_arrow([1])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        trained.to_arrow(batch_size=0)
    store.checkpoint(tmp_path / "checkpoint")
    with damo.EmbeddingStore(tmp_path / "checkpoint", memory_budget="64MiB", read_only=True) as reading:
        data = batch(id=pa.array([1]), weight=floats(1))
        with pytest.raises(ValueError, match="is read-only: nothing can be imported"):
            reading.table("t").from_arrow(data)
        with pytest.raises(ValueError, match="is read-only: nothing can be imported"):
            reading.table_from_arrow("u", data, **NEW)


@pytest.mark.parametrize("content", [b"{}", b"no json", b'{"table": "t", "schema": {}, "iter": 0, "version": 1}'])
def test_metadata_that_are_damaged_are_refused(trained, content):
    data = batch(id=pa.array([1]), weight=floats(1)).replace_schema_metadata({"damo_torchrec": content})
    with pytest.raises(ValueError, match="metadata of damo_torchrec are damaged"):
        trained.from_arrow(data)
