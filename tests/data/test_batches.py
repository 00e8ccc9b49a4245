"""Batches are the rows of the source, in an order that the seed makes, from any position to the bit."""

import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.datasets.utils import Batch

pa = pytest.importorskip("pyarrow")
pytest.importorskip("xxhash")

import pyarrow.parquet as pq  # noqa: E402

import damo_torchrec as damo  # noqa: E402
from damo_torchrec.data import ArrowRows, Batches, Columns, Ids, ParquetRows, Shuffle, Strings  # noqa: E402

ROWS = 103
COLUMNS = Columns({"id": Ids("id"), "words": Strings("words", salt=3)}, dense=["x"], labels="id")


def table(rows: int = ROWS, first: int = 0) -> Any:
    ids = range(first, first + rows)
    words = [None if i % 5 == 0 else [f"w{j}" for j in range(i % 4)] for i in ids]
    return pa.table({"x": [i / 2 for i in ids], "words": words, "id": pa.array(ids, pa.int32())})


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"part-{i}.parquet" for i in range(3)]
    for path, (first, rows) in zip(paths, [(0, 40), (40, 1), (41, 62)], strict=True):
        pq.write_table(table(rows, first), path, row_group_size=9)
    return paths


def ids_of(batches: Any) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels]


def same(one: Batch, other: Batch) -> bool:
    a, b = one.sparse_features, other.sparse_features
    pairs = [(a.values(), b.values()), (a.lengths(), b.lengths()), (one.labels, other.labels)]
    return all(torch.equal(x, y) for x, y in [*pairs, (one.dense_features, other.dense_features)])


