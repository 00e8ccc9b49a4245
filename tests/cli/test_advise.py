"""`damo-torchrec advise`."""

import pytest
import torch

import damo_torchrec as damo
from support import config, kjt, small_store


def test_it_says_what_the_store_says(trained_once, document, call):
    status, found = document("advise", trained_once)
    with damo.EmbeddingStore(trained_once, memory_budget="64MiB", read_only=True) as store:
        advice = store.advise()
    assert (status, found["memory_budget"], found["advised"]) == (0, 64 << 20, advice.advised)
    assert found["advice"] == str(advice)
    assert [point["hit_rate"] for point in found["budgets"]] == [point.hit_rate for point in advice.points]
    assert found["new_ids"] == pytest.approx(7 / 10, abs=0.7)  # of ten ids, some of which are in the samples
    assert found["budgets"][0]["rows"] > 100_000  # of some 100 bytes, in 20 MiB
    status, lines, _ = call("advise", trained_once)
    assert lines[1].split()[0] == "64MiB"
    assert lines[-1] == str(advice)


def test_beside_training_it_says_so(tmp_path, call):
    with small_store(tmp_path / "store", profile_cache=True) as store:
        status, _, err = call("advise", store.path)
        assert (status, "no profile" in err, "profile_cache=True" in err) == (2, True, True)
        ebc = damo.EmbeddingBagCollection([config("t", 8)], torch.optim.Adam, {"lr": 0.1}, store=store)
        ebc(kjt({"t": [list(range(100))]})).values().sum().backward()
        store.checkpoint()
        status, lines, err = call("advise", store.path)
    assert (status, "newest checkpoint" in err) == (0, True)
    assert "too short" in lines[-1]


def test_a_checkpoint_has_none(trained_once, call):
    (checkpoint,) = (trained_once / "checkpoints").glob("then")
    status, _, err = call("advise", checkpoint)
    assert (status, "give the store's directory" in err) == (2, True)
