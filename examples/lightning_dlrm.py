"""TorchRec's DLRM over a store, trained by PyTorch Lightning."""

import lightning
import torch
import torchrec
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics.classification import BinaryAUROC

import damo_torchrec as damo
from damo_torchrec.lightning import StoreCheckpoint
from dlrm_data.census import Census
from dlrm_train import build_model, dense_optimizer, table_configs


class Batches(torch.utils.data.IterableDataset):
    def __init__(self, make):
        self.make = make

    def __iter__(self):
        return iter(self.make())


class LitDLRM(lightning.LightningModule):
    def __init__(self, store, census):
        super().__init__()
        tables = table_configs(census, dim=16)
        collection = damo.EmbeddingBagCollection(tables, torchrec.optim.RowWiseAdagrad, {"lr": 0.05}, store=store)
        self.dlrm = build_model(collection, census.dense_features)
        self.auc = BinaryAUROC()

    def forward(self, batch):
        return self.dlrm(batch.dense_features, batch.sparse_features).squeeze(-1)

    def training_step(self, batch, _):
        return binary_cross_entropy_with_logits(self(batch), batch.labels)  # its backward updates the rows

    def validation_step(self, batch, _):
        self.auc.update(self(batch), batch.labels.int())

    def on_validation_epoch_end(self):
        print(f"epoch {self.current_epoch}: test AUC {self.auc.compute():.4f}")
        self.auc.reset()

    def configure_optimizers(self):
        return dense_optimizer(self.dlrm, lr=0.001)


census = Census(batch_size=256)
loaders = [
    torch.utils.data.DataLoader(Batches(make), batch_size=None)
    for make in (lambda: census.train_batches(epoch=0), census.test_batches)
]
with damo.EmbeddingStore("examples-store/lightning", memory_budget="256MiB") as store:
    checkpoints = [
        ModelCheckpoint("examples-store/lightning-files"),
        StoreCheckpoint("examples-store/lightning-rows", keep=2),
    ]
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", logger=False, callbacks=checkpoints)
    trainer.fit(LitDLRM(store, census), *loaders)
