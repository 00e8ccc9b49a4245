"""`damo_torchrec.checkpoints.row_counts`: what a stranger's manifest says of its rows is not taken on trust."""

import shutil
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.row_counts import count_rows
from damo_torchrec.cli.main import main
from forging import forge
from mixed_run import SmallModel, collection
from support import small_store

ROWS = 200


@pytest.fixture(scope="module", params=["table files", "a journal"])
def saved(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    with small_store(path / "store") as store:
        model = SmallModel(store)
        model.ebc.tables()[0].set(torch.arange(ROWS), torch.ones(ROWS, 4))
        collection(store, "second", dim=4).tables()[0].set(torch.arange(3), torch.ones(3, 4))
        if request.param == "table files":
            store.flush()
        return store.checkpoint(path / "checkpoint")


@pytest.fixture
def checkpoint(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def test_rows_are_counted(checkpoint):
    assert count_rows(checkpoint / "rows", Manifest.read(checkpoint), {}) == {"t": ROWS, "second": 3}


def forget(manifest: dict) -> None:
    del manifest["tables"]["second"]
    manifest["next_table_number"] = 2


CONTRADICTIONS = {
    "a table that is not known": forget,
    "the same, of a number that no new one gets": lambda m: m["tables"].pop("second"),
    "another number": lambda m: (m["tables"]["t"].update(number=7), m.update(next_table_number=8)),
    "no rows where there are some": lambda m: m["tables"]["t"].update(rows=0),
}


@pytest.mark.parametrize("change", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_other_tables_than_there_are_rows_of_are_refused(checkpoint, tmp_path, change):
    forge(checkpoint, change)
    with pytest.raises(damo.CorruptionError):
        damo.EmbeddingStore(tmp_path / "mine", restore=checkpoint)
    with pytest.raises(damo.CorruptionError):
        damo.EmbeddingStore(checkpoint, read_only=True)
    assert main(["verify", str(checkpoint)]) == 1
    with damo.EmbeddingStore(tmp_path / "mine") as store:  # a new one: nothing was begun
        assert store.tables() == {}


def test_a_count_that_turns_out_to_be_impossible_is_counted_anew(checkpoint, tmp_path, caplog):
    forge(checkpoint, lambda manifest: manifest["tables"]["t"].update(rows=1))
    with damo.EmbeddingStore(tmp_path / "mine", restore=checkpoint) as store:
        table = SmallModel(store).ebc.tables()[0]
        table.delete(torch.arange(ROWS // 2))
    assert f"which cannot be: the manifest that the store began with was wrong. It has {ROWS // 2}" in caplog.text
    with damo.EmbeddingStore(tmp_path / "mine") as store:
        table = SmallModel(store).ebc.tables()[0]
        assert len(table) == ROWS // 2
        assert table.contains(torch.tensor([0, ROWS - 1])).tolist() == [False, True]


def test_a_sequence_that_nothing_could_follow_is_not_gone_on_from(checkpoint, tmp_path):
    forge(checkpoint, lambda manifest: manifest.update(sequence=2**62 - 1))
    with pytest.raises(damo.CorruptionError, match=r"manifest\.json is damaged: no checkpoint could follow"):
        damo.EmbeddingStore(tmp_path / "mine", restore=checkpoint)
    forge(checkpoint, lambda manifest: manifest.update(sequence=2**62))
    with pytest.raises(damo.CorruptionError, match="sequence"):
        damo.EmbeddingStore(checkpoint, read_only=True)


def test_such_a_checkpoint_beside_a_managers_own_stops_none(checkpoint, tmp_path):
    forge(checkpoint, lambda manifest: manifest.update(sequence=2**62 - 1))
    (tmp_path / "run").mkdir()
    shutil.copytree(checkpoint, tmp_path / "run" / "step_9")
    with small_store(tmp_path / "mine") as store, damo.CheckpointManager(tmp_path / "run", every_steps=1) as manager:
        model = SmallModel(store)
        model.step()
        manager.save(model, 1)
    assert (tmp_path / "run" / "step_1" / "manifest.json").is_file()
