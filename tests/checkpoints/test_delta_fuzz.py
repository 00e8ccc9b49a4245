"""Whatever becomes of a delta's files, it is read as NumPy reads it, or refused with an error of this package."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import damo_torchrec as damo
from damo_torchrec import Delta
from delta_model import Model
from forging import forge_delta
from mutations import changed_json, edited, edits

FILES = ["1.ids.npy", "1.weights.npy", "1.deleted.npy", "delta.json"]


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    with damo.EmbeddingStore(path / "store", memory_budget="64MiB") as store:
        model = Model(store)
        model.train("a", [9])
        base = store.checkpoint()
        model.table("a").delete([9])
        model.train("a", [4, -4, 7])
        return store.export_delta(path / "delta", since=base)


def check(path: Path) -> None:
    try:
        read = Delta.read(path)
    except (damo.DamoError, ValueError):
        return
    for table in read.tables.values():
        for name, array in zip(("ids", "weights", "deleted"), (table.ids, table.weights, table.deleted), strict=True):
            of_table = next(t for n, t in read.manifest.tables.items() if read.tables[n] is table)
            np.testing.assert_array_equal(array, np.load(path / f"{of_table.number}.{name}.npy"))
        assert np.isfinite(table.weights).all()
        assert not np.isin(table.deleted, table.ids).any()
        for ids in (table.ids, table.deleted):
            assert (np.diff(ids.astype(object)) > 0).all()


@given(file=st.sampled_from(FILES), what=edits(), forged=st.booleans())
def test_bytes(delta: Path, file: str, what: Any, forged: bool) -> None:
    copy = shutil.copytree(delta, delta.parent / "copy", dirs_exist_ok=True)
    (copy / file).write_bytes(edited((copy / file).read_bytes(), what))
    if forged and file != "delta.json":
        forge_delta(copy)
    check(copy)


@given(data=st.data())
def test_manifests(delta: Path, data: st.DataObject) -> None:
    copy = shutil.copytree(delta, delta.parent / "copy", dirs_exist_ok=True)
    body = json.loads((delta / "delta.json").read_text())["delta"]
    changed = data.draw(changed_json(body))
    forge_delta(copy, lambda now: (now.clear(), now.update(changed)))
    check(copy)
