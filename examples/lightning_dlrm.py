"""TorchRec's DLRM under PyTorch Lightning, over a store: needs `pip install lightning`."""

import argparse

import lightning
import torch
import torchrec
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics.classification import BinaryAUROC

import damo_torchrec as damo
from dlrm_data.census import Census
from dlrm_train import build_model, dense_optimizer, table_configs


class Batches(torch.utils.data.IterableDataset):
    """The batches that `make` yields, anew each epoch."""

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

    def on_train_epoch_end(self):
        damo.save_model(self, optimizer=self.optimizers().optimizer)  # rows and dense part, of one step


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--store", default="examples-store/lightning", help="directory of the rows (default: %(default)s)")
args = parser.parse_args()
census = Census(batch_size=256)
with damo.EmbeddingStore(args.store, memory_budget="256MiB") as store:
    loaders = [
        torch.utils.data.DataLoader(Batches(b), batch_size=None)
        for b in (lambda: census.train_batches(0), census.test_batches)
    ]
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(LitDLRM(store, census), *loaders)
