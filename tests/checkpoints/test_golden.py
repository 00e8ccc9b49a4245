"""Stores that earlier releases wrote are read to the same rows. tests/golden/make.py makes one for each format."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.checkpoints.manifest import FORMAT_VERSION
from damo_torchrec.erasing.checkpoint import erase_from_checkpoint
from damo_torchrec.erasing.report import ForgetReport
from damo_torchrec.erasing.wanted import Wanted
from damo_torchrec.rescue.verification import verify

GOLDEN = Path(__file__).parents[1] / "golden"
FORMATS = sorted(GOLDEN.glob("format_*/"))
make = runpy.run_path(str(GOLDEN / "make.py"))


@pytest.fixture(params=FORMATS, ids=lambda path: path.name)
def golden(request) -> Path:
    return request.param


@pytest.fixture
def expected(golden) -> dict:
    return json.loads((GOLDEN / f"{golden.name}.json").read_text())


@pytest.fixture
def version(golden) -> int:
    return int(golden.name.removeprefix("format_"))


def test_every_format_has_a_small_golden_store():
    assert [path.name for path in FORMATS] == [f"format_{n}" for n in range(1, FORMAT_VERSION + 1)]
    for path in FORMATS:
        assert sum(file.stat().st_size for file in path.rglob("*")) < 100_000


def test_rows_are_read_exactly(golden, expected, version):
    with damo.EmbeddingStore(golden, read_only=True) as store:
        make["make_model"](store, version)
        assert make["contents"](store) == expected["rows"]
        for name, rows in expected["rows"].items():
            ids = [int(i) for i in rows]
            assert store.table(name).get(ids).tolist() == [row["weights"] for row in rows.values()]
            assert store.table(name).contains([*ids, 1]).tolist() == [True] * len(ids) + [False]
            assert len(store.table(name)) == len(ids)


def test_training_goes_on_as_it_would_have(golden, expected, version, tmp_path):
    """Rows, optimizer state, iterations, and the initial values of ids that had no row."""
    shutil.copytree(golden, tmp_path / "copy")
    with damo.EmbeddingStore(tmp_path / "store", restore=tmp_path / "copy") as store:
        make["one_more_step"](make["make_model"](store, version))
        assert make["contents"](store) == expected["rows_after_one_more_step"]
    with damo.EmbeddingStore(tmp_path / "store") as store:
        make["make_model"](store, version)
        assert make["contents"](store) == expected["rows_after_one_more_step"]


def test_the_dense_part_is_read_exactly(golden, expected, version, tmp_path):
    shutil.copytree(golden, tmp_path / "copy")
    torch.manual_seed(1)
    with damo.EmbeddingStore(tmp_path / "store", seed=make["SEED"]) as store:
        model = make["make_model"](store, version)
        optimizer = torch.optim.Adam(model["dense"].parameters())
        damo.load_model(tmp_path / "copy", model, optimizer=optimizer)
        assert {name: value.tolist() for name, value in model.named_parameters()} == expected["dense"]
        assert all(state["step"] == 1 for state in optimizer.state.values())
        assert make["contents"](store) == expected["rows"]


def test_rows_can_be_forgotten(golden, expected, version, tmp_path):
    copy, gone = tmp_path / "copy", -(2**63)
    shutil.copytree(golden, copy)
    report = ForgetReport({})
    ids = {name: np.array([gone]) for name in expected["rows"]}
    erase_from_checkpoint(copy, Wanted.of(ids, {}, []), report)
    assert [(erased.path, erased.done) for erased in report.erased] == [(copy, "rewritten")]
    assert report.complete
    assert not [str(finding) for finding in verify(copy, lambda *_: None)]
    torch.manual_seed(1)
    with damo.EmbeddingStore(tmp_path / "store", seed=make["SEED"]) as store:
        model = make["make_model"](store, version)
        damo.load_model(copy, model, optimizer=torch.optim.Adam(model["dense"].parameters()))
        assert {name: value.tolist() for name, value in model.named_parameters()} == expected["dense"]
        assert make["contents"](store) == {
            name: {i: row for i, row in rows.items() if i != str(gone)} for name, rows in expected["rows"].items()
        }


def test_a_checkpoint_tells_what_it_holds(golden, expected):
    info = damo.checkpoint_info(golden)
    assert (info.step, info.store_step, info.extra) == (3, 3, {"position": [1, 2]})
    assert info.rows == {name: len(rows) for name, rows in expected["rows"].items()}


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "1", None])
def test_another_format_is_refused_by_its_number(golden, tmp_path, version):
    copy = tmp_path / "copy"
    shutil.copytree(golden, copy)
    document = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**document, "format_version": version}))
    with pytest.raises(damo.CorruptionError, match=rf"format version {version!r}; this version reads"):
        damo.EmbeddingStore(copy, read_only=True)
    with pytest.raises(damo.CorruptionError, match=rf"format version {version!r}; this version reads"):
        damo.checkpoint_info(copy)
