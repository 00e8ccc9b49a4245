"""A model with a dense part that is trained for hours in a store on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import torchrec
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from parts.soak.case import Case


class Soaked(torch.nn.Module):
    """The model, its optimizer and its store, which is new."""

    def __init__(self, case: Case, path: Path) -> None:
        super().__init__()
        torch.set_num_threads(case.threads)
        torch.manual_seed(case.seed)
        self._case = case
        self._features = [f"feature_{number}" for number in range(case.tables)]
        self._lengths = torch.ones(case.tables * case.batch_size, dtype=torch.int64)
        self._labels = torch.randint(0, 2, (case.batch_size, 1)).float()
        self.store = damo.EmbeddingStore(
            path, memory_budget=case.memory_budget, options=damo.StoreOptions(num_threads=case.threads)
        )
        self.embeddings = damo.EmbeddingBagCollection(
            tables=[EmbeddingBagConfig(case.rows, case.dim, name, feature_names=[name]) for name in self._features],
            optimizer_type=torchrec.optim.RowWiseAdagrad,
            optimizer_kwargs={"lr": 0.01},
            store=self.store,
        )
        self.dense = torch.nn.Sequential(
            torch.nn.Linear(case.tables * case.dim, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)
        )
        self.optimizer = torch.optim.Adam(self.dense.parameters(), lr=0.001)

    def step(self, number: int) -> None:
        """Forward, backward and both updates; of ids that arrive again, the old rows are deleted before."""
        if number >= self._case.steps_to_fill:
            for name, ids in zip(self._features, self._case.arriving(number), strict=True):
                self.store.table(name).delete(torch.from_numpy(ids))
        ids = torch.from_numpy(self._case.batch(number)).view(-1)
        batch = KeyedJaggedTensor(keys=self._features, values=ids, lengths=self._lengths)
        prediction = self.dense(self.embeddings(batch).values())
        loss = torch.nn.functional.binary_cross_entropy_with_logits(prediction, self._labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def save(self) -> None:
        """Makes a checkpoint and removes those that are not to be kept."""
        damo.save_model(self, optimizer=self.optimizer)
        for old in self.store.checkpoints()[: -self._case.keep]:
            shutil.rmtree(old)

    def rows(self) -> int:
        """Of all tables."""
        return sum(len(table) for table in self.store.tables().values())
