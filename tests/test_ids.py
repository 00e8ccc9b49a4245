"""Ids of strings are XXH64 of their UTF-8 bytes, in every form in which strings come, and nothing else has one."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from damo_torchrec.ids import hash_strings

xxhash = pytest.importorskip("xxhash")
pa = pytest.importorskip("pyarrow")

# By salt: what lz4-java's XXHash64 and xxhash-wasm give; Spark's xxhash64 with 42, ClickHouse's xxHash64 with 0.
STRINGS = ["", "a", "user-17", "Ω≈ç√", "x" * 101]
GOLDEN = {
    0: [-1205034819632174695, -3292477735350538661, -280232040987826713, 1324529245727092164, -331663453869473674],
    42: [-7444071767201028348, -8582455328737087284, 3696232749192350829, 6530135514362181633, -8116958218630918081],
    2**63: [-3518041385162096417, 6055685727473734203, -4701790344826926462, 5965482292468574859, -6179025354569395879],
}


@pytest.mark.parametrize("salt", GOLDEN)
def test_golden_values(salt: int) -> None:
    ids = hash_strings(STRINGS, salt)
    assert (ids.dtype, ids.tolist()) == (np.int64, GOLDEN[salt])


def test_every_form_of_strings_has_the_same_ids() -> None:
    expected = np.array(GOLDEN[0])
    forms: list[Any] = [
        tuple(STRINGS),
        [string.encode() for string in STRINGS],
        [string if i % 2 else string.encode() for i, string in enumerate(STRINGS)],
        np.array(STRINGS),
        np.array(STRINGS, dtype=object),
        np.ma.array(STRINGS),
        np.array([string.encode() for string in STRINGS]),
        pa.array(STRINGS),
        pa.array(["left out", *STRINGS])[1:],
        pa.chunked_array([STRINGS[:2], [], STRINGS[2:]]),
        pa.array(STRINGS).dictionary_encode(),
        pa.chunked_array([STRINGS[:2], STRINGS[2:]]).dictionary_encode(),
        *(pa.array(STRINGS, type_) for type_ in (pa.large_string(), pa.binary(), pa.large_binary())),
        pa.DictionaryArray.from_arrays(pa.array([0, 2, 3, 4, 5]), pa.array([STRINGS[0], None, *STRINGS[1:]])),
    ]
    for form in forms:
        np.testing.assert_array_equal(hash_strings(form), expected)
    np.testing.assert_array_equal(hash_strings(np.array([STRINGS])), [expected])
    assert hash_strings(pa.array([b"user-17"], pa.binary(7))).tolist() == [GOLDEN[0][2]]


@pytest.mark.parametrize(
    "nothing", [[], np.array([], dtype=str), pa.array([], pa.string()), pa.chunked_array([], pa.binary())], ids=str
)
def test_no_strings_have_no_ids(nothing: Any) -> None:
    assert (hash_strings(nothing).dtype, hash_strings(nothing).shape) == (np.int64, (0,))


def test_bytes_of_every_length_hash_as_xxhash_does() -> None:
    texts = [bytes(range(n)) for n in range(200)]
    expected = [xxhash.xxh64(text, seed=7).intdigest() for text in texts]
    assert hash_strings(texts, 7).view(np.uint64).tolist() == expected


class NAType:
    """As pandas' NA: nothing is equal to it, or not equal."""

    def __ne__(self, other: object) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "one string": ("abc", TypeError, "must be a list or an array of strings, got one: 'abc'"),
    "a set": ({"a"}, TypeError, "must be a list or an array of strings, got set"),
    "ints": ([1, 2], TypeError, "must be str or bytes, got int at position 0"),
    "int among strings": (["a", 2], TypeError, "got int at position 1"),
    "an array of ints": (np.array([1]), TypeError, "got an array of int64"),
    "Arrow's ints": (pa.array([1]), TypeError, "got an Arrow array of int64"),
    "lists": (pa.array([["a"]]), TypeError, "got an Arrow array of list"),
    "None": (["a", None], ValueError, "got null at position 1"),
    "pandas' NaN": (np.array(["a", "b", np.nan], dtype=object), ValueError, "got null at position 2"),
    "pandas' NA": (np.array(["a", NAType()], dtype=object), ValueError, "got null at position 1"),
    "what a mask hides": (np.ma.array(["a", "b", "c"], mask=[0, 1, 1]), ValueError, "got null at position 1"),
    "an array among strings": (np.array(["a", np.zeros(2)], dtype=object), TypeError, "got ndarray at position 1"),
    "Arrow's null": (pa.chunked_array([["a"], ["b", None]]), ValueError, "got null at position 2"),
    "null in a dictionary": (
        pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["a", None])),
        ValueError,
        "got null at position 1",
    ),
    "half a character": (["\ud800"], ValueError, r"'\\ud800' has no UTF-8"),
}


@pytest.mark.parametrize(("strings", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_ids_is_refused(strings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hash_strings(strings)


@pytest.mark.parametrize(
    ("salt", "error"), [(-1, ValueError), (2**64, ValueError), (1.0, TypeError), (True, TypeError), ("s", TypeError)]
)
def test_a_salt_is_an_unsigned_integer_of_64_bits(salt: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="salt must be"):
        hash_strings(["a"], salt)


def test_without_xxhash_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(ImportError, match=r"need pip install 'damo-torchrec\[strings\]'"):
        hash_strings(["a"])


def test_it_needs_neither_torch_nor_pyarrow() -> None:
    script = "import sys, damo_torchrec as damo; damo.ids.hash_strings(['a']); "
    script += "sys.exit(not {'torch', 'pyarrow'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