def expected(rows: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Values and lengths, as plain Python makes them."""
    words = [row["words"] or [] for row in rows]
    hashed = [int(i) for bag in words for i in damo.ids.hash_strings(bag, 3)]
    return [row["id"] for row in rows] + hashed, [1] * len(rows) + [len(bag) for bag in words]


@pytest.mark.parametrize("batch_size", [1, 10, 103, 1000])
def test_batches_are_the_rows_as_they_lie(files: list[Path], batch_size: int) -> None:
    rows = table().to_pylist()
    sources = [ParquetRows(files), ParquetRows(files[0].parent), ArrowRows(table())]
    for source in [*sources, ArrowRows(lambda: table().to_batches(7))]:
        batches = Batches(source, COLUMNS, batch_size=batch_size)
        parts = list(batches)
        for i, batch in enumerate(parts):
            part = rows[i * batch_size : (i + 1) * batch_size]
            values, lengths = expected(part)
            assert batch.sparse_features.keys() == ["id", "words"]
            assert batch.sparse_features.values().tolist() == values
            assert batch.sparse_features.lengths().tolist() == lengths
            assert batch.dense_features.tolist() == [[row["x"]] for row in part]
        assert ids_of(parts) == list(range(ROWS))
        if source.count is not None:
            assert len(batches) == len(parts)


def test_an_epoch_is_another_order_of_the_same_rows(files: list[Path]) -> None:
    batches = Batches(ParquetRows(files), COLUMNS, batch_size=10, shuffle=Shuffle(seed=5, rows=25))
    orders = [ids_of(batches) for _ in range(3)]
    assert [sorted(order) for order in orders] == [list(range(ROWS))] * 3
    assert len({tuple(order) for order in orders}) == 3
    again = Batches(ParquetRows(files), COLUMNS, batch_size=10, shuffle=Shuffle(seed=5, rows=25))
    assert [ids_of(again) for _ in range(3)] == orders
    other = Batches(ParquetRows(files), COLUMNS, batch_size=10, shuffle=Shuffle(seed=6, rows=25))
    assert ids_of(other) != orders[0]


def test_the_order_is_that_of_every_version() -> None:
    batches = Batches(ArrowRows(table(12)), COLUMNS, batch_size=4, shuffle=Shuffle(seed=2**40 + 1))
    assert ids_of(batches) == ORDER


ORDER = [11, 3, 10, 6, 8, 2, 7, 9, 5, 0, 4, 1]


@pytest.mark.parametrize("shuffle", [None, Shuffle(seed=1, rows=25)], ids=["as they lie", "shuffled"])
@pytest.mark.parametrize("kind", ["Parquet", "Arrow", "a function"])
def test_it_goes_on_from_any_position_to_the_bit(files: list[Path], kind: str, shuffle: Shuffle | None) -> None:
    def batches() -> Batches:
        function = ArrowRows(lambda: table().to_batches(7))
        source = {"Parquet": ParquetRows(files), "Arrow": ArrowRows(table()), "a function": function}[kind]
        return Batches(source, COLUMNS, batch_size=10, shuffle=shuffle)

    def three_epochs(of: Batches) -> Iterator[tuple[Batch, dict[str, Any]]]:
        while of.epoch < 3:
            for batch in of:
                yield batch, of.state_dict()

    whole = list(three_epochs(batches()))
    assert len(whole) == 33
    for at in (0, 1, 6, 9, 10, 11, 21):
        resumed = batches()
        resumed.load_state_dict(whole[at][1])
        rest = list(three_epochs(resumed))
        assert all(same(a, b) for (a, _), (b, _) in zip(whole[at + 1 :], rest, strict=True))
        assert [state for _, state in rest] == [state for _, state in whole[at + 1 :]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_the_rows_evenly(files: list[Path], world_size: int) -> None:
    for shuffle in (None, Shuffle(seed=3, rows=20)):
        ranks = [
            Batches(ParquetRows(files, rank=rank, world_size=world_size), COLUMNS, batch_size=10, shuffle=shuffle)
            for rank in range(world_size)
        ]
        for _ in range(2):
            shares = [ids_of(rank) for rank in ranks]
            assert {len(share) for share in shares} == {ROWS // world_size}
            assert len(set(itertools.chain(*shares))) == ROWS // world_size * world_size


def test_a_loop_that_is_left_begins_anew(files: list[Path]) -> None:
    batches = Batches(ParquetRows(files), COLUMNS, batch_size=10, shuffle=Shuffle(seed=1))
    first = next(iter(batches))
    assert batches.state_dict()["batches"] == 1
    assert same(next(iter(batches)), first)


def test_drop_last(files: list[Path]) -> None:
    batches = Batches(ParquetRows(files), COLUMNS, batch_size=10, drop_last=True)
    assert (len(batches), len(ids_of(batches)), batches.epoch) == (10, 100, 1)


def test_a_position_of_other_batches_is_refused(files: list[Path]) -> None:
    state = Batches(ParquetRows(files), COLUMNS, batch_size=10).state_dict()
    others = [
        Batches(ParquetRows(files), COLUMNS, batch_size=11),
        Batches(ParquetRows(files[:2]), COLUMNS, batch_size=10),
        Batches(ParquetRows(files, world_size=2), COLUMNS, batch_size=10),
        Batches(ParquetRows(files), COLUMNS, batch_size=10, shuffle=Shuffle()),
        Batches(ArrowRows(table()), COLUMNS, batch_size=10),
    ]
    for other in others:
        with pytest.raises(ValueError, match="the position is one of other batches: it is of"):
            other.load_state_dict(state)
    for odd in ({}, {**state, "epoch": -1}, {**state, "batches": True}, {**state, "of": None}):
        with pytest.raises(ValueError, match=r"expected what Batches.state_dict returned"):
            others[0].load_state_dict(odd)


def test_a_model_is_saved_with_its_position(files: list[Path], tmp_path: Path) -> None:
    """Also where batches are prefetched, and so read before they are trained on."""
    from serving_cases import SGD, bags
    from support import small_store

    def batches(model: torch.nn.Module) -> Any:
        columns = Columns({"a": Ids("id"), "b": Strings("words")}, labels="id")
        read = Batches(ParquetRows(files), columns, batch_size=10, shuffle=Shuffle(seed=9, rows=30))
        return damo.PrefetchIterator(read, model, depth=2)

    def train(model: torch.nn.Module, of: Any, steps: int | None) -> None:
        for batch in itertools.islice(of, steps):
            model(batch.sparse_features).values().pow(2).sum().backward()

    def make(store: damo.EmbeddingStore) -> torch.nn.Module:
        return damo.EmbeddingBagCollection(bags("ab", [4, 4]), store=store, **SGD)

    ids = torch.arange(ROWS)
    with small_store(tmp_path / "whole") as store:
        model = make(store)
        train(model, batches(model), None)
        rows = store.table("t_a").get(ids)
    with small_store(tmp_path / "first") as store:
        model = make(store)
        data = batches(model)
        train(model, data, 4)
        damo.save_model(model, tmp_path / "saved", extra={"data": data.state_dict()})
    with small_store(tmp_path / "second") as store:
        model = make(store)
        data = batches(model)
        damo.load_model(tmp_path / "saved", model)
        data.load_state_dict(damo.checkpoint_info(tmp_path / "saved").extra["data"])
        train(model, data, None)
        assert torch.equal(store.table("t_a").get(ids), rows)


def test_memory_does_not_grow_with_the_rows() -> None:
    """Of a source without end, no more is read than three windows."""
    read = itertools.count()

    def endless() -> Iterator[Any]:
        while True:
            next(read)
            yield table(100).to_batches()[0]

    batches = iter(Batches(ArrowRows(endless), COLUMNS, batch_size=10, shuffle=Shuffle(rows=1000)))
    for _ in range(500):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert next(read) <= 80


def test_files_may_differ_in_their_types(tmp_path: Path) -> None:
    """A column is all null in one of them, another has smaller integers; what is of another kind is refused."""
    types = [(pa.int32(), pa.null()), (pa.int64(), pa.string()), (pa.int8(), pa.large_string())]
    for i, (ids, words) in enumerate(types):
        values = [None] if words == pa.null() else ["a"]
        pq.write_table(pa.table({"id": pa.array([i], ids), "word": pa.array(values, words)}), tmp_path / f"{i}.parquet")
    columns = Columns({"id": Ids("id"), "word": Strings("word")})
    (batch,) = Batches(ParquetRows(tmp_path), columns, batch_size=10)
    a = damo.ids.hash_strings(["a"]).tolist()
    assert batch.sparse_features.values().tolist() == [0, 1, 2, *a, *a]
    pq.write_table(pa.table({"id": ["a"], "word": ["a"]}), tmp_path / "3.parquet")
    with pytest.raises(TypeError, match="columns of types that do not go together"):
        list(Batches(ParquetRows(tmp_path), columns, batch_size=10))


@pytest.mark.parametrize("shuffle", [None, Shuffle(rows=1000)], ids=["as they lie", "shuffled"])
def test_types_that_pyarrow_neither_joins_nor_shuffles(tmp_path: Path, shuffle: Shuffle | None) -> None:
    """Dictionaries that together outgrow int8, as pandas' categories do."""
    small = pa.dictionary(pa.int8(), pa.string())
    parts = [[f"{file}-{i}" for i in range(100)] for file in range(4)]
    types = [small, pa.dictionary(pa.int32(), pa.string()), small, pa.dictionary(pa.int8(), pa.string(), ordered=True)]
    for i, (part, of) in enumerate(zip(parts, types, strict=True)):
        column = pa.array(part).dictionary_encode().cast(of)
        lists = pa.ListArray.from_arrays(pa.array(range(101), pa.int32()), column)
        pq.write_table(pa.table({"word": column, "words": lists}), tmp_path / f"{i}.parquet")
    columns = Columns({"word": Strings("word"), "words": Strings("words")})
    (batch,) = Batches(ParquetRows(tmp_path), columns, batch_size=1000, shuffle=shuffle)
    ids = sorted(damo.ids.hash_strings([word for part in parts for word in part]).tolist())
    word, words = batch.sparse_features["word"].values().tolist(), batch.sparse_features["words"].values().tolist()
    assert (sorted(word), word) == (ids, words)


@pytest.mark.skipif(int(pa.__version__.split(".")[0]) < 18, reason="this pyarrow makes nothing else of views")
def test_views_are_strings() -> None:
    words = [None, "a", "b" * 100, ""]
    view = pa.table(
        {"a": pa.array(words, pa.string_view()), "b": pa.array([words[1:]] * 4, pa.list_(pa.string_view()))}
    )
    plain = pa.table({"a": pa.array(words), "b": pa.array([words[1:]] * 4)})
    columns = Columns({"a": Strings("a"), "b": Strings("b")})
    for shuffle in (None, Shuffle()):
        mixed = ArrowRows([*view.to_batches(), *plain.to_batches()])
        (got,) = Batches(mixed, columns, batch_size=10, shuffle=shuffle)
        (expected,) = Batches(ArrowRows(pa.concat_tables([plain, plain])), columns, batch_size=10, shuffle=shuffle)
        assert same(got, expected)


def test_what_pyarrow_does_not_shuffle_is_refused() -> None:
    odd = pa.Table.from_arrays([pa.RunEndEncodedArray.from_arrays([2, 4], [1, 2])], ["a"])
    for shuffle in (None, Shuffle()):
        batches = Batches(ArrowRows(odd), Columns({"a": Ids("a")}), batch_size=1, shuffle=shuffle)
        with pytest.raises(TypeError, match=r"column.*run_end_encoded"):
            list(batches)


def test_what_the_source_raises_arrives(files: list[Path]) -> None:
    files[2].write_bytes(files[2].read_bytes()[:-1] + b"?")
    with pytest.raises(OSError, match=r"part-2.parquet is no Parquet file"):
        ParquetRows(files)
    source = ParquetRows(files[:2])
    pq.write_table(table(5), files[1])
    with pytest.raises(ValueError, match=r"part-1.parquet has changed since it was opened: row group 0 has 5 rows"):
        list(Batches(source, COLUMNS, batch_size=10))


@pytest.mark.parametrize("damage", ["gone", "no Parquet", "a damaged page"])
def test_a_file_that_cannot_be_read_is_named(files: list[Path], damage: str) -> None:
    batches = Batches(ParquetRows(files), COLUMNS, batch_size=10)
    content = files[1].read_bytes()
    files[1].unlink()
    if damage != "gone":
        files[1].write_bytes(b"" if damage == "no Parquet" else content[:4] + b"\xff" * 20 + content[24:])
    with pytest.raises(OSError, match=r"part-1\.parquet cannot be read: "):
        list(batches)
    files[1].write_bytes(content[:-100] + b"\xff" * 80 + content[-20:])  # in its footer
    with pytest.raises(OSError, match=r"part-1\.parquet cannot be read: "):
        ParquetRows(files)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: ParquetRows(path / "none"), ValueError, "is neither a file nor a directory"),
        (lambda path: ParquetRows(path), ValueError, r"has no \*.parquet in it"),
        (lambda path: ParquetRows(path, rank=2, world_size=2), ValueError, "rank must be in"),
        (lambda path: ArrowRows([0]), TypeError, "got int"),
        (lambda path: list(Batches(ArrowRows(lambda: [1]), COLUMNS, batch_size=1)), TypeError, "got int"),
        (lambda path: len(Batches(ArrowRows(list), COLUMNS, batch_size=1)), TypeError, "does not know how many"),
        (lambda path: Batches(ArrowRows([]), COLUMNS, batch_size=0), ValueError, "batch_size must be at least 1"),
        (lambda path: Batches(ArrowRows([]), COLUMNS, batch_size=True), TypeError, "batch_size must be an int"),
        (lambda path: Shuffle(seed=-1), ValueError, "seed must be in"),
        (lambda path: Shuffle(rows=0), ValueError, "rows must be at least 1"),
        (
            lambda path: list(Batches(ArrowRows(table()), Columns({"a": Ids("nothing")}), batch_size=1)),
            ValueError,
            r"has no columns \['nothing'\]; it has \['x', 'words', 'id'\]",
        ),
    ],
)
def test_wrong_arguments(tmp_path: Path, make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(tmp_path)


def test_files_below_a_directory(tmp_path: Path) -> None:
    """As Spark and links lay them out; what is hidden, unfinished or no file is none."""
    folder, linked = tmp_path / "clicks", tmp_path / "linked"
    names = ["a.parquet", "day=1.parquet/part-0.parquet", "_temporary/part-0.parquet", "_b.parquet", ".c.parquet"]
    for i, path in enumerate([*(folder / name for name in names), linked / "d.parquet"]):
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(1, i), path)
    (folder / "link").symlink_to(linked)
    assert ids_of(Batches(ParquetRows(folder), COLUMNS, batch_size=10)) == [0, 1, 5]
    assert ids_of(Batches(ParquetRows(folder / "_b.parquet"), COLUMNS, batch_size=10)) == [3]
    (folder / "gone.parquet").symlink_to(tmp_path / "nothing")
    with pytest.raises(OSError, match=r"gone\.parquet"):
        ParquetRows(folder)


