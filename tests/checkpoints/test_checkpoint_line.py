"""`damo_torchrec.checkpoints.checkpoint_line`: which checkpoints are of a store, whatever has become of its files."""

import json
import shutil
from pathlib import Path

import pytest

import damo_torchrec as damo
from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.rescue.repair import repair
from mixed_run import SmallModel, collection, update


@pytest.fixture
def store(tmp_path) -> Path:
    """A store that was closed at step 1."""
    with damo.EmbeddingStore(tmp_path / "store") as store:
        update(collection(store, "t"), {"t": [[1]]})
    return tmp_path / "store"


def line_at(path: Path) -> str:
    line = json.loads((path / "origin.json").read_text())["origin"]["line"]
    assert len(line) == 32
    return line


def test_a_line_is_of_the_directory_whatever_checkpoint_it_goes_back_to(store, tmp_path):
    line = line_at(store)
    assert {line_at(checkpoint) for checkpoint in (store / "checkpoints").iterdir()} == {line}
    with damo.EmbeddingStore(tmp_path / "other", restore=store / "checkpoints" / "step_1") as other:
        assert line_at(other.path) != line
        assert line_at(other.checkpoint()) == line_at(other.path)
    with damo.EmbeddingStore(store, restore=tmp_path / "other" / "checkpoints" / "step_1"):
        pass
    assert line_at(store) == line
    assert line_at(CheckpointLine.of_store(store).newest()) == line


def test_checkpoints_alone_are_a_store_of_the_same_line(store, tmp_path):
    line = line_at(store)
    shutil.copytree(store / "checkpoints", tmp_path / "copy" / "checkpoints")
    assert damo.checkpoint_info(tmp_path / "copy").store_step == 1
    with damo.EmbeddingStore(tmp_path / "copy") as copy:
        assert (copy.step, line_at(copy.path)) == (1, line)


def test_without_its_checkpoints_a_store_begins_another_line(store):
    line = line_at(store)
    shutil.rmtree(store / "checkpoints")
    with damo.EmbeddingStore(store):
        assert line_at(store) != line


def test_a_damaged_file_says_how_to_go_on(store):
    (store / "origin.json").write_text("{")
    with pytest.raises(damo.CorruptionError, match=r"origin\.json is damaged.* Without the file"):
        damo.EmbeddingStore(store)
    (store / "origin.json").unlink()
    with damo.EmbeddingStore(store) as opened:
        assert opened.step == 1


def test_a_damaged_checkpoint_of_another_line_is_in_nobodys_way(store, tmp_path):
    with damo.EmbeddingStore(store) as mine, damo.EmbeddingStore(tmp_path / "theirs") as theirs:
        managers = [damo.CheckpointManager(tmp_path / "run", every_steps=1) for _ in range(2)]
        models = [SmallModel(theirs), bare(mine)]
        for manager, model in zip(managers, models, strict=True):
            manager.save(model, 1)
            manager.wait()
        (tmp_path / "run" / "step_1" / "manifest.json").write_text("{")
        assert managers[1].restore(models[1]).path.name == "step_1.1"
        with pytest.raises(damo.CorruptionError, match=r"step_1.* may be the newest"):
            managers[0].restore(models[0])


def bare(store: damo.EmbeddingStore) -> damo.EmbeddingBagCollection:
    """A model that is its collection."""
    return collection(store, "t")


def test_a_repaired_checkpoint_is_of_its_line_and_nobody_removes_it(store, tmp_path):
    source = store / "checkpoints" / "step_1"
    repaired = repair(source, tmp_path / "repaired", lambda *_: None).target
    assert line_at(repaired) == line_at(store)
    assert json.loads((repaired / "origin.json").read_text())["origin"]["keeper"] == ""
    (source / "origin.json").write_text("{")
    repaired = repair(source, tmp_path / "again", lambda *_: None)
    assert [finding.path.name for finding in repaired.findings] == ["origin.json"]
    assert not (tmp_path / "again" / "origin.json").exists()
