"""Every type of Arrow that can be a feature, a number or a label becomes one; what cannot is refused."""

from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("xxhash")

from damo_torchrec.data import Columns, Ids, Number, Strings  # noqa: E402
from damo_torchrec.data.decoding import decode  # noqa: E402
from damo_torchrec.ids import hash_strings  # noqa: E402


def feature(column: Any, as_: Any) -> tuple[list[int], list[int], list[float] | None]:
    """Values, lengths and weights of a column ``c``."""
    table = pa.table({"c": column} if not isinstance(column, dict) else column)
    jagged = decode(table, Columns({"f": as_})).features[0]
    weights = None if jagged.weights is None else jagged.weights.tolist()
    return jagged.values.tolist(), np.diff(jagged.offsets).tolist(), weights


INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
LISTS = [pa.list_, pa.large_list]


@pytest.mark.parametrize("type_", INTEGERS, ids=str)
def test_integers(type_: Any) -> None:
    assert feature(pa.array([7, None, 9], type_), Ids("c")) == ([7, 9], [1, 0, 1], None)
    for list_ in LISTS:
        assert feature(pa.array([[1, 2], None, [], [3]], list_(type_)), Ids("c")) == ([1, 2, 3], [2, 0, 0, 1], None)
    assert feature(pa.array([[1, 2], None, [3, 4]], pa.list_(type_, 2)), Ids("c")) == ([1, 2, 3, 4], [2, 0, 2], None)


def test_the_ends_of_int64() -> None:
    assert feature(pa.array([-(2**63), 2**63 - 1]), Ids("c"))[0] == [-(2**63), 2**63 - 1]
    with pytest.raises(ValueError, match="column 'c' must fit int64"):
        feature(pa.array([2**63], pa.uint64()), Ids("c"))


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_strings(type_: Any) -> None:
    a, b = hash_strings(["a", "b"], 5).tolist()
    assert feature(pa.array(["a", None, "b"], type_), Strings("c", 5)) == ([a, b], [1, 0, 1], None)
    if not pa.types.is_dictionary(type_):
        lists = pa.array([["a", "b"], None, [], ["b"]], pa.list_(type_))
        assert feature(lists, Strings("c", 5)) == ([a, b, b], [2, 0, 0, 1], None)


def test_null_may_be_an_entry_of_a_dictionary() -> None:
    for values, as_, id_ in (([7, None], Ids("c"), 7), (["a", None], Strings("c"), hash_strings(["a"])[0])):
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0]), pa.array(values))
        assert feature(column, as_) == ([id_, id_], [1, 0, 0, 1], None)
        with pytest.raises(ValueError, match="column 'c' has null in 2 places inside of lists"):
            feature(pa.ListArray.from_arrays([0, 4], column), as_)


def test_parts_of_arrays_and_of_several_chunks() -> None:
    column = pa.chunked_array([pa.array([[0], [1, 2], None, [3]])[1:], pa.array([[4, 5]])])
    assert feature(column, Ids("c")) == ([1, 2, 3, 4, 5], [2, 0, 1, 2], None)


def test_nothing_at_all() -> None:
    assert feature(pa.array([], pa.list_(pa.int64())), Ids("c")) == ([], [], None)
    assert feature(pa.nulls(2), Ids("c")) == ([], [0, 0], None)
    assert feature(pa.nulls(2), Strings("c")) == ([], [0, 0], None)


def test_a_number_may_be_null_in_all_rows() -> None:
    table = pa.table({"id": [1, 2], "n": pa.nulls(2)})
    assert decode(table, Columns({"f": Ids("id")}, [Number("n", null=3.0)])).dense.tolist() == [[3.0], [3.0]]
    assert feature({"c": pa.nulls(2), "w": pa.nulls(2)}, Ids("c", "w")) == ([], [0, 0], [])
    with pytest.raises(ValueError, match="'n' has null or NaN in 2 rows"):
        decode(table, Columns({"f": Ids("id")}, ["n"]))


