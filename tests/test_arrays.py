"""`damo_torchrec.arrays`: what is taken for ids and numbers, and what it becomes."""

import numpy as np
import pytest
import torch

from damo_torchrec.arrays import as_ids, as_numbers

LARGEST, LEAST = 2**63 - 1, -(2**63)

IDS = {
    "a list": [1, -2, LARGEST],
    "a tuple": (LEAST, 0),
    "a range": range(3),
    "nothing": [],
    "NumPy's ints": [np.int64(5), np.uint8(6)],
    **{
        f"a tensor of {t}": torch.tensor([0, 100], dtype=t) for t in (torch.uint8, torch.int8, torch.int16, torch.int32)
    },
    **{f"a tensor of uint{n}": torch.tensor([0, 2 ** (n - 1)]).to(getattr(torch, f"uint{n}")) for n in (16, 32)},
    "a tensor of uint64": torch.tensor([0, LARGEST]).view(torch.uint64),
    **{f"an array of {t}": np.array([0, 100], dtype=t) for t in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")},
    "the largest uint64 that fits": np.array([LARGEST], dtype="u8"),
    "an array of the other byte order": np.array([1, -2, 2**40], dtype=">i8"),
    "an array backwards": np.arange(5)[::-1],
    "every other of an array": np.arange(10)[::2],
    "an array that cannot be written": np.broadcast_to(np.int64(7), 3),
    "a column of a tensor": torch.arange(6).reshape(3, 2)[:, 1],
    "a conjugate": torch.tensor([1, 2]).conj(),
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_ids_become_int64_without_loss(ids):
    taken = as_ids(ids)
    assert taken.dtype == torch.int64
    assert taken.is_contiguous()
    assert taken.tolist() == [int(i) for i in (ids.tolist() if hasattr(ids, "tolist") else ids)]


class Series:
    """As pandas' is: no array, but something that makes one."""

    def __array__(self, dtype=None, copy=None):
        return np.array([4, 5])


def test_what_makes_an_array_is_taken_for_it():
    assert as_ids(Series()).tolist() == [4, 5]


WRONG_IDS = {
    "floats that are whole": (np.array([1.0]), TypeError, "of integers, or ints, got an array of float64"),
    "a tensor of floats": (torch.tensor([1.0]), TypeError, "got a tensor of torch.float32"),
    "an empty array of floats": (np.array([]), TypeError, "got an array of float64"),
    "complex": (torch.tensor([1 + 0j]), TypeError, "got a tensor of torch.complex64"),
    "a tensor of bools": (torch.tensor([True]), TypeError, "got a tensor of torch.bool"),
    "an array of bools": (np.array([True]), TypeError, "got an array of bool"),
    "bools": ([True, 1], TypeError, "must be ints"),
    "NumPy's bools": ([np.bool_(True)], TypeError, "must be ints"),
    "floats": ([1.0], TypeError, "must be ints"),
    "strings": (["1"], TypeError, "must be ints"),
    "None": ([None], TypeError, "must be ints"),
    "an array of strings": (np.array(["1"]), TypeError, "got an array of <U1"),
    "an array of objects": (np.array([1, None], dtype=object), TypeError, "got an array of object"),
    "dates": (np.array(["2026-01-01"], dtype="M8[D]"), TypeError, "got an array of datetime64"),
    "a masked array": (np.ma.array([1, 2], mask=[0, 1]), TypeError, "must not be masked"),
    "a set": ({1}, TypeError, "got set"),
    "a number": (1, TypeError, "got int"),
    "a number of NumPy's": (np.int64(1), ValueError, r"shape \(n,\), got \(\)"),
    "two dimensions": (np.array([[1]]), ValueError, r"shape \(n,\), got \(1, 1\)"),
    "lists in a list": ([[1]], TypeError, "must be ints"),
    "uint64 beyond int64": (np.array([5, 2**63], dtype="u8"), ValueError, "fit int64, got 9223372036854775808"),
    "a uint64 tensor beyond": (torch.tensor([-1]).view(torch.uint64), ValueError, "got 18446744073709551615"),
    "an int beyond int64": ([-(2**63) - 1], ValueError, "fit int64, got -9223372036854775809"),
    "of the meta device": (torch.ones(2, dtype=torch.int64, device="meta"), ValueError, "meta device"),
}


@pytest.mark.parametrize(("ids", "error", "message"), WRONG_IDS.values(), ids=WRONG_IDS)
def test_what_is_no_id_is_refused(ids, error, message):
    with pytest.raises(error, match=message):
        as_ids(ids, "the ids")


NUMBERS = {
    "a list": [[1.5, 2], [3, -4]],
    "a list of NumPy's": [np.float32(1.5), np.float64(2)],
    "nothing": [],
    **{f"a tensor of {t}": torch.tensor([[1.5, -2]], dtype=t) for t in (torch.float16, torch.bfloat16, torch.float64)},
    **{f"an array of {t}": np.array([[1.5, -2]], dtype=t) for t in ("f2", "f4", "f8", ">f4", ">f8")},
    "an array in the order of Fortran": np.asfortranarray([[1.5, 2.0], [3.0, 4.0]]),
}


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
def test_numbers_become_float32(numbers):
    taken = as_numbers(numbers, "weights")
    assert taken.dtype == torch.float32
    assert taken.tolist() == (numbers.tolist() if hasattr(numbers, "tolist") else list(numbers))


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list])
def test_numbers_are_rounded_to_the_nearest_float32(kind):
    number = [0.1, 1 + 2**-24, 1 + 3 * 2**-24, 1e-46, 1e300]
    taken = as_numbers(torch.tensor(number, dtype=torch.float64) if kind is torch.tensor else kind(number), "weights")
    with np.errstate(over="ignore"):
        assert taken.tolist() == np.array(number).astype(np.float32).tolist()


WRONG_NUMBERS = {
    "an array of ints": (np.array([1]), TypeError, "got an array of int64"),
    "a tensor of ints": (torch.tensor([1]), TypeError, "got a tensor of torch.int64"),
    "bools": ([True], TypeError, "must be floats"),
    "strings of numbers": (["1.5"], TypeError, "must be floats"),
    "None": ([None], TypeError, "must be floats"),
    "lists that differ": ([[1.0], [1.0, 2.0]], ValueError, "lists of one length"),
    "complex": (np.array([1j]), TypeError, "got an array of complex128"),
    "a masked array": (np.ma.array([1.0], mask=[1]), TypeError, "must not be masked"),
    "one number": (1.5, TypeError, "got float"),
}


@pytest.mark.parametrize(("numbers", "error", "message"), WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_what_is_no_number_is_refused(numbers, error, message):
    with pytest.raises(error, match=message):
        as_numbers(numbers, "weights")


def test_what_is_given_stays_as_it_is():
    ids = np.arange(4, dtype=">i4")
    as_ids(ids)[0] = 9
    assert ids.tolist() == [0, 1, 2, 3]
