"""All that changes rows, with every rule for how long they live, against a dictionary that forgets at once."""

import copy
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import damo_torchrec as damo
from damo_torchrec.checkpoints.ladder import Ladder
from support import A_HANDFUL_OF_ROWS, config, kjt, payloads, small_store, weekly

DIM = 4
SIGHTINGS = 3
_LIVES = [
    damo.TableOptions(
        admit=damo.Admit(sightings=SIGHTINGS, within_steps=12),
        expire=[damo.Idle(steps=25)],
        max_rows=float("inf"),
        credit=0,
    ),
    damo.TableOptions(
        admit=damo.Admit(sightings=SIGHTINGS, within_steps=30),
        expire=[damo.Idle(seconds=400), damo.Idle(steps=6, below_count=4)],
        max_rows=90,
        credit=5,
    ),
    damo.TableOptions(admit=damo.Admit(sightings=SIGHTINGS), expire=[], max_rows=60, credit=0),
]


@dataclass
class Row:
    last_step: int
    count: int
    weights: float


@dataclass
class Model:
    """Rows of equal weights that begin at 1, from which each occurrence takes 1."""

    rows: dict[int, Row] = field(default_factory=dict)
    sightings: dict[int, tuple[int, int]] = field(default_factory=dict)  # last step, and how many
    iter: int = 0

    def update(self, ids: list[int]) -> None:
        self.iter += 1
        for id in sorted(set(ids)):
            row, (_, seen) = self.rows.get(id), self.sightings.pop(id, (0, 0))
            if row is None and seen + ids.count(id) < SIGHTINGS:
                self.sightings[id] = (self.iter, seen + ids.count(id))
                continue
            row = row or Row(0, 0, 1.0)
            self.rows[id] = Row(self.iter, row.count + 1, row.weights - ids.count(id))

    def set(self, id: int, weights: float) -> None:
        self.sightings.pop(id, None)
        self.rows[id] = Row(self.iter, 0, weights)

    def delete(self, id: int) -> None:
        self.sightings.pop(id, None)
        self.rows.pop(id, None)

    def sweep(self, ladder: Ladder) -> None:
        """Deletes what is dead: one row at a time, by the definition."""
        for id, row in list(self.rows.items()):
            step, part = divmod(ladder.positions[row.count.bit_length()], 256)
            if row.last_step < step or (row.last_step == step and id_part(id) < part):
                del self.rows[id]
        self.sightings = {id: seen for id, seen in self.sightings.items() if seen[0] >= ladder.positions[33] // 256}


def id_part(id: int) -> int:
    """SplitMix64's finalizer, its highest byte."""
    mask = 2**64 - 1
    x = id & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return (x ^ x >> 31) >> 56


@dataclass(frozen=True)
class Setting:
    """What must make no difference."""

    threads: int = 2
    cache_bytes: int = 0
    prefetches: bool = False
    resumes: bool = False


SETTINGS = [
    Setting(),
    Setting(threads=1, cache_bytes=A_HANDFUL_OF_ROWS),
    Setting(cache_bytes=20 * A_HANDFUL_OF_ROWS, prefetches=True),
    Setting(cache_bytes=A_HANDFUL_OF_ROWS, prefetches=True, resumes=True),
]


class Run:
    """One table through random calls. What it does depends on `seed` alone."""

    def __init__(self, path: Path, seed: int, setting: Setting) -> None:
        self.chance = random.Random(seed)
        self.path, self.setting = path, setting
        self.model, self.now = Model(), 0.0
        self.life = self.chance.choice(_LIVES)
        self.states: list[tuple[Path, Model, float]] = []
        self.open()

    def open(self) -> None:
        self.store = small_store(
            self.path, num_threads=self.setting.threads, cache_bytes=self.setting.cache_bytes, keep_checkpoints=None
        )
        self.store.clock = lambda: self.now
        options = replace(self.life, initializer=damo.init.Constant(1.0))
        self.ebc = damo.EmbeddingBagCollection(
            [config("t", DIM)], torch.optim.SGD, {"lr": 1.0}, store=self.store, table_options={"t": options}
        )
        self.table = self.store.table("t")

    def ids(self, n: int) -> list[int]:
        begin = 2 * self.model.iter

        def one() -> int:
            if self.chance.random() < 0.7:
                return self.chance.randrange(begin, begin + 60)
            return self.chance.randrange(-20, 20)

        return [one() for _ in range(n)]

    def ladder(self) -> Ladder:
        life = self.store.session.engine.life_stats(self.table.opened.index)
        return Ladder(tuple(life.ladder.positions))

    def update(self) -> None:
        self.now += self.chance.choice([1, 10, 60])
        ids = self.ids(self.chance.randrange(1, 60))
        batch = kjt({"t": [ids]})
        if self.setting.prefetches:
            self.ebc.prefetch(batch)
        out = self.ebc(batch).values()
        expected = sum(self.model.rows[id].weights if id in self.model.rows else 1.0 for id in ids)
        assert out.tolist() == [[expected] * DIM]
        out.sum().backward()
        self.model.update(ids)
        self.model.sweep(self.ladder())
        most = self.life.max_rows or 10**9
        assert len(self.table) <= max(most, len(set(ids)))

    def set(self) -> None:
        ids = self.ids(self.chance.randrange(1, 15))
        weights = float(self.chance.randrange(100))
        if len({*self.model.rows, *ids}) > (self.life.max_rows or 10**9):
            with pytest.raises(ValueError, match="max_rows"):
                self.table.set(ids, torch.full((len(ids), DIM), weights))
            return
        self.table.set(ids, torch.full((len(ids), DIM), weights))
        for id in ids:
            self.model.set(id, weights)

    def delete(self) -> None:
        ids = self.ids(10)
        self.table.delete(ids)
        for id in ids:
            self.model.delete(id)

    def save(self) -> None:
        saving = self.store.checkpoint_async()
        state = copy.deepcopy(self.model), self.now
        self.update()
        self.states.append((saving.result(), *state))

    def restore(self) -> None:
        if not self.states:
            return
        path, model, self.now = self.chance.choice(self.states)
        self.store.restore(path)
        self.model = copy.deepcopy(model)

    def resume(self) -> None:
        """Stops and goes on, where the setting has it; with other options, everywhere."""
        other = self.chance.choice(_LIVES) if self.chance.random() < 0.5 else self.life
        if other is self.life and not self.setting.resumes:
            return
        self.store.close()
        self.life = other
        self.open()

    def check(self) -> None:
        life = self.table.stats().life
        assert (life.rows, life.sighted) == (len(self.model.rows), len(self.model.sightings))
        assert len(self.table) == len(self.model.rows)
        ids = sorted({*self.model.rows, *self.model.sightings, *self.ids(30)})
        assert self.table.contains(ids).tolist() == [id in self.model.rows for id in ids]
        got: Tensor = self.table.get(ids)
        assert got[:, 0].tolist() == [self.model.rows[id].weights if id in self.model.rows else 0.0 for id in ids]
        last_steps, counts = self.table.counters(ids)
        assert [(int(last), int(count)) for last, count in zip(last_steps, counts, strict=True)] == [
            (row.last_step, row.count) if (row := self.model.rows.get(id)) else self.model.sightings.get(id, (0, 0))
            for id in ids
        ]
        assert sorted(payloads(self.store, "t")) == sorted(self.model.rows)

    def go(self, calls: int) -> tuple[dict[int, bytes], Ladder]:
        """Returns what there is in the end."""
        for _ in range(calls):
            kinds = [self.update] * 14 + [self.set, self.delete, self.check, self.check, self.save, self.restore]
            self.chance.choice([*kinds, self.resume])()
        self.check()
        result = payloads(self.store, "t"), self.ladder()
        self.store.close()
        return result


@pytest.mark.parametrize("seed", range(3))
def test_a_store_is_as_if_rows_went_at_once_whatever_its_setting(tmp_path, seed):
    results = [Run(tmp_path / str(i), seed, setting).go(90) for i, setting in enumerate(SETTINGS)]
    assert all(result == results[0] for result in results)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [100, 101, *weekly(range(102, 108))])
def test_many_stores_are_as_if_rows_went_at_once(tmp_path, seed):
    results = [Run(tmp_path / str(i), seed, setting).go(250) for i, setting in enumerate(SETTINGS)]
    assert all(result == results[0] for result in results)
