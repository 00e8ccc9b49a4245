"""Calls that are refused: batches, each with its error and what that says, and that nothing changes by it."""

from contextlib import contextmanager

import pytest
import torch
import torchrec
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from support import config, kjt, payloads

IDS = torch.tensor([1, 2, 3])
ONES = torch.tensor([1, 1, 1])


def collection(store, *tables, **arguments):
    arguments = {"optimizer_type": torchrec.optim.RowWiseAdagrad, "optimizer_kwargs": {"lr": 0.1}, **arguments}
    return damo.EmbeddingBagCollection(list(tables), store=store, **arguments)


def trained(store, **arguments):
    """A collection of two tables that has had an update."""
    ebc = collection(store, config("t", 4, ["f"]), config("u", 4, ["g"]), **arguments)
    ebc(kjt({"f": [[1, 2]], "g": [[3]]}, weights=[1.0, 2.0, 3.0])).values().sum().backward()
    return ebc


def batch(values=IDS, lengths=ONES, weights=None, keys=("f", "g", "h")):
    return KeyedJaggedTensor(list(keys), values, weights, lengths=lengths)


BATCHES = {
    "a missing key": (lambda: batch(keys=["f", "x", "y"]), KeyError, r"no feature 'g' .* \['f', 'x', 'y'\]"),
    "float ids": (lambda: batch(IDS.float()), TypeError, "values must be int64 or int32, got torch.float32"),
    "bool ids": (lambda: batch(IDS.bool()), TypeError, "values must be int64 or int32, got torch.bool"),
    "ids of two dimensions": (lambda: batch(IDS[:, None]), ValueError, r"values must .*\(3, 1\)"),
    "a negative length": (
        lambda: batch(lengths=torch.tensor([1, -1, 3])),
        ValueError,
        "lengths must not be negative, got -1 at position 1",
    ),
    "decreasing offsets": (
        lambda: KeyedJaggedTensor(["f", "g", "h"], IDS, offsets=torch.tensor([0, 2, 1, 3])),
        ValueError,
        "lengths must not be negative, got -1 at position 1",
    ),
    "lengths beyond the values": (
        lambda: batch(lengths=torch.tensor([1, 1, 2])),
        ValueError,
        "lengths must sum to the number of values, 3, but exceed it at position 2",
    ),
    "lengths that overflow": (
        lambda: batch(lengths=torch.tensor([1, 2**63 - 1, 2**63 - 1])),
        ValueError,
        "lengths must sum to the number of values, 3, but exceed it at position 1",
    ),
    "lengths short of the values": (
        lambda: batch(lengths=torch.tensor([1, 1, 0])),
        ValueError,
        "lengths must sum to the number of values, 3, got 2",
    ),
    "lengths that are no multiple of the keys": (
        lambda: batch(lengths=torch.tensor([1, 1, 1, 0])),
        ValueError,
        "one for each of 3 keys and 1 samples, got 4",
    ),
    "an id on another device": (lambda: batch(IDS.to("meta")), ValueError, "values must be on the cpu, got meta"),
}


WEIGHTS = {
    "none": (None, ValueError, "has no weights"),
    "too many": (torch.ones(4), ValueError, r"one for each of 3 values, got \(4,\)"),
    "too few": (torch.ones(2), ValueError, r"one for each of 3 values, got \(2,\)"),
    "of two dimensions": (torch.ones(3, 1), ValueError, r"one for each of 3 values, got \(3, 1\)"),
    "ints": (ONES, TypeError, "weights must be floating point, got torch.int64"),
}


@contextmanager
def refused(store, error, match):
    """The call within raises, and leaves all rows, steps and open tables as they were."""

    def state():
        return store.step, {name: (table.iter, payloads(store, name)) for name, table in store.tables().items()}

    before = state()
    assert before[0] > 0
    with pytest.raises(error, match=match):
        yield
    assert state() == before
