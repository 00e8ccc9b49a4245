"""An exported model's files are whole, or not there."""

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import damo_torchrec as damo
from exported_models import REQUEST, answer, files_in
from serving_cases import train


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
