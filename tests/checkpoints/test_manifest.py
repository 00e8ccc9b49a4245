"""Whatever a manifest.json holds, it is read as it stands there, or refused by name."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import damo_torchrec as damo
from damo_torchrec.checkpoints.document import digest_of
from damo_torchrec.checkpoints.layout import MANIFEST_FILE
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.table_entry import InitializerNumbers, TableEntry, TableSchema

fuzz = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example writes the file anew
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
# Values that a field's neighbours have, and the edges of its range.
LIKELY = st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**63, -(2**63) - 1, 1.0, True, None, "x", "", [], {}, math.nan])


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    """With a table of each kind and two files; its manifest.json lies in `tmp_path`."""
    adam = {"name": "ADAM", "initial_accumulator_value": 0}
    uniform = {"name": "Uniform", "low": -1, "high": 0.5}
    numbers = InitializerNumbers(a=-1.0, b=0.5, low=0.0, high=1.0)
    tables = {
        "t": TableEntry(number=1, schema=TableSchema(4, adam, uniform, numbers), iter=3, rows=7),
        "é": TableEntry(number=2, schema=TableSchema(3, adam, uniform, numbers, "float16"), iter=2, rows=0),
    }
    (tmp_path / "rows").mkdir()
    for name in ("000001.sst", "CURRENT"):
        (tmp_path / "rows" / name).write_text("rows" * 100)
    Manifest(seed=-5, step=3, sequence=2, next_table_number=3, tables=tables).with_files(tmp_path).write(tmp_path)
    return Manifest.read(tmp_path)


def body_of(directory: Path) -> dict:
    return json.loads((directory / MANIFEST_FILE).read_text())["manifest"]


def write(directory: Path, body: object) -> None:
    """With the checksum that belongs to it."""
    document = {"format_version": 4, "sha256": digest_of(body), "manifest": body}
    (directory / MANIFEST_FILE).write_text(json.dumps(document))


def read_or_refuse(directory: Path) -> Manifest | None:
    """The manifest, or None if it is refused as it should be."""
    try:
        return Manifest.read(directory)
    except damo.CorruptionError as error:
        assert str(directory / MANIFEST_FILE) in str(error)  # noqa: PT017
        return None


def places(node: object, path: tuple = ()) -> list[tuple]:
    """The paths of all values below `node`."""
    found = []
    for key, value in node.items() if isinstance(node, dict) else ():
        found += [(*path, key), *places(value, (*path, key))]
    return found


def parent_of(body: dict, path: tuple) -> dict:
    for key in path[:-1]:
        body = body[key]
    return body


def is_int(least: int, below: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and least <= value < below


def is_text(value: object) -> bool:
    return type(value) is str


def is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 3.4e38


def is_hexadecimal(digits: int) -> Callable[[object], bool]:
    return lambda value: is_text(value) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


# What docs/format.md says of each field.
FIELDS: dict[str, Callable[[object], bool]] = {
    "id": is_hexadecimal(32),
    "seed": is_int(-(2**127), 2**127),
    "step": is_int(0, 2**32),
    "sequence": is_int(0, 2**62),
    "next_table_number": is_int(1, 2**31),
    "tables": lambda value: all(has(TABLE, table) for table in value.values()),
    "files": lambda value: all(is_file_name(name) and has(FILE, file) for name, file in value.items()),
}
TABLE = {
    "number": is_int(1, 2**31 - 1),
    "iter": is_int(0, 2**32),
    "rows": is_int(0, 2**63),
    "schema": lambda value: has(SCHEMA, {"row_dtype": "float32", **value}),
}
SCHEMA = {
    "dim": is_int(1, 2**24 + 1),
    "row_dtype": lambda value: value in ("float32", "float16", "bfloat16"),
    "optimizer": lambda value: has(ADAM, value),
    "initializer": lambda value: has(UNIFORM, value) and value["low"] <= value["high"],
    "numbers": lambda value: has(dict.fromkeys(("a", "b", "low", "high"), is_number), value),
}
ADAM = {
    "name": lambda value: value == "ADAM",
    "initial_accumulator_value": lambda value: is_number(value) and value >= 0,
}
UNIFORM = {"name": lambda value: value == "Uniform", "low": is_number, "high": is_number}
FILE = {"size": is_int(0, 2**63), "sha256": is_hexadecimal(64)}


def is_file_name(name: str) -> bool:
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def has(described: dict[str, Callable[[object], bool]], value: dict) -> bool:
    """Whether `value` has these fields, and no others."""
    return value.keys() == described.keys() and all(is_right(value[name]) for name, is_right in described.items())


def bytes_of_rows(table: dict) -> int:
    """What docs/format.md says of rows: weights, padded to 4 bytes, two moments, last update and count."""
    dim = table["schema"]["dim"]
    weights = 4 * dim if table["schema"].get("row_dtype", "float32") == "float32" else (2 * dim + 3) // 4 * 4
    return table["rows"] * (weights + 2 * 4 * dim + 8)


def agrees_with_itself(body: dict) -> bool:
    tables = list(body["tables"].values())
    numbers = [table["number"] for table in tables]
    room = sum(file["size"] for name, file in body["files"].items() if name.endswith((".sst", ".log")))
    return (
        len(set(numbers)) == len(numbers)
        and max(numbers, default=0) < body["next_table_number"]
        and body["step"] == max((table["iter"] for table in tables), default=0)
        and sum(map(bytes_of_rows, tables)) <= room
        and all(draws_what_it_says(table["schema"]) for table in tables)
    )


def draws_what_it_says(schema: dict) -> bool:
    numbers, arguments = schema["numbers"], schema["initializer"]
    return (
        0 <= numbers["low"] <= numbers["high"] <= 1
        and math.isclose(numbers["a"], arguments["low"], rel_tol=1e-5)
        and math.isclose(numbers["b"], arguments["high"], rel_tol=1e-5)
    )


def is_valid(body: object) -> bool:
    try:
        return has(FIELDS, body) and agrees_with_itself(body)
    except (AttributeError, TypeError):  # something is no dictionary
        return False


def check(directory: Path, body: object) -> None:
    """Whether a manifest of this body, with the right checksum, is read if and only if it is valid, and as it is."""
    write(directory, body)
    manifest = read_or_refuse(directory)
    assert (manifest is not None) == is_valid(body)
    if manifest is not None:
        read = asdict(manifest)
        for name, table in body["tables"].items():
            if "row_dtype" not in table["schema"]:
                assert read["tables"][name]["schema"].pop("row_dtype") == "float32"
            if "stream" not in table["schema"]:
                assert read["tables"][name]["schema"].pop("stream") == ""
            if "life" not in table:
                assert read["tables"][name].pop("life") is None
        assert read == body


@fuzz
@given(data=st.data())
def test_what_would_not_be_read_is_not_written(manifest, tmp_path, data):
    table = manifest.tables["t"]
    body = {"seed": manifest.seed, "step": 3, "sequence": 2, "next_table_number": 3}
    entry = {"number": 1, "schema": table.schema, "iter": 3, "rows": 7}
    changed = data.draw(st.sampled_from([body, entry]))
    changed[data.draw(st.sampled_from(sorted(changed.keys() - {"schema"})))] = data.draw(LIKELY)
    written = replace(manifest, **body, tables={"t": TableEntry(**entry)})
    directory = tmp_path / "written"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        written.write(directory)
    except damo.DamoError as error:
        assert re.search(r"the manifest is not written, .*: ", str(error))  # noqa: PT017
        assert not (directory / MANIFEST_FILE).exists()
        body = json.loads(json.dumps(asdict(written)))
        assert body["tables"]["t"].pop("life") is None
        assert not is_valid(body)
    else:
        assert Manifest.read(directory) == written


@pytest.mark.parametrize(
    ("optimizer", "sound"),
    [
        ({"name": "AMSGRAD", "corrected_max": 1.0}, True),
        ({"name": "AMSGRAD", "corrected_max": 0.5}, False),
        ({"name": "ADAM", "corrected_max": 1.0}, False),
        ({"name": "AMSGRAD", "corrected_min": 1.0}, False),
    ],
)
def test_corrected_maxima_are_an_amsgrads(manifest, optimizer, sound):
    table = manifest.tables["t"]
    schema = replace(table.schema, optimizer={"initial_accumulator_value": 0.0, **optimizer})
    if sound:
        replace(table, schema=schema).check()
    else:
        with pytest.raises(ValueError, match="optimizer is"):
            replace(table, schema=schema).check()


@fuzz
@given(contents=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused(tmp_path, contents):
    (tmp_path / MANIFEST_FILE).write_bytes(contents)
    assert read_or_refuse(tmp_path) is None


@pytest.mark.parametrize("depth", [100, 100_000])
def test_what_is_nested_without_end_is_refused(tmp_path, depth):
    (tmp_path / MANIFEST_FILE).write_text(
        '{"format_version": 1, "sha256": "", "manifest": ' + "[" * depth + "]" * depth + "}"
    )
    assert read_or_refuse(tmp_path) is None


@fuzz
@given(data=st.data())
def test_damaged_bytes_are_refused_or_mean_the_same(manifest, tmp_path, data):
    path = tmp_path / MANIFEST_FILE
    whole = path.read_bytes()
    contents = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(contents)))
        end = min(len(contents), begin + data.draw(st.integers(0, 3)))
        contents[begin:end] = data.draw(st.binary(max_size=3))
    path.write_bytes(contents)
    try:
        assert read_or_refuse(tmp_path) in (None, manifest)
    finally:
        path.write_bytes(whole)


@fuzz
@given(data=st.data())
def test_fields_are_read_as_they_are_or_refused(manifest, tmp_path, data):
    """Of a manifest with the right checksum, in which fields were removed, added or given another value."""
    whole = (tmp_path / MANIFEST_FILE).read_bytes()
    body = body_of(tmp_path)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places(body) or [("seed",)]))
        siblings, name = parent_of(body, path), path[-1]
        change = data.draw(st.sampled_from(["remove", "add", "replace"]))
        if change == "remove":
            siblings.pop(name, None)
        else:
            siblings[name if change == "replace" else data.draw(st.text(max_size=4))] = data.draw(LIKELY | JSON)
    try:
        check(tmp_path, body)
    finally:
        (tmp_path / MANIFEST_FILE).write_bytes(whole)


def test_each_field_is_needed_and_has_its_type(manifest, tmp_path):
    whole = body_of(tmp_path)
    check(tmp_path, whole)
    for path in places(whole):
        for value in (None, True, -1, 0.5, "x", [], {}, 2**70):
            body = json.loads(json.dumps(whole))
            parent_of(body, path)[path[-1]] = value
            check(tmp_path, body)
        body = json.loads(json.dumps(whole))
        del parent_of(body, path)[path[-1]]
        check(tmp_path, body)
