"""The models that online_training.py compares: one architecture, over four kinds of embedding tables."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torchrec
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from dlrm_data.zipf import scatter
from online_stream import Day

DIM, BATCH, LR, DENSE_LR = 8, 256, 0.1, 0.001
TABLES = ("user", "item")
ROW_BYTES = 4 * (DIM + 1)  # the weights, and the one number of row-wise Adagrad
SECONDS_A_DAY = 86400.0


class Model(nn.Module):
    """A factorization machine: how user and item fit, and what each says by itself."""

    def __init__(self, rows: nn.Module) -> None:
        super().__init__()
        self.rows = rows
        self.dense = nn.Linear(2 * DIM, 1)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        rows = self.rows(features).values()
        user, item = rows.split(DIM, dim=1)
        return (user * item).sum(dim=1) + self.dense(rows).squeeze(1)


def configs(rows: dict[str, int]) -> list[EmbeddingBagConfig]:
    """A table for each name; initial weights are in the same range in all models."""
    return [
        EmbeddingBagConfig(
            name=f"t_{name}",
            embedding_dim=DIM,
            num_embeddings=rows[name],
            feature_names=[name],
            weight_init_min=-0.1,
            weight_init_max=0.1,
        )
        for name in TABLES
    ]


class Contestant(ABC):
    """A model, and its training. Subclasses say what the rows are, and which ids they are found by.

    Args:
        model: that it trains.
        optimizers: of the model's rows, unless they have theirs fused.

    Attributes:
        seconds: the stream's time, that of the newest batch.
    """

    seconds = 0.0

    def __init__(self, model: Model, optimizers: Sequence[torch.optim.Optimizer] = ()) -> None:
        self._model = model
        self._optimizers = [torch.optim.Adam(model.dense.parameters(), DENSE_LR), *optimizers]

    @torch.no_grad()
    def predict(self, day: Day) -> np.ndarray:
        """The logits of a day's impressions, (n,), by what was learned before."""
        self._model.eval()
        logits = [self._model(features) for features, _ in self._batches(day)]
        self._model.train()
        return torch.cat(logits).numpy()

    def train(self, day: Day) -> None:
        """Goes through the day once, in the order of time."""
        for number, (features, clicks) in enumerate(self._batches(day)):
            self.seconds = SECONDS_A_DAY * (day.number + number * BATCH / len(day.clicks))
            for optimizer in self._optimizers:
                optimizer.zero_grad()
            binary_cross_entropy_with_logits(self._model(features), clicks).backward()
            for optimizer in self._optimizers:
                optimizer.step()

    @abstractmethod
    def rows(self) -> dict[str, int]:
        """How many rows the tables have now."""

    @abstractmethod
    def disk_bytes(self, scratch: Path) -> int:
        """Of the rows as they are now, saved."""

    @abstractmethod
    def _places(self, name: str, ids: np.ndarray) -> np.ndarray:
        """What the collection is asked for, given the stream's ids."""

    def _batches(self, day: Day) -> Iterator[tuple[KeyedJaggedTensor, torch.Tensor]]:
        places = [self._places("user", day.users), self._places("item", day.items)]
        for first in range(0, len(day.clicks), BATCH):
            values = np.concatenate([ids[first : first + BATCH] for ids in places])
            features = KeyedJaggedTensor(
                list(TABLES), torch.from_numpy(values), lengths=torch.ones(len(values), dtype=torch.int64)
            )
            yield features, torch.from_numpy(day.clicks[first : first + BATCH])


class InMemory(Contestant):
    """TorchRec's own collection: as many rows as it was made with."""

    def __init__(self, rows: dict[str, int]) -> None:
        collection = torchrec.EmbeddingBagCollection(tables=configs(rows))
        super().__init__(Model(collection), [torchrec.optim.RowWiseAdagrad(collection.parameters(), lr=LR)])
        self._rows = rows

    def rows(self) -> dict[str, int]:
        return self._rows

    def disk_bytes(self, scratch: Path) -> int:
        file = scratch / "rows.pt"
        torch.save([self._model.rows.state_dict(), self._optimizers[1].state_dict()], file)
        return file.stat().st_size


class Fixed(InMemory):
    """A row for each id of the first day, and one for all others."""

    def __init__(self, first: Day) -> None:
        self._known = {"user": np.unique(first.users), "item": np.unique(first.items)}
        super().__init__({name: len(known) + 1 for name, known in self._known.items()})

    def _places(self, name: str, ids: np.ndarray) -> np.ndarray:
        known = self._known[name]
        places = np.searchsorted(known, ids)
        found = known[np.minimum(places, len(known) - 1)] == ids
        return np.where(found, places, len(known))


class Hashed(InMemory):
    """Ids share rows by their hash."""

    def _places(self, name: str, ids: np.ndarray) -> np.ndarray:
        rows = np.uint64(self._rows[name])
        return (scatter(ids, table=7).view(np.uint64) % rows).astype(np.int64)


class Ours(Contestant):
    """The collection of damo_torchrec: a row for every id, or for those that the options give one."""

    def __init__(self, store: damo.EmbeddingStore, options: dict[str, damo.TableOptions]) -> None:
        self._store = store
        store.clock = lambda: self.seconds  # so that runs can be repeated
        collection = damo.EmbeddingBagCollection(
            configs(dict.fromkeys(TABLES, 1)),  # no limit: the range of initial weights is given
            torchrec.optim.RowWiseAdagrad,
            {"lr": LR},
            store=store,
            table_options=options,
        )
        super().__init__(Model(collection))

    def rows(self) -> dict[str, int]:
        return {name: len(self._store.table(f"t_{name}")) for name in TABLES}

    def disk_bytes(self, scratch: Path) -> int:
        self._store.flush()  # so that the checkpoint has rows in order, and no journal
        self._store.checkpoint()
        return self._store.stats().disk_bytes

    def _places(self, name: str, ids: np.ndarray) -> np.ndarray:
        return ids