def test_weights() -> None:
    lists = {"c": [[1, 2], None, [3]], "w": [[0.5, 1.5], None, [2.0]]}
    assert feature(lists, Ids("c", "w")) == ([1, 2, 3], [2, 0, 1], [0.5, 1.5, 2.0])
    assert feature({"c": ["a", None], "w": [3, None]}, Strings("c", weights="w"))[2] == [3.0]
    columns = Columns({"a": Ids("c", "w"), "b": Ids("c")})
    assert decode(pa.table(lists), columns).features[1].weights.tolist() == [1.0, 1.0, 1.0]  # type: ignore[union-attr]
    for odd in ([[1.0], None, [2.0, 3.0]], [[0.5, 1.5], [], [2.0]][::-1]):
        with pytest.raises(ValueError, match="'w' must have a weight for each id of column 'c'"):
            feature({**lists, "w": odd}, Ids("c", "w"))


def test_dense_values_and_labels() -> None:
    import decimal

    table = pa.table(
        {
            "id": [1, 2],
            "int": pa.array([3, -4], pa.int16()),
            "double": [0.5, None],
            "bool": [True, False],
            "decimal": [decimal.Decimal("1.25"), decimal.Decimal("2.5")],
        }
    )
    rows = decode(table, Columns({"f": Ids("id")}, ["int", Number("double", null=9.0), "decimal"], ["bool", "int"]))
    assert rows.dense.tolist() == [[3.0, 0.5, 1.25], [-4.0, 9.0, 2.5]]
    assert rows.labels.tolist() == [[1.0, 3.0], [0.0, -4.0]]
    assert (rows.dense.dtype, rows.labels.dtype) == (np.float32, np.float32)
    assert decode(table, Columns({"f": Ids("id")}, labels="bool")).labels.tolist() == [1.0, 0.0]
    assert decode(table, Columns({"f": Ids("id")})).dense.shape == (2, 0)


REFUSED: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "floats as ids": ([1.0, 2.0], Ids("c"), TypeError, "column 'c' must hold integers, or lists of them, got double"),
    "bools as ids": ([True], Ids("c"), TypeError, "got bool"),
    "strings as integers": (["a"], Ids("c"), TypeError, "got string: Strings makes ids of them"),
    "integers as strings": ([1], Strings("c"), TypeError, "column 'c': strings must be str or bytes"),
    "null in a list": ([[1, None]], Ids("c"), ValueError, "column 'c' has null in 1 places inside of lists"),
    "lists of lists": ([[[1]]], Ids("c"), TypeError, "must hold integers"),
}


@pytest.mark.parametrize(("column", "as_", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_feature(column: Any, as_: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        feature(pa.array(column), as_)


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        ([None], ValueError, r"'n' has null or NaN in 1 rows: Number\('n', null=0.0\)"),
        ([float("nan")], ValueError, "null or NaN in 1 rows"),
        ([float("inf")], ValueError, "infinite, or beyond float32"),
        ([1e300], ValueError, "infinite, or beyond float32"),
        (["1"], TypeError, "must hold numbers, got string"),
        ([[1.0]], TypeError, "must hold numbers, got list"),
    ],
)
def test_what_is_no_number(column: Any, error: type[Exception], message: str) -> None:
    column = pa.array(column, pa.float64()) if column == [None] else pa.array(column)
    with pytest.raises(error, match=message):
        decode(pa.table({"id": [1], "n": column}), Columns({"f": Ids("id")}, ["n"]))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Columns({}), ValueError, "at least one key"),
        (lambda: Columns({"f": "id"}), TypeError, r"features\['f'\] must be Ids or Strings, got str"),  # type: ignore[dict-item]
        (lambda: Columns({"f": Ids("c")}, "x"), TypeError, "dense must be a list of columns"),
        (lambda: Columns({"f": Ids("c")}, [1]), TypeError, "dense must be names of columns or Numbers"),  # type: ignore[list-item]
        (lambda: Strings("c", -1), ValueError, "salt must be in"),
    ],
)
def test_wrong_columns(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