def test_a_function_that_gives_other_rows_the_next_time_is_refused() -> None:
    used_up = iter(table(30).to_batches())
    batches = Batches(ArrowRows(lambda: used_up), COLUMNS, batch_size=10)
    assert len(ids_of(batches)) == 30
    with pytest.raises(ValueError, match="the function gave 0 rows, expected 30: it must give the same ones each time"):
        list(batches)
    whole = Batches(ArrowRows(lambda: table(200_000).to_batches()), COLUMNS, batch_size=100_000)
    next(iter(whole))
    fewer = Batches(ArrowRows(lambda: table(5).to_batches()), COLUMNS, batch_size=100_000)
    fewer.load_state_dict(whole.state_dict())
    with pytest.raises(ValueError, match="the function gave 5 rows, expected at least 100000"):
        list(fewer)


@pytest.mark.parametrize("shuffle", [None, Shuffle(rows=25)])
def test_another_process_goes_on_with_batches(files: list[Path], shuffle: Shuffle | None) -> None:
    for source in (ParquetRows(files), ArrowRows(table())):
        batches = Batches(source, COLUMNS, batch_size=10, shuffle=shuffle)
        list(itertools.islice(batches, 4))
        other = pickle.loads(pickle.dumps(batches))
        other.load_state_dict(batches.state_dict())
        batches.load_state_dict(batches.state_dict())
        assert all(same(a, b) for a, b in zip(batches, other, strict=True))


def test_prefetching_what_keeps_no_position_says_so(tmp_path: Path) -> None:
    from serving_cases import SGD, bags
    from support import small_store

    with small_store(tmp_path) as store:
        model = damo.EmbeddingBagCollection(bags("a", [4]), store=store, **SGD)
        with pytest.raises(TypeError, match="list has no state_dict"):
            damo.PrefetchIterator([], model).state_dict()
