"""`damo-torchrec advise`."""

import os
import shutil

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


@pytest.mark.parametrize("kind", ["garbage", "truncated", "list", "directory", "FIFO", "link", "another version"])
def test_a_damaged_profile_is_damage_and_a_report_does_without(trained, call, caplog, tmp_path, kind):
    file = trained / "cache_profile.json"
    content = file.read_bytes()
    file.unlink()
    match kind:
        case "garbage":
            file.write_bytes(b"\x00\xff\xfe" * 100)
        case "truncated":
            file.write_bytes(content[: len(content) // 2])
        case "list":
            file.write_bytes(b"[]")
        case "directory":
            file.mkdir()
        case "FIFO":
            os.mkfifo(file)
        case "link":
            file.symlink_to("nowhere")
        case "another version":
            file.write_bytes(content.replace(b'"format_version": 1', b'"format_version": 9'))
    status, lines, err = call("advise", trained)
    assert (status, lines) == (1, [])
    assert str(file) in err
    assert "which may be removed" in err
    status, lines, _ = call("report", trained, "-o", tmp_path / "report.html")
    assert (status, lines) == (0, [f"wrote {tmp_path / 'report.html'}"])
    assert "which may be removed" in (tmp_path / "report.html").read_text()
    (warned,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert str(file) in warned
    assert "which may be removed" in warned


def test_the_profile_of_another_store_is_none(trained, tmp_path, call, caplog):
    with small_store(tmp_path / "other", profile_cache=True) as store:
        ebc = damo.EmbeddingBagCollection([config("t", 8)], torch.optim.Adam, {"lr": 0.1}, store=store)
        ebc(kjt({"t": [[1]]})).values().sum().backward()
    shutil.copy(tmp_path / "other" / "cache_profile.json", trained)
    for command in (["advise"], ["report", "-o", tmp_path / "report.html"]):
        caplog.clear()
        status, _, err = call(command[0], trained, *command[1:])
        assert (status, "has no profile" in err) == ((2, True) if command == ["advise"] else (0, False))
        assert "is the profile of another store; it may be removed" in caplog.text
    assert "There is no profile of the cache" in (tmp_path / "report.html").read_text()
