"""The model of tests/chaos/program.py, and digests of all that its training depends on."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torchrec
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from support import config, random_kjt, scan

STEPS = 400
BATCH = 16
NEW_IDS = 10  # of each table, that a step may ask for first
SCATTER = 0x9E3779B97F4A7C15 - 2**64  # odd: a multiple for each int64

DIMS = {"user": 8, "item": 16, "shop": 5, "word": 3}
OPTIONS = {
    "user": damo.TableOptions(optimizer=(torch.optim.Adam, {"lr": 0.01})),
    "item": damo.TableOptions(
        optimizer=(torchrec.optim.RowWiseAdagrad, {"lr": 0.05}),
        row_dtype=torch.float16,
        initializer=damo.init.Normal(0.0, 0.1),
    ),
    "shop": damo.TableOptions(optimizer=(torch.optim.Adagrad, {"lr": 0.05})),
    "word": damo.TableOptions(initializer=damo.init.Constant(0.5)),
}

# How long the rows of a table live, by all rules at once and by some; by none of them for ever.
LIVES: list[dict[str, Any]] = [
    {},
    {
        "admit": damo.Admit(sightings=2, within_steps=60),
        "expire": [damo.Idle(steps=25, below_count=2), damo.Idle(minutes=35)],
        "min_rows": 20,
        "max_rows": 400,
        "credit": 8,
    },
    {"admit": damo.Admit(sightings=3, probability=0.8), "max_rows": 200, "keep_rows": 150},
    {"expire": [damo.Idle(minutes=12, below_count=4), damo.Idle(steps=20)], "max_rows": 500, "credit": 3},
]

Digests = dict[str, str]


def options_of(seed: int) -> dict[str, damo.TableOptions]:
    """Of the tables of a training: each has some life, and at least one has all rules."""
    dice = random.Random(seed)
    lives = [LIVES[1], *dice.choices(LIVES, k=len(OPTIONS) - 1)]
    dice.shuffle(lives)
    return {name: replace(options, **life) for (name, options), life in zip(OPTIONS.items(), lives, strict=True)}


class Model(torch.nn.Module):
    """A dense part with Adam and dropout over four tables. A step is a function of seed, number and state alone."""

    def __init__(self, store: damo.EmbeddingStore, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.seed = seed
        self.losses: list[float] = []
        self.dense = torch.nn.Sequential(
            torch.nn.Linear(sum(DIMS.values()), 16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1)
        )
        self.optimizer = torch.optim.Adam(self.dense.parameters(), lr=0.01)
        self.attach(store)

    def attach(self, store: damo.EmbeddingStore) -> None:
        """Takes the rows of `store` from now on. Their time is that of the steps, a minute each."""
        store.clock = lambda: 60.0 * self.number
        self.ebc = damo.EmbeddingBagCollection(
            [config(name, dim) for name, dim in DIMS.items()],
            torch.optim.SGD,
            {"lr": 0.1},
            store=store,
            table_options=options_of(self.seed),
        )

    @property
    def number(self) -> int:
        """Steps so far."""
        return len(self.losses)

    def step(self, enter: Callable[[str], None]) -> None:
        """An update of everything, then the deletion of a few rows. `enter` is told of both."""
        enter("updating")
        generator = torch.Generator().manual_seed(self.seed * STEPS + self.number)
        ids = NEW_IDS * (self.number + 1)
        bags = random_kjt(generator, list(DIMS), BATCH, ids)
        batch = KeyedJaggedTensor(keys=bags.keys(), values=bags.values() * SCATTER, lengths=bags.lengths())
        labels = torch.randint(0, 2, (BATCH, 1), generator=generator).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(self.dense(self.ebc(batch).values()), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        enter("deleting")
        table = list(DIMS)[self.number % len(DIMS)]
        self.ebc.store.table(table).delete(torch.randint(0, ids, (NEW_IDS // 2,), generator=generator) * SCATTER)
        self.losses.append(loss.item())

    def digests(self) -> Digests:
        """Of all that a step depends on."""
        return {
            "rows": rows_digest(self.ebc.store),
            "dense weights": digest(self.dense.state_dict()),
            "dense optimizer": digest(self.optimizer.state_dict()),
            "losses": digest(self.losses),
            "random numbers": digest(torch.get_rng_state()),
        }


def digest(value: object) -> str:
    """SHA-256 over tensors and what `repr` tells, in dicts and lists of them."""
    sha = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            sha.update(value.detach().numpy().tobytes())
        elif isinstance(value, dict):
            add(list(value.items()))
        elif isinstance(value, list | tuple):
            for part in value:
                add(part)
        else:
            sha.update(repr(value).encode())

    add(value)
    return sha.hexdigest()


def rows_digest(store: damo.EmbeddingStore) -> str:
    """SHA-256 over all that tables hold.

    All rows of all open tables, how many there are, the tables' iterations, what came and went, and what was seen of
    ids that have no row.
    """
    sha = hashlib.sha256()
    ids = torch.arange(0, NEW_IDS * (store.step + 1), 7) * SCATTER  # enough of them
    for name, table in sorted(store.tables().items()):
        sha.update(f"{name} {len(table)} {table.iter} ".encode())
        for some, data in scan(store, name):
            sha.update(torch.cat([some.view(-1, 1).view(torch.uint8), data], dim=1).numpy().tobytes())
        if (life := table.stats().life) is not None:
            sha.update(repr(replace(life, memory_bytes=0)).encode())
            sha.update(digest([*table.counters(ids)]).encode())
    return sha.hexdigest()
