"""Deltas by somebody who knows the format, with checksums that match: refused, or read right."""

import io
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import damo_torchrec as damo
from damo_torchrec import Delta
from delta_model import Model
from forging import forge_delta, forged_copy


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of table number 1: ids -4, 4 and 7, and 9 deleted; table number 2 has none."""
    path = tmp_path_factory.mktemp("hostile")
    with damo.EmbeddingStore(path / "store", memory_budget="64MiB") as store:
        model = Model(store)
        model.train("a", [9])
        base = store.checkpoint()
        model.table("a").delete([9])
        model.train("a", [4, -4, 7])
        return store.export_delta(path / "delta", since=base)


def array(name: str, change: Callable[[Any], Any]) -> Callable[[Path], object]:
    return lambda path: np.save(path / name, change(np.load(path / name)))


def header(name: str, **entries: Any) -> Callable[[Path], object]:
    """A file that is a header alone."""

    def write(path: Path) -> None:
        with (path / name).open("wb") as file:
            entries_ = {"descr": "<i8", "fortran_order": False, "shape": (1,), **entries}
            np.lib.format.write_array_header_1_0(file, entries_)

    return write


def content(name: str, of: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(of((path / name).read_bytes()))


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, np.zeros(1))
    return buffer.getvalue()


def test_arrays_in_the_order_of_fortran_are_read_right(delta: Path, tmp_path: Path) -> None:
    copy = forged_copy(delta, tmp_path / "copy", array("1.weights.npy", np.asfortranarray))
    np.testing.assert_array_equal(Delta.read(copy).tables["a"].weights, Delta.read(delta).tables["a"].weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (array("1.ids.npy", lambda a: a.astype(">i8")), "expected <i8 .*found >i8"),
        (array("1.ids.npy", lambda a: a.astype("<u8")), "expected <i8 .*found <u8"),
        (array("1.ids.npy", lambda a: a.reshape(1, -1)), r"expected <i8 \(3,\), found <i8 \(1, 3\)"),
        (array("1.ids.npy", lambda a: a[0]), r"found <i8 \(\)"),
        (array("1.ids.npy", lambda a: a[::-1]), "its ids do not ascend"),
        (array("1.ids.npy", lambda a: a[[0, 0, 2]]), "its ids do not ascend"),
        (array("1.deleted.npy", lambda a: a * 0 + 4), "it has ids that 1.ids.npy has, too"),
        (array("1.weights.npy", lambda a: a * np.float32("nan")), "weights that are NaN or infinite"),
        (array("1.weights.npy", lambda a: a * np.float32("inf")), "weights that are NaN or infinite"),
        (array("1.weights.npy", lambda a: a.astype("f8")), "expected <f4 .*found <f8"),
        (array("1.weights.npy", lambda a: np.zeros((2, 3), "f4")), r"expected <f4 \(3, 3\), found <f4 \(2, 3\)"),
        (array("1.deleted.npy", lambda a: a.astype("V8")), r"expected <i8 .*found \|V8"),
        (array("1.deleted.npy", lambda a: a.view([("a", "i8")])), "its header is"),
        (lambda p: np.save(p / "1.deleted.npy", np.array([{}], dtype=object)), r"found \|O"),
        (lambda p: (p / "1.deleted.npy").write_bytes(archive()), "no array of NumPy's format"),
        (lambda p: (p / "1.deleted.npy").write_bytes(pickle.dumps([1])), "no array of NumPy's format"),
        (header("1.deleted.npy", shape=(10**12,)), "found <i8"),
        (header("1.deleted.npy"), "does not take its 0 bytes"),
        (header("1.deleted.npy", shape=(-1,)), "found <i8"),
        (header("1.deleted.npy", shape=(2**62, 4)), "found <i8"),
        (header("1.deleted.npy", descr="|V0", shape=(10**9,)), r"found \|V0"),
        (content("1.deleted.npy", lambda c: c + b"\0"), "does not take its 9 bytes"),
        (content("1.deleted.npy", lambda c: c[:-1]), "does not take its 7 bytes"),
        (content("1.deleted.npy", lambda c: c[:9]), "its header is"),
        (content("1.deleted.npy", lambda c: b""), "no array of NumPy's format"),
        (content("1.deleted.npy", lambda c: c[:6] + b"\x02\0" + c[8:]), "no array of NumPy's format"),
        (content("1.deleted.npy", lambda c: c[:8] + b"\x00\x04" + b"(" * 1024), "its header is"),
        (content("1.deleted.npy", lambda c: c[:8] + b"\xff\xff" + b"(" * 65535), "no array of NumPy's format"),
        (content("1.deleted.npy", lambda c: c[:8] + b"\x10\x00" + b"9" * 16), "its header is"),
    ],
)
def test_forged_arrays_are_refused(delta: Path, tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    copy = forged_copy(delta, tmp_path / "copy", change)
    with pytest.raises(damo.CorruptionError, match=message) as error:
        Delta.read(copy)
    assert str(copy) in str(error.value)


def set_entry(path: str, value: Any) -> Callable[[dict[str, Any]], object]:
    *above, last = path.split(".")

    def change(body: dict[str, Any]) -> None:
        for key in above:
            body = body[key]
        body[last] = value

    return change


OTHER = "0" * 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_entry("id", "../x"), "id is .*, expected 32 hexadecimal digits"),
        (set_entry("id", OTHER.upper() + "é"), "id is .*, expected 32 hexadecimal digits"),
        (set_entry("line", [OTHER]), "does not lead from base"),
        (set_entry("line", []), "does not lead from base"),
        (lambda b: b["line"].append(b["line"][0]), "does not lead from base"),
        (lambda b: b["line"].append(b["id"]), "does not lead from base"),
        (set_entry("step", -1), "delta.step is -1"),
        (set_entry("step", 2**32), "delta.step is"),
        (set_entry("step", 1.0), "delta.step is 1.0"),
        (set_entry("step", True), "delta.step is True"),
        (set_entry("step", 0), "is before since_step"),
        (set_entry("seed", 2**200), "delta.seed is"),
        (set_entry("seed", float("nan")), "seed is nan|NaN"),
        (set_entry("tables.a.changed", 4), r"expected <i8 \(4,\), found <i8 \(3,\)"),
        (set_entry("tables.a.changed", 2**62), r"expected <i8 \(4611686018427387904,\)"),
        (set_entry("tables.a.dim", 2**31 - 1), r"expected <f4 \(3, 2147483647\)"),
        (set_entry("tables.a.dim", 0), "dim is 0"),
        (set_entry("tables.b.number", 1), "tables share the numbers"),
        (set_entry("tables.a.number", 7), r"files lack \['7"),
        (set_entry("tables.a.more", 7), "should not have them"),
        (set_entry("tables.a.mean", [1.0, 2.0]), "the mean of table 'a' is .*, not 3 float32s"),
        (set_entry("tables.a.mean", [1.0, 2.0, 1e39]), "the mean of table 'a' is .*, not 3 float32s"),
        (set_entry("tables.a.mean", [1.0, 2.0, float("inf")]), "the mean of table 'a' is .*, not 3 float32s"),
        (set_entry("tables.a.mean", [1.0, 2.0, "3"]), r"mean\[2\] is '3'"),
        (set_entry("tables.a.mean", 5), "mean is 5"),
        (set_entry("tables", []), "delta.tables is"),
        (lambda b: b["files"].pop("1.weights.npy"), r"files lack \['1.weights.npy'\]"),
        (lambda b: b["files"].update({"../x": b["files"]["1.ids.npy"]}), r"files are called \['../x'\]"),
        (lambda b: b["files"].update({"/etc/passwd": b["files"]["1.ids.npy"]}), "files are called"),
        (lambda b: b["files"].update({"a/b": b["files"]["1.ids.npy"]}), "files are called"),
        (lambda b: b["files"].update({"": b["files"]["1.ids.npy"]}), "files are called"),
        (lambda b: b["files"].update({"..": b["files"]["1.ids.npy"]}), "files are called"),
        (lambda b: b["files"].update({"x\0": b["files"]["1.ids.npy"]}), "files are called"),
        (lambda b: b["files"].update({"\ud800": b["files"]["1.ids.npy"]}), "surrogates"),
        (lambda b: b["files"].update({"n" * 5000: b["files"]["1.ids.npy"]}), "files are called"),
        (lambda b: b["files"].update({"delta.json": b["files"]["1.ids.npy"]}), "files are called"),
        (lambda b: b["files"].update({"dense.onnx": b["files"]["1.ids.npy"]}), "dense.onnx is missing"),
        (set_entry("files.x", {"size": 10**40, "sha256": None}), "size is"),
    ],
)
def test_forged_manifests_are_refused(delta: Path, tmp_path: Path, change: Any, message: str) -> None:
    copy = forged_copy(delta, tmp_path / "copy", lambda _: None)
    forge_delta(copy, change)
    with pytest.raises(damo.CorruptionError, match=message) as error:
        Delta.read(copy)
    assert str(copy) in str(error.value)


@pytest.mark.parametrize("name", ["1.ids.npy", "delta.json"])
@pytest.mark.parametrize("kind", ["link", "directory", "pipe"])
def test_what_is_no_file_is_refused(delta: Path, tmp_path: Path, name: str, kind: str) -> None:
    """A pipe would be waited for, a link be followed out of the directory."""
    copy = forged_copy(delta, tmp_path / "copy", lambda _: None)
    (copy / name).rename(tmp_path / "elsewhere")
    if kind == "link":
        (copy / name).symlink_to(tmp_path / "elsewhere")
    elif kind == "directory":
        (copy / name).mkdir()
    else:
        os.mkfifo(copy / name)
    with pytest.raises(damo.CorruptionError, match="expected a regular file"):
        Delta.read(copy)


def test_who_has_private_copies_does_not_mind_what_becomes_of_the_files(delta: Path, tmp_path: Path) -> None:
    copy, private = forged_copy(delta, tmp_path / "copy", lambda _: None), tmp_path / "private"
    private.mkdir()
    read = Delta.read(copy, private=private)
    for file in copy.iterdir():
        os.truncate(file, 0)
    for name, table in Delta.read(delta).tables.items():
        for array in ("ids", "weights", "deleted"):
            np.testing.assert_array_equal(getattr(read.tables[name], array), getattr(table, array))
    assert list(private.iterdir()) == []


def test_a_huge_file_is_refused_before_it_is_read(delta: Path, tmp_path: Path) -> None:
    copy = forged_copy(delta, tmp_path / "copy", lambda _: None)
    for name in ("1.deleted.npy", "delta.json"):
        os.truncate(copy / name, 2**40)
        with pytest.raises(damo.CorruptionError, match=r"expected \d+ bytes|larger than \d+ bytes"):
            Delta.read(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 << 20  # KiB


@pytest.mark.parametrize("text", ["[" * 200_000, '{"format_version":' + "9" * 5000 + "}", "nul", "\ud800", '{"a":'])
def test_what_is_no_json_is_refused(delta: Path, tmp_path: Path, text: str) -> None:
    copy = forged_copy(delta, tmp_path / "copy", lambda _: None)
    (copy / "delta.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(damo.CorruptionError, match=r"delta\.json is damaged"):
        Delta.read(copy)
