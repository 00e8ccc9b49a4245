"""Two tables read side by side, against dicts."""

import numpy as np
import pytest

from damo_torchrec.inspection.comparison import compare
from damo_torchrec.store.rows import Rows


def batches(rows: dict[int, float], sizes: np.random.Generator):
    """The rows, ascending, in batches of random sizes."""
    ids = sorted(rows)
    while ids:
        n = int(sizes.integers(1, 6))
        some, ids = ids[:n], ids[n:]
        values = np.array([[rows[i]] for i in some], np.float32)
        none = np.zeros(len(some), np.int64)
        yield Rows(np.array(some, np.int64), values, np.empty((len(some), 0), np.float32), none, none)


@pytest.mark.parametrize("seed", range(30))
def test_it_finds_what_dicts_find(seed):
    random = np.random.default_rng(seed)

    def some() -> dict[int, float]:
        n = int(random.integers(0, 40))
        return {int(i): float(random.integers(0, 2)) for i in random.integers(-30, 30, n)}

    first, second = some(), some()
    found = list(compare(batches(first, random), batches(second, random), weights=True, all_else=True))
    joined = {what: [i for one in found for i in getattr(one, what).tolist()] for what in ("gone", "added", "changed")}
    assert joined == {
        "gone": sorted(first.keys() - second.keys()),
        "added": sorted(second.keys() - first.keys()),
        "changed": sorted(i for i in first.keys() & second.keys() if first[i] != second[i]),
    }
    assert max((one.largest_change for one in found), default=0) == (1 if joined["changed"] else 0)


def test_a_change_to_what_is_no_number_is_infinite():
    random = np.random.default_rng(0)
    before, after = batches({1: 1.0, 2: 2.0}, random), batches({1: np.nan, 2: 3.0}, random)
    found = list(compare(before, after, weights=True, all_else=True))
    assert max(one.largest_change for one in found) == np.inf
