"""`damo_torchrec.checkpoints.dense_part`: of a `model.pt` of a stranger, nothing is used that cannot be right."""

import io
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.cli.main import main
from forging import forge, forge_dense, rehash
from mixed_run import SmallModel
from support import small_store


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    with small_store(path / "store") as store:
        model = SmallModel(store)
        model.step()
        return damo.save_model(model, path / "checkpoint", optimizer=model.optimizer)


@pytest.fixture
def checkpoint(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def numpys(position: int, value: object) -> Callable[[dict], None]:
    return lambda dense: dense["random"]["numpy"].__setitem__(position, value)


def pythons(position: int, value: object) -> Callable[[dict], None]:
    return lambda dense: dense["random"]["python"].__setitem__(position, value)


def sparse() -> torch.Tensor:
    """With an index beyond its size."""
    return torch.sparse_coo_tensor(torch.tensor([[100]]), torch.ones(1), (3,), check_invariants=False)


def circle(dense: dict) -> None:
    dense["extra"]["itself"] = dense["extra"]
    dense["extra"]["far"] = torch.zeros(1).expand(2**40)


def torchs(left: int, following: int) -> Callable[[dict], None]:
    """Positions of torch's Mersenne Twister: each is within its state, but not both together."""

    def change(dense: dict) -> None:
        dense["random"]["torch"][8:12] = torch.tensor([left], dtype=torch.int32).view(torch.uint8)
        dense["random"]["torch"][16:24] = torch.tensor([following]).view(torch.uint8)

    return change


CHANGES: dict[str, Callable[[dict], object]] = {
    "positions of torch that read beyond its words": torchs(600, 600),
    "other positions of torch that do": torchs(624, 624),
    "a position beyond NumPy's words": numpys(2, 5000),
    "a negative position of NumPy": numpys(2, -1),
    "a huge position of NumPy": numpys(2, 2**70),
    "a position that is no int": numpys(2, 1.5),
    "another generator of NumPy": numpys(0, "PCG64"),
    "too few words of NumPy": numpys(1, torch.zeros(3, dtype=torch.int64)),
    "words of NumPy that are too large": numpys(1, torch.full((624,), 2**40)),
    "words of NumPy of another dtype": numpys(1, torch.zeros(624)),
    "a next normal number that is none": numpys(4, "x"),
    "another version of Python's": pythons(0, 2),
    "a word of Python's that is too large": lambda d: d["random"]["python"][1].__setitem__(0, 2**40),
    "a position beyond Python's words": lambda d: d["random"]["python"][1].__setitem__(624, 625),
    "a text as Python's next normal number": pythons(2, "x"),
    "no bytes of torch's": lambda d: d["random"].update(torch=torch.zeros(5056)),
    "a state that torch refuses": lambda d: d["random"].update(torch=torch.full((5056,), 255, dtype=torch.uint8)),
    "no list of CUDA's": lambda d: d["random"].update(cuda="x"),
    "one generator less": lambda d: d["random"].pop("python"),
    "no state dict": lambda d: d.update(model=[1, 2]),
    "names that are numbers": lambda d: d["model"].update({7: torch.zeros(1)}),
    "an optimizer that is text": lambda d: d.update(optimizer="x"),
    "groups without parameters": lambda d: d["optimizer"]["param_groups"][0].pop("params"),
    "schedulers that are no dicts": lambda d: d.update(schedulers=[1]),
    "a learning rate that is NaN": lambda d: d.update(learning_rates={"ebc": {"t": float("nan")}}),
    "parameter names that are numbers": lambda d: d.update(parameter_names=[1]),
    "a step that is text": lambda d: d.update(step="x"),
    "no id": lambda d: d.pop("checkpoint_id"),
    "an id that is a tensor": lambda d: d.update(checkpoint_id=torch.zeros(2)),
    "a tensor that was expanded": lambda d: d["extra"].update(far=torch.zeros(1).expand(2**40)),
    "a circle, and such a tensor": circle,
    "a sparse tensor that is none": lambda d: d["extra"].update(sparse=sparse()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_cannot_be_right_is_refused_before_anything_changes(checkpoint, tmp_path, change):
    forge_dense(checkpoint, change)
    before = random.getstate(), np.random.get_state()[1:3], torch.get_rng_state()
    with small_store(tmp_path / "mine") as store:
        model = SmallModel(store)
        model.step()
        state = model.state()
        with pytest.raises(damo.CorruptionError, match=r"model\.pt is damaged: "):
            damo.load_model(checkpoint, model, optimizer=model.optimizer)
        assert model.state() == state
    after = random.getstate(), np.random.get_state()[1:3], torch.get_rng_state()
    assert str(after) == str(before)
    with pytest.raises(damo.CorruptionError, match=r"model\.pt is damaged: "):
        damo.checkpoint_info(checkpoint)
    assert main(["verify", str(checkpoint)]) == 1


@pytest.mark.parametrize("kind", ["compressed", "twice", "old", "text"])
def test_what_torch_save_does_not_write_is_refused(checkpoint, kind):
    file = checkpoint / "model.pt"
    if kind == "text":
        file.write_text("model")
    elif kind == "old":
        buffer = io.BytesIO()
        torch.save(torch.load(file, weights_only=True), buffer, _use_new_zipfile_serialization=False)
        file.write_bytes(buffer.getvalue())
    else:
        with zipfile.ZipFile(file) as container:
            records = {record.filename: container.read(record) for record in container.infolist()}
        compression = zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", compression) as container:
            for name, content in records.items():
                container.writestr(name, content)
            if kind == "twice":
                with pytest.warns(UserWarning, match="Duplicate"):
                    container.writestr(name, content)
    rehash(checkpoint, "model.pt")
    with pytest.raises(damo.CorruptionError, match=r"model\.pt is damaged: "):
        damo.checkpoint_info(checkpoint)


def test_a_torch_that_runs_code_of_files_is_refused(checkpoint, monkeypatch):
    for version in ("2.5.1+cpu", "1.13.0"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(damo.DamoError, match=r"takes torch 2\.6 or later"):
            damo.checkpoint_info(checkpoint)


@pytest.mark.parametrize("named", [True, False])
def test_a_pickle_that_the_manifest_does_not_vouch_for_is_not_run(checkpoint, tmp_path, named):
    (checkpoint / "module.pickle").write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path / "ran") + b"'\ntR.")
    if not named:
        forge(checkpoint, lambda manifest: manifest["files"].pop("module.pickle"))
    with pytest.raises(damo.CorruptionError, match=r"module\.pickle"):
        damo.load_model(checkpoint, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_a_scheduler_keeps_its_methods(checkpoint, tmp_path):
    with small_store(tmp_path / "mine") as store:
        model = SmallModel(store)
        scheduler = torch.optim.lr_scheduler.StepLR(model.optimizer, 1)
        forge_dense(checkpoint, lambda dense: dense.update(schedulers=[{"last_epoch": 1, "get_lr": 3}]))
        with pytest.raises(damo.SchemaMismatchError, match="get_lr"):
            damo.load_model(checkpoint, model, schedulers=[scheduler])
