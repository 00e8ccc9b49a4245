"""A checkpoint is served from a copy, and stays as it is; its tables are opened as it describes them."""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damo_torchrec import init
from damo_torchrec.checkpoints.temporary_directory import MARKER
from damo_torchrec.optim.spec import OptimizerSpec
from damo_torchrec.store.table import TableDefinition
from served_models import pooled_request, predictor_of


def contents(directory: Path) -> dict[str, Any]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(f): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns) for f in files}


def test_nothing_is_written_into_the_checkpoint_or_left_beside_it(pooled: Any) -> None:
    path = pooled[1]
    before, beside = contents(path), sorted(path.parent.iterdir())
    with predictor_of(path) as predictor:
        predictor.predict(pooled_request(300))
        assert len(list(path.parent.iterdir())) == len(beside) + 1
    assert contents(path) == before
    assert sorted(path.parent.iterdir()) == beside


def test_what_a_killed_process_left_is_removed_but_not_what_is_in_use(pooled: Any) -> None:
    path = pooled[1]
    left = path.parent / f".{path.name}.serving-leftover"
    with predictor_of(path) as killed:
        shutil.copytree(killed._store.path, left)
    with predictor_of(path) as first, predictor_of(path) as second:
        assert not left.exists()
        answers = [each.predict(pooled_request(3))["output"] for each in (first, second)]
        np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("kind", ["a store", "a link", "another user's"])
def test_what_is_called_like_a_working_copy_is_left_alone(pooled: Any, tmp_path: Path, kind: str) -> None:
    path = pooled[1]
    left = path.parent / f".{path.name}.serving-{kind[-8:]:_<8}"
    with predictor_of(path) as killed:
        copy = shutil.copytree(killed._store.path, tmp_path / "copy")
    if kind == "a store":
        (copy / "checkpoints" / MARKER).unlink()
    if kind == "another user's":
        if os.geteuid() != 0:
            pytest.skip("only root gives files away")
        os.chown(copy, 65534, 65534)
    if kind == "a link":
        left.symlink_to(copy)
    else:
        shutil.move(copy, left)
    try:
        with predictor_of(path):
            pass
        assert (left / "live").is_dir()
    finally:
        if left.is_symlink():
            left.unlink()
        else:
            shutil.rmtree(left)


def test_a_checkpoint_that_somebody_keeps_locked_is_served_all_the_same(
    pooled: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from damo_torchrec.serving import working_copy

    monkeypatch.setattr(working_copy, "_PATIENCE", 0.0)
    descriptor = os.open(pooled[1], os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with predictor_of(pooled[1]) as predictor:
            predictor.predict(pooled_request(3))
    finally:
        os.close(descriptor)
    assert f"process {os.getpid()} has held the lock of {pooled[1]}" in caplog.text


def test_rows_go_among_temporary_files_where_the_checkpoint_has_no_place(
    pooled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from damo_torchrec.serving import working_copy

    make = working_copy.make_temporary_directory

    def refuse(prefix: str, parent: Path | None = None) -> Path:
        if parent is not None:
            raise PermissionError("read-only")
        return make(prefix)

    monkeypatch.setattr(working_copy, "make_temporary_directory", refuse)
    with predictor_of(pooled[1]) as predictor:
        assert predictor._store.path.parent == tmp_path
        predictor.predict(pooled_request(3))
    assert "nothing can be written beside" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "initializer",
    [
        init.Constant(0.5),
        init.Uniform(-0.25, 0.125),
        init.Normal(0.5, 2.0),
        init.TruncatedNormal(1.0, 2.0, -1.0, 4.0),
        init.XavierUniform(2.0),
    ],
)
@pytest.mark.parametrize("kind", ["SGD", "ADAGRAD", "FTRL", "LARS_SGD"])
def test_a_schema_says_how_to_open_a_table(initializer: Any, kind: str) -> None:
    optimizer = OptimizerSpec(kind, lr=0.1, initial_accumulator_value=0.25)
    definition = TableDefinition("t", 4, 100, optimizer, initializer, "initial", "float16")
    again = TableDefinition.of_schema("t", definition.schema(), "initial")
    assert again.schema() == definition.schema()
    assert again.unseen_in_eval == "initial"


def test_an_unknown_initializer_is_refused() -> None:
    schema = TableDefinition("t", 4, 1, OptimizerSpec("SGD", lr=0.1), init.Constant(0.0)).schema()
    schema.initializer["name"] = "Later"
    with pytest.raises(ValueError, match=r"Later.* is not known here"):
        TableDefinition.of_schema("t", schema)
