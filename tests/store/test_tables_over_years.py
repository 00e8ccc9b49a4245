"""Drops, renames and conversions among all else that a store does: it is what plain dicts are.

In any order, with updates, restores, reopenings and crashes. Another program's RocksDB reads what is in checkpoints.
"""

import copy
import itertools
import random
import shutil
import struct
from dataclasses import dataclass, field

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.optim.state_parts import STATE_PARTS
from raw_records import decode_key, opened
from support import config, kjt, small_store

NAMES = ["a", "b", "c", "d"]
IDS = [-(2**63), -5, -1, 0, 1, 2, 3, 2**40, 2**63 - 1]
INITIAL = 0.5
TRAINED = "SGD"  # whose updates are exact with whole gradients
RULES = [TRAINED, TRAINED, "ADAM", "ROWWISE_ADAGRAD"]
WEIGHTS = {"float32": "f", "float16": "e"}


@dataclass
class Row:
    weights: list[float]
    updates: int = 0
    last_step: int = 0


@dataclass
class Table:
    dim: int
    rule: str = TRAINED
    dtype: str = "float32"
    iter: int = 0
    rows: dict[int, Row] = field(default_factory=dict)


class Years:
    """A store and the dicts that it should be."""

    def __init__(self, directory, seed):
        self.random = random.Random(seed)
        self.directory, self.lives = directory, itertools.count()
        self.path = directory / f"life{next(self.lives)}"
        self.tables: dict[str, Table] = {}
        self.saved: dict[str, dict[str, Table]] = {}
        self.store = self.open()

    def open(self):
        cache = self.random.choice([0, 1024])
        store = small_store(self.path, cache_bytes=cache, keep_checkpoints=None)
        self.note_checkpoints(store)
        return store

    def note_checkpoints(self, store):
        for checkpoint in store.checkpoints():
            if checkpoint.name not in self.saved:
                self.saved[checkpoint.name] = copy.deepcopy(self.tables)

    def name(self):
        return self.random.choice(sorted(self.tables))

    def ids(self):
        return self.random.sample(IDS, self.random.randint(1, len(IDS)))

    # ---- what may happen

    def train(self):
        name = self.random.choice(NAMES)
        table = self.tables.setdefault(name, Table(self.random.randint(1, 5)))
        if table.rule != TRAINED:
            return
        options = {
            name: damo.TableOptions(initializer=damo.init.Constant(INITIAL), row_dtype=getattr(torch, table.dtype))
        }
        tables = [config(name, table.dim)]
        ebc = damo.EmbeddingBagCollection(tables, torch.optim.SGD, {"lr": 1.0}, store=self.store, table_options=options)
        ids, gradient = self.ids(), self.random.randint(-3, 3)
        (gradient * ebc(kjt({name: [[i] for i in ids]})).values()).sum().backward()
        table.iter += 1
        for i in ids:
            row = table.rows.setdefault(i, Row([INITIAL] * table.dim))
            row.weights = [w - gradient for w in row.weights]
            row.updates, row.last_step = row.updates + 1, table.iter

    def set(self):
        name, ids = self.name(), self.ids()
        table = self.tables[name]
        weights = [[self.random.randint(-9, 9) / 4 for _ in range(table.dim)] for _ in ids]
        self.store.table(name).set(ids, weights)
        for i, row in zip(ids, weights, strict=True):
            table.rows[i] = Row(row, 0, table.iter)

    def delete(self):
        name, ids = self.name(), self.ids()
        self.store.table(name).delete(ids)
        for i in ids:
            self.tables[name].rows.pop(i, None)

    def drop(self):
        name = self.name()
        self.store.drop_table(name)
        del self.tables[name]

    def rename(self):
        old, new = self.name(), self.random.choice(NAMES)
        if new in self.tables:
            with pytest.raises(ValueError, match="already"):
                self.store.rename_table(old, new)
            return
        self.store.rename_table(old, new)
        self.tables[new] = self.tables.pop(old)

    def convert(self):
        name = self.name()
        table = self.tables[name]
        table.rule, table.dtype = self.random.choice(RULES), self.random.choice(list(WEIGHTS))
        dim = self.random.randint(1, 5)
        self.store.convert_table(name, optimizer=table.rule, row_dtype=table.dtype, dim=dim)
        for row in table.rows.values():
            row.weights = [*row.weights[:dim], *[INITIAL] * (dim - table.dim)]
        table.dim = dim

    def checkpoint(self):
        checkpoint = self.store.checkpoint()
        self.note_checkpoints(self.store)
        self.read_by_another(checkpoint)

    def restore(self):
        checkpoint = self.random.choice(self.store.checkpoints())
        self.store.restore(checkpoint)
        self.tables = copy.deepcopy(self.saved[checkpoint.name])

    def flush(self):
        self.store.flush()

    def reopen(self):
        self.store.close()
        self.store = self.open()

    def crash(self):
        """As a kill at this moment: what the directory holds now, of which nobody holds the lock."""
        newest = self.store.checkpoints()[-1].name
        after = self.directory / f"life{next(self.lives)}"
        shutil.copytree(self.path, after)
        self.store.close()
        shutil.rmtree(self.path)
        self.path = after
        for name in [name for name in self.saved if not (after / "checkpoints" / name).exists()]:
            del self.saved[name]
        self.tables = copy.deepcopy(self.saved[newest])
        self.store = self.open()

    # ---- what is there

    def check(self):
        assert list(self.store.tables()) == sorted(self.tables)
        assert self.store.step == max((table.iter for table in self.tables.values()), default=0)
        for name, expected in self.tables.items():
            table = self.store.table(name)
            ids, weights = table.to_torch()
            rows = [expected.rows[i] for i in sorted(expected.rows)]
            assert (table.dim, table.iter, len(table)) == (expected.dim, expected.iter, len(rows))
            assert ids.tolist() == sorted(expected.rows)
            assert weights.tolist() == [row.weights for row in rows]
            metadata = table.metadata(ids)
            assert metadata.updates.tolist() == [row.updates for row in rows]
            assert metadata.last_step.tolist() == [row.last_step for row in rows]

    def read_by_another(self, checkpoint):
        numbers = {entry.number: name for name, entry in Manifest.read(checkpoint).tables.items()}
        scratch = self.directory / "scratch"
        scratch.mkdir()
        with opened(checkpoint, scratch) as records:
            found = {decode_key(key): value for key, value in records.items()}
        shutil.rmtree(scratch)
        assert {number & ~(1 << 31) for number, _ in found} <= set(numbers), "something is left of a table that is gone"
        for number, name in numbers.items():
            table = self.tables[name]
            rows = {i: value for (n, i), value in found.items() if n == number}
            assert rows.keys() == table.rows.keys()
            letter, floats = WEIGHTS[table.dtype], sum(part.width(table.dim) for part in STATE_PARTS[table.rule])
            pad = table.dim % 2 * 2 if letter == "e" else 0
            for i, value in rows.items():
                _, *weights = struct.unpack_from(f"<B{table.dim}{letter}", value)
                last_step, updates = struct.unpack("<II", value[-8:])
                assert (weights, updates, last_step) == tuple(vars(table.rows[i]).values())
                assert len(value) == 1 + struct.calcsize(f"{table.dim}{letter}") + pad + 4 * floats + 8


WITH_TABLES = ["set", "delete", "drop", "rename", "convert", "convert"]
ALWAYS = ["train", "train", "train", "train", "checkpoint", "restore", "flush", "reopen", "crash"]


@pytest.mark.parametrize(
    ("seed", "events"), [(0, 25), *(pytest.param(seed, 100, marks=pytest.mark.slow) for seed in (1, 3))]
)
def test_a_store_over_years_is_what_dicts_are(tmp_path, seed, events):
    years = Years(tmp_path, seed)
    for _ in range(events):
        event = years.random.choice(ALWAYS + (WITH_TABLES if years.tables else []))
        getattr(years, event)()
        years.check()
    years.reopen()
    years.check()
    years.store.close()
