#!/usr/bin/env python3
"""The job of one day, as a shop has it run every night: `daily_job.py DIRECTORY DAY`.

It goes on from the newest checkpoint, predicts the day by what was learned before, trains on it once, saves, and
publishes what has changed to servers. A day that is done is passed over, so that a job which died may be run again.
Prints a line of JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torchrec

import damo_torchrec as damo
from daily_training import SALT, Trainee, auc, batches, day_file
from online_models import LR, TABLES, Model, configs


def main(directory: Path, day: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # batches are small
    with damo.EmbeddingStore(directory / "store", memory_budget="64MiB") as store:
        rows = damo.EmbeddingBagCollection(
            configs(dict.fromkeys(TABLES, 1)),  # no limit: the range of initial weights is given
            torchrec.optim.RowWiseAdagrad,
            {"lr": LR},
            store=store,
            table_options={f"t_{name}": damo.TableOptions(string_salt=SALT, unseen_in_eval="mean") for name in TABLES},
        )
        trainee = Trainee(Model(rows))
        manager = damo.CheckpointManager(directory / "checkpoints", every_seconds=3600, keep=3)
        found = manager.restore(trainee.model, optimizer=trainee.optimizers[0])
        done = found.extra["day"] if found is not None else 0
        if day > done:
            data = batches(day_file(directory, day))
            score = auc(data, trainee.predict(data))
            trainee.train(data)
            with manager:
                manager.save(
                    trainee.model, store.step, optimizer=trainee.optimizers[0], extra={"day": day, "auc": score}
                )
        else:
            score = found.extra["auc"]
        publish(directory, store, trainee.model, next(iter(batches(day_file(directory, day)))))
        print(json.dumps({"auc": score, "rows": {name: len(store.table(f"t_{name}")) for name in TABLES}}))


def publish(directory: Path, store: damo.EmbeddingStore, model: Model, batch: Any) -> None:
    """The first time a checkpoint to serve; then what has changed since."""
    args = (batch.sparse_features,)
    if not (directory / "served").exists():
        damo.serving.export(model, args, directory / "served")
        return
    damo.serving.DeltaPublisher(store, directory / "deltas", model=model, args=args, every_seconds=3600).publish()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
