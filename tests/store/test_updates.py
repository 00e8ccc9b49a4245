"""Updates that are skipped one after the other are told."""

import pytest

import damo_torchrec as damo
from mixed_run import collection, update


def ours(caplog):
    """What this package has logged: torch says at its first use of some things that they will change."""
    return [record for record in caplog.records if record.name.startswith("damo_torchrec")]


def test_skipped_steps_in_a_row_are_told_and_end_in_an_error(caplog):
    options = damo.StoreOptions(num_threads=2, on_nonfinite="skip", max_skipped_in_a_row=7)
    with damo.EmbeddingStore(options=options) as store:
        ebc = collection(store, "t")
        for _ in range(2):
            for _ in range(4):
                update(ebc, {"t": [[1]]}, float("nan"))
            update(ebc, {"t": [[1]]})
        assert not ours(caplog)
        for _ in range(6):
            update(ebc, {"t": [[1]]}, float("nan"))
        assert [record.levelname for record in ours(caplog)] == ["WARNING"]
        assert "has skipped 5 updates in a row" in caplog.text
        with pytest.raises(damo.NonFiniteGradientError, match="has skipped 7 updates in a row"):
            update(ebc, {"t": [[1]]}, float("nan"))
        update(ebc, {"t": [[1]]})
        update(ebc, {"t": [[1]]}, float("nan"))
        assert (store.step, store.stats().skipped_backwards) == (3, 16)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_a_limit_of_skipped_steps_is_a_count(limit):
    with pytest.raises(ValueError, match="max_skipped_in_a_row must be an int from 1 on"):
        damo.StoreOptions(max_skipped_in_a_row=limit)
