#!/usr/bin/env python3
"""Times Parquet files becoming batches, beside the step of a DLRM that they feed; `--help` tells the rest."""

import itertools
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common.measure import Spread, table, write_json
from common.program import DEFAULT, QUIET, Options, begin, count, run

FULL = {"rows": 1_000_000, "rounds": 7}
QUICK = {"rows": 5_000, "rounds": 1}
FEATURES, NUMBERS, DIM = 26, 13, 16

DESCRIPTION = """\
Writes Parquet files of 26 features, 13 numbers and a label, as integers and as strings that are
hashed, and times damo_torchrec.data in rows per second: alone, and feeding the training of a DLRM
(dense layers 512-256-16 below, 512-256-1 above, all rows in memory), beside the same training of
batches that are in memory already. The three take turns.
"""

EPILOG = """\
examples:
  python benchmarks/loading.py
  python benchmarks/loading.py --quick
"""


def main() -> None:
    options = Options(DESCRIPTION, EPILOG, FULL, QUICK)
    options.parser.add_argument("--rows", type=count, help="rows of each file")
    options.parser.add_argument("--rounds", type=count, help="of each contestant")
    options.parser.add_argument("--batch-size", type=count, default=4096, help=f"rows of a batch {DEFAULT}")
    arguments = options.parse(None)
    os.environ.update(QUIET)  # before torch is imported
    report: dict[str, Any] = begin("loading") | {"forms": {}}
    with tempfile.TemporaryDirectory() as directory:
        for form in ("integers", "strings"):
            file = Path(directory) / f"{form}.parquet"
            write(file, form, arguments.rows)
            for order in ("as they lie", "shuffled"):
                rates = measure(file, form, order, arguments.rounds, arguments.batch_size)
                report["forms"][f"{form}, {order}"] = {name: vars(rate) for name, rate in rates.items()}
    print("\n" + in_words(report["forms"]))
    if arguments.json is not None:
        write_json(arguments.json, report)


def write(file: Path, form: str, rows: int) -> None:
    """Ids by Zipf's law, some of them seldom: five million of each feature."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {"label": (rng.random(rows) < 0.3).astype(np.int8)}
    columns |= {f"I{i}": rng.random(rows, dtype=np.float32) for i in range(NUMBERS)}
    for i in range(FEATURES):
        ids = rng.zipf(1.1, rows) % 5_000_000
        columns[f"C{i}"] = ids if form == "integers" else pa.array([f"{number:08x}" for number in ids])
    pq.write_table(pa.table(columns), file, row_group_size=100_000)


def measure(file: Path, form: str, order: str, rounds: int, batch_size: int) -> dict[str, Spread]:
    """Rows per second by contestant, over rounds of an epoch each."""
    import damo_torchrec as damo

    kind = damo.data.Ids if form == "integers" else damo.data.Strings
    columns = damo.data.Columns(
        {f"C{i}": kind(f"C{i}") for i in range(FEATURES)}, [f"I{i}" for i in range(NUMBERS)], "label"
    )
    shuffle = damo.data.Shuffle(seed=0) if order == "shuffled" else None
    batches = damo.data.Batches(damo.data.ParquetRows(file), columns, batch_size=batch_size, shuffle=shuffle)
    in_memory = list(itertools.islice(batches, 64))
    with damo.EmbeddingStore(file.with_suffix(f".{order}"), memory_budget="2GiB") as store:
        step = training(store)
        for batch in in_memory:
            step(batch)
        contestants = {
            "read": (batches, lambda batch: None),
            "train": (in_memory, step),
            "read and train": (batches, step),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, (source, use) in contestants.items():
                began, rows = time.perf_counter(), 0
                for batch in source:
                    use(batch)
                    rows += len(batch.labels)
                rates[name].append(rows / (time.perf_counter() - began))
    return {name: Spread.of(values) for name, values in rates.items()}


def training(store: Any) -> Any:
    """A function that trains a DLRM by a batch."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits
    from torchrec import EmbeddingBagConfig
    from torchrec.models.dlrm import DLRM

    import damo_torchrec as damo

    torch.manual_seed(0)
    tables = [
        EmbeddingBagConfig(name=f"t{i}", embedding_dim=DIM, num_embeddings=5_000_000, feature_names=[f"C{i}"])
        for i in range(FEATURES)
    ]
    model = DLRM(damo.EmbeddingBagCollection(tables, store=store), NUMBERS, [512, 256, DIM], [512, 256, 1])
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.01)

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        logits = model(batch.dense_features, batch.sparse_features).squeeze(1)
        binary_cross_entropy_with_logits(logits, batch.labels).backward()
        optimizer.step()

    return step


def in_words(forms: dict[str, dict[str, dict[str, float]]]) -> str:
    rows = []
    for form, rates in forms.items():
        medians = {name: rate["median"] for name, rate in rates.items()}
        share = medians["read and train"] / medians["train"]
        rows.append([form, *(f"{median:,.0f}" for median in medians.values()), f"{share:.2f}"])
    return table(["rows/s", "read", "train", "read and train", "of train"], rows)


if __name__ == "__main__":
    sys.exit(run(main))
