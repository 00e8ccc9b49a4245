"""`verify` and `repair` of checkpoints with tables whose rows have a life: some of what is stored is dead."""

from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.rescue.repair import repair
from damo_torchrec.rescue.verification import verify
from support import config, kjt, small_store


def quiet(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def checkpoints(tmp_path) -> list[Path]:
    """One at step 4, where all of 4 rows live, and one at step 8, where two have gone; an id is only seen."""
    with small_store(tmp_path / "store") as store:
        store.clock = lambda: 0.0
        ebc = damo.EmbeddingBagCollection(
            [config("t", 4)],
            torch.optim.Adagrad,
            {"lr": 0.1},
            store=store,
            table_options={"t": damo.TableOptions(expire=[damo.Idle(steps=4)], admit=damo.Admit(sightings=2))},
        )
        made = []
        for batches in ([1, 2, 3, 4], [1, 2, 3, 4], [3, 9], [4]), ([3], [4], [3], [4]):
            for ids in batches:
                ebc(kjt({"t": [ids]})).values().sum().backward()
            made.append(store.checkpoint())
        assert [len(store.table("t")), store.table("t").stats().life.expired] == [2, {damo.Idle(steps=4): 2}]
    return made


def write_anew(checkpoint: Path) -> None:
    """Has the manifest say what the files are now."""
    manifest = Manifest.read(checkpoint)
    (checkpoint / "manifest.json").unlink()
    manifest.with_files(checkpoint).write(checkpoint)


def living(checkpoint: Path) -> list[int]:
    with damo.EmbeddingStore(checkpoint, read_only=True) as store:
        table = store.table("t")
        ids = [int(i) for ids, _ in table.items() for i in ids]
        assert len(table) == len(ids)
        return ids


def test_what_is_dead_and_what_is_only_seen_is_no_damage(checkpoints):
    assert [Manifest.read(checkpoint).tables["t"].rows for checkpoint in checkpoints] == [4, 2]
    assert [str(finding) for checkpoint in checkpoints for finding in verify(checkpoint, quiet)] == []


def test_a_life_that_counts_other_rows_is_found(checkpoints):
    old, new = checkpoints
    (new / "1.life.bin").write_bytes((old / "1.life.bin").read_bytes())
    write_anew(new)
    found = [str(finding) for finding in verify(new, quiet)]
    assert any("2 rows of table 't', found 4" in finding for finding in found)


@pytest.mark.parametrize("bytes_now", [b"", b"no life", None])
def test_a_damaged_life_is_found_once(checkpoints, bytes_now):
    file = checkpoints[1] / "1.life.bin"
    if bytes_now is None:
        file.unlink()
    else:
        file.write_bytes(bytes_now)
    (finding,) = verify(checkpoints[1], quiet)
    assert finding.path == file


def test_a_repair_keeps_the_life_of_the_rows_that_are_left(checkpoints, tmp_path):
    done = repair(checkpoints[1], tmp_path / "repaired", quiet)
    assert (done.rows, done.losses, done.findings) == ({"t": 2}, [], [])
    assert living(tmp_path / "repaired") == [3, 4]
    assert list(verify(tmp_path / "repaired", quiet)) == []
    with damo.EmbeddingStore(tmp_path / "on", restore=tmp_path / "repaired") as store:
        assert store.table("t").stats().life.expired == {damo.Idle(steps=4): 2}


def test_a_repair_without_the_life_takes_that_of_the_checkpoint_before_and_says_so(checkpoints, tmp_path):
    old, new = checkpoints
    (new / "1.life.bin").write_bytes(b"")
    done = repair(new, tmp_path / "repaired", quiet)
    finding, rows = done.findings
    assert (rows.expected, rows.found) == ("2 rows of table 't'", "4")
    assert "Rows that had gone may be there again" in finding.found
    assert f"unless they had gone by {old} already" in finding.found
    assert set(living(tmp_path / "repaired")) >= {3, 4}
    assert list(verify(tmp_path / "repaired", quiet)) == []


def test_a_repair_with_no_life_at_all_says_that_rows_may_be_there_again(checkpoints, tmp_path):
    for checkpoint in checkpoints:
        (checkpoint / "1.life.bin").unlink()
    done = repair(checkpoints[1], tmp_path / "repaired", quiet)
    finding, _ = done.findings
    assert "they live for ever until options say other" in finding.found
    assert Manifest.read(tmp_path / "repaired").tables["t"].life is None
    assert set(living(tmp_path / "repaired")) >= {3, 4}
