"""Figures of rows that no store has: those that are not finite."""

import numpy as np

from damo_torchrec.inspection.summary import TableSummary
from damo_torchrec.store.rows import Rows


def test_rows_that_are_not_finite_are_counted_apart():
    weights = np.array([[3, 4], [np.nan, 1], [0, 0], [np.inf, 0], [3e38, 3e38]], np.float32)
    ids = np.arange(5)
    summary = TableSummary()
    for part in (slice(0, 2), slice(2, 5)):
        summary.add(Rows(ids[part], weights[part], np.empty((len(ids[part]), 0), np.float32), ids[part], ids[part]))
    assert (summary.rows, summary.zero_rows, summary.nonfinite_rows) == (5, 1, 2)
    assert (summary.norms.n, summary.norms.least) == (3, 0)
    assert np.isclose(summary.norms.largest, np.sqrt(2) * np.float64(np.float32(3e38)))
    assert (summary.updates.least, summary.updates.mean, summary.updates.largest) == (0, 2, 4)
