"""An exported model's files are whole, or not there."""

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from torch import nn

import damo_torchrec as damo
from exported_models import REQUEST, answer, files_in
from serving_cases import Pooled, Sequences, feed, random_features, train


def test_a_file_with_its_data_beside_it_moves_with_it(model: nn.Module, tmp_path: Path) -> None:
    where = tmp_path / "exported"
    file = damo.onnx.export(model, REQUEST, where / "ranker.onnx")
    assert file == where / "ranker.onnx"
    assert {p.name.split("-")[0] for p in where.iterdir()} == {"ranker.onnx", "ranker.data"}
    expected = answer(file)
    where.rename(tmp_path / "moved")
    np.testing.assert_array_equal(answer(tmp_path / "moved" / "ranker.onnx"), expected)


def test_another_export_takes_the_place_of_the_first(model: nn.Module, tmp_path: Path) -> None:
    damo.onnx.export(model, REQUEST, tmp_path / "m")
    before = files_in(tmp_path / "m")
    train(model, (REQUEST,))
    damo.onnx.export(model, REQUEST, tmp_path / "m")
    after = files_in(tmp_path / "m")
    assert len(before) == len(after)
    assert set(before) & set(after) == {"model.onnx"}
    np.testing.assert_allclose(answer(tmp_path / "m"), model(REQUEST).detach().numpy(), atol=1e-6)


def test_what_an_export_did_not_make_stays(model: nn.Module, tmp_path: Path) -> None:
    where = tmp_path / "m"
    mine = [where / name for name in ("model.data-mine", "model.data-0123456789", "model.data-", ".model.onnx.1.tmp")]
    for path in mine:
        path.mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (where / "model.data-01234567").symlink_to(tmp_path / "precious")
    for _ in range(2):
        damo.onnx.export(model, REQUEST, where)
    assert all(path.is_dir() for path in [*mine, tmp_path / "precious"])
    assert len(list(where.iterdir())) == len(mine) + 3  # the link, the graph and its data


def test_what_is_no_file_is_not_replaced(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    os.mkfifo(tmp_path / "fifo.onnx")
    for name in ("link.onnx", "fifo.onnx"):
        with pytest.raises(damo.DamoError, match=f"cannot write .*{name}: .*no regular file"):
            damo.onnx.export(model, REQUEST, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo.onnx", "link.onnx", "store"]  # the model's
    assert (tmp_path / "link.onnx").is_symlink()


class Cancelled(BaseException):
    """As KeyboardInterrupt, which pytest takes for its own."""


def cancel(*_: Any) -> None:
    raise Cancelled


@pytest.mark.parametrize("existing", [False, True])
def test_a_cancelled_export_leaves_what_was_there(model: nn.Module, tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "new" / "model"
    if existing:
        damo.onnx.export(model, REQUEST, path)
    before = files_in(tmp_path)
    with pytest.raises(Cancelled):
        damo.onnx.export(model, REQUEST, path, progress=cancel)
    assert files_in(tmp_path) == before
    assert (tmp_path / "new").exists() == existing
    damo.onnx.export(model, REQUEST, path)
    np.testing.assert_allclose(answer(path), model(REQUEST).detach().numpy(), atol=1e-6)


def test_a_full_disk_is_an_out_of_space_error(model: nn.Module, tmp_path: Path) -> None:
    damo.onnx.export(model, REQUEST, tmp_path / "m")
    before = files_in(tmp_path / "m")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        with pytest.raises(damo.OutOfSpaceError):
            damo.onnx.export(model, REQUEST, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert files_in(tmp_path / "m") == before


@pytest.mark.parametrize("options", [{}, {"inline": True}, {"dtype": "int8", "inline": True, "unseen": "initial"}])
def test_a_single_file_has_everything_in_it(
    store: damo.EmbeddingStore, tmp_path: Path, options: dict[str, Any]
) -> None:
    model = Pooled(store, weighted=True)
    request = random_features("abc", 33, longest=9, weighted=True)
    train(model, (request,))
    plain = damo.onnx.export(model, request, tmp_path / "plain", **{**options, "inline": False})
    file = damo.onnx.export(model, request, tmp_path / "single" / "ranker.onnx", single_file=True, **options)
    assert files_in(tmp_path / "single") == ["ranker.onnx"]
    assert damo.onnx.model_card(file)["files"] == {}
    moved = file.rename(tmp_path / "elsewhere.onnx")
    asked = feed(features=request)
    (expected,) = onnxruntime.InferenceSession(str(plain)).run(None, asked)
    for opened in (moved, moved.read_bytes()):
        session = onnxruntime.InferenceSession(opened if isinstance(opened, bytes) else str(opened))
        np.testing.assert_allclose(session.run(None, asked)[0], expected, atol=1e-6)


def test_rows_beyond_what_a_file_holds_are_refused(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("damo_torchrec.onnx.lowering.LARGEST_FILE", 1000)
    with pytest.raises(ValueError, match=r"single_file takes at most 1000 bytes, and these rows have \d+"):
        damo.onnx.export(model, REQUEST, tmp_path / "m", single_file=True)
    assert not (tmp_path / "m").exists()
    with pytest.raises(ValueError, match="a graph of dense_only is a single file"):
        damo.onnx.export(model, REQUEST, tmp_path / "m", single_file=True, dense_only=True)


@pytest.mark.parametrize("make", [lambda s: Pooled(s, weighted=False), Sequences])
def test_an_inlined_graph_has_standard_operators_alone(store: damo.EmbeddingStore, tmp_path: Path, make: Any) -> None:
    model = make(store)
    request = random_features("abcd", 33, longest=9)
    train(model, (request,))
    file = damo.onnx.export(model, request, tmp_path / "m", inline=True)
    proto = onnx.load(file, load_external_data=False)
    assert not proto.functions
    assert {opset.domain for opset in proto.opset_import} <= {"", "ai.onnx"}
    onnx.checker.check_model(str(file), full_check=True)
    session = onnxruntime.InferenceSession(str(file))
    expected = model(request)
    expected = list(expected.values()) if isinstance(expected, dict) else [expected]
    for got, wanted in zip(session.run(None, feed(features=request)), expected, strict=True):
        np.testing.assert_allclose(got, wanted.detach().numpy(), atol=1e-5)
    wrong = feed(features=request)
    wrong["features.lengths"][0, 0] = -1
    with pytest.raises(Exception, match="lengths are negative, beyond max_length, or not in sum the number of values"):
        session.run(None, wrong)
