"""What the models of daily.py have in common: the days as Parquet files, and training on them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchrec
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from online_models import BATCH, DENSE_LR, LR, TABLES, Model, configs
from online_stream import Day

SALT = 0
Places = Callable[[str, np.ndarray], np.ndarray]


def day_file(directory: Path, day: int) -> Path:
    return directory / "days" / f"{day:03}.parquet"


def write_day(directory: Path, day: Day) -> None:
    """As a shop has it: users and items are strings."""
    names = {"user": [f"user-{i:x}" for i in day.users.tolist()], "item": [f"item-{i:x}" for i in day.items.tolist()]}
    file = day_file(directory, day.number)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**names, "clicked": day.clicks}), file)


def batches(file: Path) -> damo.data.Batches:
    """In the order of time, in which the file is."""
    columns = damo.data.Columns({name: damo.data.Strings(name, SALT) for name in TABLES}, labels="clicked")
    return damo.data.Batches(damo.data.ParquetRows(file), columns, batch_size=BATCH)


def auc(data: damo.data.Batches, logits: np.ndarray) -> float:
    clicks = torch.cat([batch.labels for batch in data]).numpy()
    return float(roc_auc_score(clicks, logits))


class Trainee:
    """A model and its optimizers.

    Args:
        model: whose rows have their optimizer fused, unless there is one among the others.
        optimizers: of rows.
        places: by which ids rows are found, given a table's name and ids of strings; None: by these.
    """

    def __init__(
        self, model: Model, optimizers: Sequence[torch.optim.Optimizer] = (), places: Places | None = None
    ) -> None:
        self.model = model
        self.optimizers = [torch.optim.Adam(model.dense.parameters(), DENSE_LR), *optimizers]
        self._places = places

    @torch.no_grad()
    def predict(self, data: damo.data.Batches) -> np.ndarray:
        self.model.eval()
        logits = [self.model(self._features(batch.sparse_features)) for batch in data]
        self.model.train()
        return torch.cat(logits).numpy()

    def train(self, data: damo.data.Batches) -> None:
        for batch in data:
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            logits = self.model(self._features(batch.sparse_features))
            binary_cross_entropy_with_logits(logits, batch.labels).backward()
            for optimizer in self.optimizers:
                optimizer.step()

    def _features(self, ids: KeyedJaggedTensor) -> KeyedJaggedTensor:
        if self._places is None:
            return ids
        keys, by_key = list(ids.keys()), ids.to_dict()
        values = [torch.from_numpy(self._places(key, by_key[key].values().numpy())) for key in keys]
        return KeyedJaggedTensor(keys, torch.cat(values), lengths=ids.lengths())


def peers(known: dict[str, np.ndarray]) -> dict[str, Trainee]:
    """TorchRec's own collection, with a row for each id of `known`: in order, or by a hash, where some share one."""
    rows = {name: len(ids) for name, ids in known.items()}
    places: dict[str, Places] = {
        "vocabulary": lambda name, ids: np.searchsorted(known[name], ids),
        "hashed": lambda name, ids: (ids.view(np.uint64) % np.uint64(rows[name])).astype(np.int64),
    }
    made = {}
    for kind, place in places.items():
        torch.manual_seed(0)
        collection = torchrec.EmbeddingBagCollection(tables=configs(rows))
        optimizer = torchrec.optim.RowWiseAdagrad(collection.parameters(), lr=LR)
        made[kind] = Trainee(Model(collection), [optimizer], place)
    return made
