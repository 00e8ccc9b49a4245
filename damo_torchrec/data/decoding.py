"""From Arrow's columns to `Rows`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from damo_torchrec.data.columns import Columns, Ids, Number, Strings
from damo_torchrec.data.rows import Jagged, Rows
from damo_torchrec.ids import hash_strings

Floats = npt.NDArray[np.float32]


def decode(table: pa.Table, columns: Columns) -> Rows:
    """Rows of a table that has the columns.

    Raises:
        TypeError: a column is of another type than it should be: floats as ids, for example.
        ValueError: what it holds cannot be taken: null among the ids of a list, or as a number where that has no
            `Number.null`; an integer beyond int64; an infinite number; weights that are not as many as ids.
    """
    by_name = {name: table.column(name).combine_chunks() for name in columns.names}
    by_name = {name: _one_array(column, table) for name, column in by_name.items()}
    features = [_jagged(feature, by_name, columns.weighted) for feature in columns.features.values()]
    dense = _numbers(columns.dense_numbers, by_name, table.num_rows)
    labels = _numbers(columns.label_numbers, by_name, table.num_rows)
    return Rows(table.num_rows, list(columns.features), features, dense, labels[:, 0] if columns.one_label else labels)


def joinable(table: pa.Table) -> pa.Table:
    """The table, of types that go together with other tables' and can be shuffled.

    pyarrow takes no rows of views, and joins dictionaries only as far as their indices reach: int8, as pandas makes
    them of few categories.
    """
    schema = pa.schema([field.with_type(_joinable(field.type)) for field in table.schema])
    return table if schema == table.schema else table.cast(schema)


def _joinable(of: Any) -> Any:
    if pa.types.is_list(of) or pa.types.is_large_list(of):
        make = pa.list_ if pa.types.is_list(of) else pa.large_list
        return make(of.value_field.with_type(_joinable(of.value_type)))
    if pa.types.is_dictionary(of):
        return pa.dictionary(pa.int32(), _joinable(of.value_type))
    return {"string_view": pa.large_string(), "binary_view": pa.large_binary()}.get(str(of), of)


def _one_array(column: Any, table: pa.Table) -> Any:
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _jagged(feature: Ids | Strings, by_name: dict[str, Any], weighted: bool) -> Jagged:
    lengths, values = _bags(feature.column, by_name[feature.column])
    ids = _hashed(feature, values) if isinstance(feature, Strings) else _integers(feature.column, values)
    weights = None
    if feature.weights is not None:
        of_weights, numbers = _bags(feature.weights, by_name[feature.weights])
        if not np.array_equal(of_weights, lengths):
            raise ValueError(f"column {feature.weights!r} must have a weight for each id of column {feature.column!r}")
        weights = _floats(Number(feature.weights), numbers)
    elif weighted:
        weights = np.ones(len(ids), np.float32)
    return Jagged(np.concatenate([[0], np.cumsum(lengths)]), ids, weights)


def _bags(name: str, column: Any) -> tuple[npt.NDArray[np.int64], Any]:
    """How many values each row has, and all of them, without null."""
    types = pa.types
    of = column.type
    if types.is_list(of) or types.is_large_list(of) or types.is_fixed_size_list(of):
        lengths = pc.if_else(column.is_valid(), pc.list_value_length(column), 0)
        values = _with_its_nulls(column.flatten())
        if values.null_count:
            raise ValueError(f"column {name!r} has null in {values.null_count} places inside of lists: leave them out")
    else:
        column = _with_its_nulls(column)
        lengths, values = column.is_valid(), column.drop_null()
    return lengths.cast(pa.int64()).to_numpy(zero_copy_only=False), values


def _with_its_nulls(values: Any) -> Any:
    """Decoded if null is an entry of its dictionary: Arrow counts none of these."""
    hidden = pa.types.is_dictionary(values.type) and values.dictionary.null_count
    return values.dictionary_decode() if hidden else values


def _integers(name: str, values: Any) -> npt.NDArray[np.int64]:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not pa.types.is_integer(values.type) and not pa.types.is_null(values.type):
        hint = ": Strings makes ids of them" if _is_text(values.type) else ""
        raise TypeError(f"column {name!r} must hold integers, or lists of them, got {values.type}{hint}")
    try:
        ids: npt.NDArray[np.int64] = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise ValueError(f"column {name!r} must fit int64: {error}") from error
    return ids


def _hashed(feature: Strings, values: Any) -> npt.NDArray[np.int64]:
    if pa.types.is_null(values.type):
        return np.empty(0, np.int64)
    try:
        return hash_strings(values, feature.salt)
    except TypeError as error:
        raise TypeError(f"column {feature.column!r}: {error}") from error


def _is_text(of: Any) -> bool:
    return bool(pa.types.is_string(of) or pa.types.is_large_string(of) or pa.types.is_binary(of))


def _numbers(numbers: tuple[Number, ...], by_name: dict[str, Any], count: int) -> Floats:
    columns = np.empty((count, len(numbers)), np.float32)
    for i, number in enumerate(numbers):
        columns[:, i] = _floats(number, by_name[number.column])
    return columns


def _floats(number: Number, column: Any) -> Floats:
    """As float32; what is missing becomes `number.null`."""
    types, of = pa.types, column.type
    kinds = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    if not any(is_kind(of) for is_kind in kinds):
        raise TypeError(f"column {number.column!r} must hold numbers, got {of}")
    if types.is_boolean(of):
        column = column.cast(pa.uint8())
    elif types.is_decimal(of):
        column = column.cast(pa.float64())
    floats = column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)  # null is NaN there
    missing = np.isnan(floats)
    if number.null is not None:
        floats = np.where(missing, np.float32(number.null), floats)
    elif missing.any():
        raise ValueError(
            f"column {number.column!r} has null or NaN in {int(missing.sum())} rows: "
            f"Number({number.column!r}, null=0.0) says what these are"
        )
    if np.isinf(floats).any():
        raise ValueError(f"column {number.column!r} has a number that is infinite, or beyond float32")
    result: Floats = floats
    return result
