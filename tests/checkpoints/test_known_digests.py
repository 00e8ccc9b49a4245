"""`damo_torchrec.checkpoints.known_digests`: a file of rows is hashed once, and damage of it is found all the same."""

import shutil
from pathlib import Path

import pytest

import damo_torchrec as damo
from damo_torchrec.checkpoints import file_entry
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.cli.main import main
from mixed_run import SmallModel
from support import small_store


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of files of rows, as they are hashed."""
    names: list[str] = []
    digest = file_entry.file_digest

    def file_digest(file: Path) -> str:
        if file.suffix in (".sst", ".log"):
            names.append(file.name)
        return digest(file)

    monkeypatch.setattr(file_entry, "file_digest", file_digest)
    return names


def test_files_that_checkpoints_share_are_hashed_once(tmp_path, hashed):
    with small_store(tmp_path / "store") as store:
        model = SmallModel(store)
        model.step()
        store.flush()
        first = store.checkpoint()
        assert [name for name in hashed if name.endswith(".sst")] == [file.name for file in first.rglob("*.sst")] != []
        hashed.clear()
        model.step()
        second = store.checkpoint_async().result()
        new = {file.name for file in second.rglob("*.log")}
        assert set(hashed) == new
    assert Manifest.read(second).files["rows/000008.sst"] == Manifest.read(first).files["rows/000008.sst"]


def test_a_stores_own_table_files_are_not_hashed_again_where_it_is_opened(tmp_path, hashed):
    with small_store(tmp_path / "store") as store:
        SmallModel(store).step()
    hashed.clear()
    with small_store(tmp_path / "store") as store:
        model = SmallModel(store)
        model.step()
        store.checkpoint()
    assert [name for name in hashed if name == "000008.sst"] == []


def test_those_of_another_store_are_hashed_whole(tmp_path, hashed):
    with small_store(tmp_path / "theirs") as store:
        SmallModel(store).step()
        store.flush()
        theirs = store.checkpoint(tmp_path / "checkpoint")
    hashed.clear()
    with damo.EmbeddingStore(tmp_path / "mine", restore=theirs):
        pass
    assert hashed == [file.name for file in theirs.rglob("*.sst")]


def test_what_changed_in_a_shared_file_is_found_whatever_the_block(tmp_path, capsys):
    """A byte that blocks leave unused: of the padding of the footer."""
    with small_store(tmp_path / "theirs") as store:
        SmallModel(store).step()
        store.flush()
        theirs = store.checkpoint(tmp_path / "checkpoint")
    forged = tmp_path / "forged"
    shutil.copytree(theirs, forged)
    (file,) = forged.rglob("*.sst")
    content = bytearray(file.read_bytes())
    assert content[-13] == 0
    content[-13] = 1
    file.write_bytes(content)
    assert main(["verify", str(forged)]) == 1
    assert f"{file}: expected the SHA-256" in capsys.readouterr().out
    with pytest.raises(damo.CorruptionError, match=file.name):
        damo.EmbeddingStore(tmp_path / "mine", restore=forged)
    assert main(["verify", str(theirs)]) == 0
