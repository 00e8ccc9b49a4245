"""``damo-torchrec expired``."""

from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from support import config, kjt, small_store


@pytest.fixture
def store(tmp_path) -> Path:
    """With a checkpoint ``then`` that has ids that are gone now."""
    with small_store(tmp_path / "store", keep_checkpoints=None) as store:
        ebc = damo.EmbeddingBagCollection([config("t", 4)], torch.optim.SGD, {"lr": 0.1}, store=store)
        ebc(kjt({"t": [[5, -7, 6, 2**62]]})).values().sum().backward()
        store.checkpoint(store.path / "checkpoints" / "then")
        store.table("t").delete([6, -7, 2**62])
    return tmp_path / "store"


@pytest.mark.parametrize("opened", [False, True])
def test_it_prints_what_has_gone_also_beside_an_open_store(store, call, opened):
    def gone() -> tuple[int, list[str], str]:
        return call("expired", store, "t", "--since", "then")

    if opened:
        with small_store(store):
            status, lines, err = gone()
            assert (status, lines) == (0, ["-7", "6", str(2**62)])
            assert "newest checkpoint, of step 1" in err
    else:
        assert gone() == (0, ["-7", "6", str(2**62)], "")
        assert call("expired", store, "t", "--since", store / "checkpoints" / "then")[1] == ["-7", "6", str(2**62)]
        assert call("expired", store, "t", "--since", "latest") == (0, [], "")


@pytest.mark.parametrize(
    ("table", "since", "error"),
    [
        ("u", "then", "has no table 'u'; its tables are ['t']"),
        ("t", "7", "has no checkpoint '7'; it has step_0, then, step_1"),
        ("t", "step_0", "has no table 't', whose rows could have gone since"),
    ],
)
def test_what_is_not_there_is_wrong_usage(store, call, table, since, error):
    status, lines, err = call("expired", store, table, "--since", since)
    assert (status, lines) == (2, [])
    assert error in err
