"""A model with a dense part that is trained for hours in a store on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import torchrec
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from parts.soak.bounds import Lives
from parts.soak.case import Case, EndlessCase


class Soaked(torch.nn.Module):
    """The model, its optimizer and its store, which is new."""

    def __init__(self, case: Case, path: Path) -> None:
        super().__init__()
        torch.set_num_threads(case.threads)
        torch.manual_seed(case.seed)
        self._case = case
        self._steps = 0
        self._features = [f"feature_{number}" for number in range(case.tables)]
        self._lengths = torch.ones(case.tables * case.batch_size, dtype=torch.int64)
        self._labels = torch.randint(0, 2, (case.batch_size, 1)).float()
        self.store = damo.EmbeddingStore(
            path, memory_budget=case.memory_budget, options=damo.StoreOptions(num_threads=case.threads)
        )
        self.store.clock = lambda: 60.0 * self._steps
        self.embeddings = damo.EmbeddingBagCollection(
            tables=[EmbeddingBagConfig(case.rows, case.dim, name, feature_names=[name]) for name in self._features],
            optimizer_type=torchrec.optim.RowWiseAdagrad,
            optimizer_kwargs={"lr": 0.01},
            store=self.store,
            table_options={name: _options(case) for name in self._features} if isinstance(case, EndlessCase) else None,
        )
        self.dense = _dense(case)
        self.optimizer = torch.optim.Adam(self.dense.parameters(), lr=0.001)

    def step(self, number: int) -> None:
        """Forward, backward and both updates; of ids that arrive again, the old rows are deleted before."""
        self._steps = number + 1
        if not isinstance(self._case, EndlessCase) and number >= self._case.steps_to_fill:
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

    def rows(self) -> list[int]:
        """Of each table."""
        return [len(self.store.table(name)) for name in self._features]

    def is_full(self, steps: int) -> bool:
        """Whether all rows are there after so many steps: where rows come and go, once each table has had a cut."""
        if not isinstance(self._case, EndlessCase):
            return steps >= self._case.steps_to_fill
        lives = [self.store.table(name).stats().life for name in self._features]
        return all(life is not None and life.cut for life in lives)

    def lives(self) -> Lives:
        """What came and went, of a case whose rows do."""
        stats = self.store.stats()
        lives = [table.life for table in stats.tables.values() if table.life is not None]
        return Lives(
            sighted=sum(life.sighted for life in lives),
            created=sum(life.created for life in lives),
            idle_by_steps=sum(n for life in lives for rule, n in life.expired.items() if rule.steps is not None),
            idle_by_time=sum(n for life in lives for rule, n in life.expired.items() if rule.seconds is not None),
            cut=sum(life.cut for life in lives),
            forgotten_sightings=sum(life.forgotten_sightings for life in lives),
            file_bytes=stats.disk_bytes,
        )


def _dense(case: Case) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(case.tables * case.dim, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))


def warm_up(case: Case) -> None:
    """Takes what torch takes by itself for a step of the dense part."""
    torch.set_num_threads(case.threads)
    inputs = torch.zeros(case.batch_size, case.tables * case.dim, requires_grad=True)
    _dense(case)(inputs).sum().backward()


def _options(case: EndlessCase) -> damo.TableOptions:
    return damo.TableOptions(
        admit=damo.Admit(sightings=2, within_steps=case.sighted_steps),
        expire=[damo.Idle(steps=case.idle_steps, below_count=2), damo.Idle(minutes=case.idle_minutes)],
        max_rows=case.rows,
        credit=case.credit,
    )
