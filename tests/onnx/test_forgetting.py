"""Exported graphs without rows that were forgotten: they answer as the model does, and have no byte of the rows."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

import damo_torchrec as damo
from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.graph_card import SEAL, UNSEALED
from exported_models import REQUEST, worst_error
from forgotten import Traces
from serving_cases import feed, random_features
from support import config, kjt

PLAIN = {"files": {}, "single file": {"single_file": True}, "inline": {"inline": True}}
KINDS = {**PLAIN, "float16": {"dtype": "float16"}, "int8": {"dtype": "int8"}, "initial": {"unseen": "initial"}}
TOLERANCES = {"float16": 1e-2, "int8": 5e-2}


def requests(batch):
    return {"features": random_features("abc", batch, seed=batch)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_answers_as_the_model_does_and_has_no_byte_of_the_rows(model, store, tmp_path, kind):
    path = tmp_path / "exported"
    damo.onnx.export(model, (REQUEST,), path, **KINDS[kind])
    table = store.table("firstFalse")
    ids = REQUEST.values().unique()
    ids = ids[table.contains(ids)][:7]
    traces, before = Traces(), damo.onnx.model_card(path)["tables"]
    traces.note(table, ids.tolist())
    assert bool(traces.files(path)) == (kind in (*PLAIN, "initial"))
    report = store.forget({"firstFalse": ids}, exports=path)
    assert report.complete
    assert [erased.rows for erased in report.erased if erased.what == "export"] == [7]
    assert traces.files(path) == []
    session = damo.onnx.session(path, num_threads=2, operators=False)
    if kind != "initial":
        assert worst_error(model, requests, session, (0, 1, 2, 33)) < TOLERANCES.get(kind, 1e-5)
    card = damo.onnx.model_card(path)
    assert card["tables"] == {**before, "firstFalse": {"dim": 8, "rows": before["firstFalse"]["rows"] - 7}}
    for name, entry in card["files"].items():
        assert FileEntry(**entry) == FileEntry.of(path / name)
    content = (path / "model.onnx").read_bytes()
    assert hashlib.sha256(content.replace(card[SEAL].encode(), UNSEALED.encode())).hexdigest() == card[SEAL]
    assert not [e for e in store.forget({"firstFalse": ids}, exports=path).erased if e.what == "export"]


def test_ids_that_are_forgotten_read_as_those_that_never_had_a_row(model, store, tmp_path):
    damo.onnx.export(model, (REQUEST,), tmp_path / "exported", unseen="initial")
    ids = REQUEST.values().unique()
    store.forget({"firstFalse": ids, "secondFalse": ids, "thirdFalse": ids}, exports=tmp_path / "exported")
    session = damo.onnx.session(tmp_path / "exported", num_threads=2, operators=False)
    (got,) = session.run(None, feed(features=REQUEST))
    model.train()  # in which ids without a row read their initial values
    with torch.no_grad():
        assert np.allclose(got, model(REQUEST).numpy(), atol=1e-6)


class OneTable(nn.Module):
    def __init__(self, store):
        super().__init__()
        self.ebc = damo.EmbeddingBagCollection([config("t", 4)], torch.optim.SGD, {"lr": 1.0}, store=store)

    def forward(self, features):
        return self.ebc(features).values()


@pytest.mark.parametrize("forgotten", [[5], [5, 6], [6]])
def test_a_table_of_few_rows_may_have_none_left(store, tmp_path, forgotten):
    model, ids = OneTable(store), [5, 6]
    store.table("t").set(ids, torch.ones(2, 4))
    model.eval()
    every = kjt({"t": [[i] for i in [*range(200), *ids]]})
    damo.onnx.export(model, (every,), tmp_path / "exported", verify=False)
    assert store.forget({"t": forgotten}, exports=tmp_path / "exported" / "model.onnx").complete
    (got,) = damo.onnx.session(tmp_path / "exported", num_threads=2, operators=False).run(None, feed(features=every))
    with torch.no_grad():
        assert np.array_equal(got, model(every).numpy())


def test_a_dry_run_leaves_a_graph_alone_and_another_table_is_passed_over(model, store, tmp_path):
    path = tmp_path / "exported"
    damo.onnx.export(model, (REQUEST,), path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    ids = REQUEST.values().unique()
    assert any(e.what == "export" for e in store.forget({"firstFalse": ids}, exports=path, dry_run=True).erased)
    store.table("secondFalse").delete(ids)
    store.forget({"secondFalse": [10**6]}, exports=path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_graph_that_is_damaged_is_named(model, store, tmp_path):
    path = tmp_path / "exported"
    damo.onnx.export(model, (REQUEST,), path)
    (path / "model.onnx").write_bytes(b"no graph")
    (left,) = store.forget({"firstFalse": [1]}, exports=path).remaining
    assert left.what == "export"
    assert left.path == path / "model.onnx"
    assert "damaged" in left.reason
