"""`damo_torchrec.lightning.StoreCheckpoint`: rows with Lightning's own checkpoints."""

import os
import shutil
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import damo_torchrec as damo
from damo_torchrec.lightning import StoreCheckpoint
from mixed_run import assert_same_rows, collection, look_up, rows_of, update
from support import random_kjt

# Of Lightning's own.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
]
BATCHES = 8


class Batches(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([random_kjt(torch.Generator().manual_seed(i), ["t"], 16, 50) for i in range(BATCHES)])


class LitModel(lightning.LightningModule):
    def __init__(self, store):
        super().__init__()
        torch.manual_seed(0)
        self.ebc = collection(store, "t", optimizer=torch.optim.Adagrad, lr=0.5)
        self.dense = torch.nn.Linear(4, 1)
        self.losses = []

    def training_step(self, batch, _):
        loss = (self.dense(self.ebc(batch).values()) - 1).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.dense.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def fit(model, path, epochs, keep=None, every=BATCHES, ckpt_path=None, callbacks=None):
    files = ModelCheckpoint(path / "files", every_n_train_steps=every, save_top_k=-1, filename="{step}")
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[files, StoreCheckpoint(path / "rows", keep=keep)] if callbacks is None else callbacks,
    )
    trainer.fit(model, torch.utils.data.DataLoader(Batches(), batch_size=None), ckpt_path=ckpt_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three epochs with a checkpoint after each; what came of it."""
    path = tmp_path_factory.mktemp("run")
    with damo.EmbeddingStore(path / "store") as store:
        model = LitModel(store)
        fit(model, path, 3)
        return path, model.losses, rows_of(store), [p.detach().clone() for p in model.dense.parameters()]


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("moved", [False, True], ids=["where it was", "moved"])
def test_a_resumed_fit_is_equal_to_the_bit(run, tmp_path, monkeypatch, epochs, moved):
    path, losses, rows, dense = run
    if moved:
        path = shutil.copytree(path, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("store"))
        monkeypatch.setattr(Path, "is_dir", lambda self: os.path.isdir(self) and run[0] / "rows" not in self.parents)
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = LitModel(store)
        update(model.ebc, {"t": [[1]]})  # to be given up
        step = epochs * BATCHES
        fit(model, path if moved else tmp_path, 3, ckpt_path=path / "files" / f"step={step}.ckpt")
        assert model.losses == losses[step:]
        assert_same_rows(rows_of(store), rows)
        assert all(torch.equal(a, b) for a, b in zip(model.dense.parameters(), dense, strict=True))


def test_the_newest_rows_are_kept(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        fit(LitModel(store), tmp_path, 2, keep=2, every=5)
        assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == ["step_10", "step_15"]
        with pytest.raises(ValueError, match=r"not in .*step_5; .* has step_10, step_15"):
            fit(LitModel(store), tmp_path, 2, ckpt_path=tmp_path / "files" / "step=5.ckpt")


def test_a_file_without_rows_and_other_rows_are_refused(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = LitModel(store)
        without = ModelCheckpoint(tmp_path / "without", every_n_train_steps=5, save_top_k=-1, filename="{step}")
        with pytest.warns(UserWarning, match="has no rows"):
            fit(model, tmp_path, 1, callbacks=[without])
        with pytest.raises(ValueError, match="saved without StoreCheckpoint"):
            fit(model, tmp_path, 1, ckpt_path=tmp_path / "without" / "step=5.ckpt")
        fit(model, tmp_path, 1, every=5)
        rows = tmp_path / "rows" / "step_5"
        shutil.rmtree(rows)
        store.checkpoint(rows)
        with pytest.raises(damo.CorruptionError, match="are not those that the checkpoint was saved with"):
            fit(model, tmp_path, 1, ckpt_path=tmp_path / "files" / "step=5.ckpt")
        assert look_up(model.ebc, {"t": [[1]]}).shape == (1, 4)


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep must be positive, got 0"):
        StoreCheckpoint(tmp_path, keep=0)
