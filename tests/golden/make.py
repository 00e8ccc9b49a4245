#!/usr/bin/env python3
"""Makes the golden store of the format version that this release writes. Run it once, when that version is new.

A golden store is a checkpoint, ``format_N/``, and what it holds as text, ``format_N.json``. Every later release reads
all of them to the same rows (checkpoints/test_golden.py), so none is ever made again.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import torchrec
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec import _core
from damo_torchrec.checkpoints.manifest import FORMAT_VERSION

HERE = Path(__file__).parent
SEED = 7
IDS = [-(2**63), -(2**32), -1, 0, 1, 2, 2**32 + 1, 2**63 - 1]
NEW_ID = 12345  # has no row before `one_more_step`

# By format: every optimizer and every distribution of initial weights that it brought, at odd dims.
TABLES = {
    1: {
        "rowwise": (4, torchrec.optim.RowWiseAdagrad, {"lr": 0.05}, damo.init.Uniform(-0.25, 0.5)),
        "adam": (3, torch.optim.Adam, {"lr": 0.01}, damo.init.Normal(0.5, 0.1)),
        "adagrad": (2, torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.1}, damo.init.TruncatedNormal()),
        "sgd": (5, torch.optim.SGD, {"lr": 0.5}, damo.init.Constant(0.125)),
    },
    2: {
        "f16": (3, torchrec.optim.RowWiseAdagrad, {"lr": 0.05}, damo.init.Uniform(-0.25, 0.5)),
        "bf16": (4, torch.optim.Adam, {"lr": 0.01}, damo.init.Normal(0.5, 0.1)),
        "momentum": (2, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, damo.init.Normal()),
        "amsgrad": (3, torch.optim.Adam, {"lr": 0.01, "amsgrad": True}, damo.init.Normal()),
        "partial_adam": (3, torchrec.optim.PartialRowWiseAdam, {"lr": 0.01}, damo.init.Normal()),
        "lamb": (3, torchrec.optim.LAMB, {"lr": 0.01}, damo.init.Normal()),
        "partial_lamb": (3, torchrec.optim.PartialRowWiseLAMB, {"lr": 0.01}, damo.init.Normal()),
        "lars": (3, torchrec.optim.LarsSGD, {"lr": 0.01}, damo.init.Normal()),
        "ftrl": (3, damo.optim.FTRL, {"lambda1": 0.01}, damo.init.Normal()),
        "lion": (3, damo.optim.Lion, {"lr": 0.01}, damo.init.Normal()),
    },
    4: {  # a journal over table files, all with their SHA-256
        "rowwise": (4, torchrec.optim.RowWiseAdagrad, {"lr": 0.05}, damo.init.Uniform(-0.25, 0.5)),
        "f16": (3, torch.optim.Adam, {"lr": 0.01}, damo.init.Normal(0.5, 0.1)),
    },
    5: {  # tables that have another name than when they were made
        "rowwise": (4, torchrec.optim.RowWiseAdagrad, {"lr": 0.05}, damo.init.Uniform(-0.25, 0.5)),
        "adam": (3, torch.optim.Adam, {"lr": 0.01}, damo.init.Normal(0.5, 0.1)),
    },
    6: {  # tables whose rows have a life
        "rowwise": (4, torchrec.optim.RowWiseAdagrad, {"lr": 0.05}, damo.init.Uniform(-0.25, 0.5)),
        "adam": (3, torch.optim.Adam, {"lr": 0.01}, damo.init.Normal(0.5, 0.1)),
    },
    3: {  # a journal
        "rowwise": (4, torchrec.optim.RowWiseAdagrad, {"lr": 0.05}, damo.init.Uniform(-0.25, 0.5)),
        "adam": (3, torch.optim.Adam, {"lr": 0.01}, damo.init.Normal(0.5, 0.1)),
    },
}
# What they are made with, by format; whoever opens them later asks for nothing.
LIVES = {
    6: {
        "rowwise": {"expire": [damo.Idle(steps=1)]},
        "adam": {"admit": damo.Admit(sightings=2, within_steps=None), "expire": [damo.Idle(days=30)], "max_rows": 100},
    }
}
ROW_DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


def make_model(store: damo.EmbeddingStore, version: int, prefix: str = "") -> nn.ModuleDict:
    """A collection for each table, and a dense layer. With a prefix, the tables are made."""
    store.clock = lambda: 1e9  # however much later a reader is
    model = nn.ModuleDict({"dense": nn.Linear(2, 1)})
    for key, (dim, optimizer, hyperparameters, initializer) in TABLES[version].items():
        name = prefix + key
        model[name] = damo.EmbeddingBagCollection(
            [EmbeddingBagConfig(name=name, embedding_dim=dim, num_embeddings=1000, feature_names=[name])],
            optimizer,
            hyperparameters,
            store=store,
            table_options={
                name: damo.TableOptions(
                    initializer=initializer,
                    row_dtype=ROW_DTYPES.get(key),
                    **(LIVES.get(version, {}).get(key, {}) if prefix else {}),
                )
            },
        )
    return model


def update(model: nn.ModuleDict, ids: list[int], gradient: float) -> None:
    """One update of each table, with a gradient that differs from column to column and id to id."""
    for name in set(model) - {"dense"}:
        batch = KeyedJaggedTensor(
            keys=[name], values=torch.tensor(ids), lengths=torch.ones(len(ids), dtype=torch.int64)
        )
        output = model[name](batch).values()
        output.backward(gradient * torch.arange(1, output.numel() + 1).reshape(output.shape) / 16)


def one_more_step(model: nn.ModuleDict) -> None:
    """What a reader does to see that training goes on as it would have."""
    update(model, [0, NEW_ID, -1], 0.5)


def rows_of(store: damo.EmbeddingStore, name: str) -> dict[str, dict[str, object]]:
    """All rows of a table, as JSON holds them: every float32 is exact in it."""
    table = store.table(name)
    size = store.session.engine.payload_size(table.opened.index)
    ids, payloads = torch.empty(100, dtype=torch.int64), torch.empty(100, size, dtype=torch.uint8)
    n = _core.Scan(store.session.engine, table.opened.index).next_payloads(ids.data_ptr(), payloads.data_ptr(), 100)
    weight_bytes = (table.dim * table.row_dtype.itemsize + 3) // 4 * 4
    weights, state, counters = payloads.split([weight_bytes, size - weight_bytes - 8, 8], dim=1)
    return {
        str(int(ids[i])): {
            "weights": weights[i].clone().view(table.row_dtype)[: table.dim].tolist(),
            "state": state[i].clone().view(torch.float32).tolist(),
            "last_step": int(counters[i].clone().view(torch.int32)[0]),
            "count": int(counters[i].clone().view(torch.int32)[1]),
        }
        for i in range(n)
    }


def contents(store: damo.EmbeddingStore) -> dict[str, dict[str, dict[str, object]]]:
    """The rows of all tables that are open."""
    return {name: rows_of(store, name) for name in sorted(store.tables())}


def main() -> None:
    """Trains a little, deletes, trains on, saves."""
    target = HERE / f"format_{FORMAT_VERSION}"
    if target.exists():
        sys.exit(f"{target} exists: a golden store is made once")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch, damo.EmbeddingStore(Path(scratch) / "store", seed=SEED) as store:
        model = make_model(store, FORMAT_VERSION, "made_as_")
        update(model, IDS, 1.0)
        store.flush()  # into table files
        del model
        for name in TABLES[FORMAT_VERSION]:
            store.rename_table(f"made_as_{name}", name)
        model = make_model(store, FORMAT_VERSION)
        optimizer = torch.optim.Adam(model["dense"].parameters())
        update(model, IDS[::2], -2.0)
        for name in TABLES[FORMAT_VERSION]:
            store.table(name).delete([1, 2])
        update(model, [2], 0.25)  # 1 stays deleted, 2 is there again
        model["dense"](torch.ones(1, 2)).sum().backward()
        optimizer.step()
        damo.save_model(model, target, optimizer=optimizer, step=3, extra={"position": [1, 2]})
        rows = contents(store)
        one_more_step(model)
        expected = {
            "dense": {name: value.tolist() for name, value in model.named_parameters()},
            "rows": rows,
            "rows_after_one_more_step": contents(store),
        }
    (HERE / f"format_{FORMAT_VERSION}.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
