#!/usr/bin/env python3
"""Trains TorchRec's DLRM, unchanged, on raw 64-bit ids; `--help` tells the rest.

What makes it a damo_torchrec model is the store and the collection that `main` opens. The model
itself is in dlrm_train.py, the data sets are in dlrm_data/.
"""

import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import torch
import torchrec
from torchrec.models.dlrm import DLRM

import damo_torchrec as damo
from dlrm_cli import differences, parse_arguments, resume_command, run_arguments
from dlrm_console import Progress, StopRequest, store_report
from dlrm_data.census import Census
from dlrm_data.criteo import Criteo, MalformedFileError
from dlrm_data.samples import Dataset
from dlrm_data.synthetic import Synthetic
from dlrm_export import export_and_ask
from dlrm_train import (
    Position,
    build_model,
    dense_optimizer,
    evaluate,
    remaining,
    table_configs,
    train_step,
)


def main() -> int:
    arguments = parse_arguments()
    if arguments.fresh:
        set_aside(arguments.store)
    dataset = open_dataset(arguments)
    with damo.EmbeddingStore(arguments.store, memory_budget=arguments.memory_budget, seed=arguments.seed) as store:
        print(f"The store is in {arguments.store.resolve()}")
        checkpoint = last_checkpoint(store)
        if checkpoint is not None:
            refuse_other_arguments(checkpoint, arguments)
        torch.manual_seed(arguments.seed)
        collection = damo.EmbeddingBagCollection(
            tables=table_configs(dataset, arguments.dim),
            optimizer_type=torchrec.optim.RowWiseAdagrad,
            optimizer_kwargs={"lr": arguments.lr},
            store=store,
        )
        run = Run(store, build_model(collection, dataset.dense_features), dataset, arguments)
        if checkpoint is not None:
            run.resume(checkpoint)
        stopped_by = run.train()
        if stopped_by is not None:
            return 128 + stopped_by  # what a shell reports for a process that a signal ended
        report = store_report(store.stats())
        auc, samples = evaluate(run.model, dataset.test_batches())
        print(f"\nTest AUC {auc:.4f} on {samples:,} samples\n\n{report}")
        print(f"The store is in {arguments.store.resolve()}")
        if arguments.export is not None:
            print(f"\n{export_and_ask(run.model, next(iter(dataset.test_batches())), arguments.export)}")
    return 0


class Run:
    """A model on its way through a data set, saved and resumed as a whole."""

    def __init__(
        self,
        store: damo.EmbeddingStore,
        model: DLRM,
        dataset: Dataset,
        arguments: Namespace,
    ) -> None:
        self.store = store
        self.model = model
        self.optimizer = dense_optimizer(model, arguments.dense_lr)
        self.dataset = dataset
        self.arguments = arguments
        self.position = self.saved = Position()

    def resume(self, checkpoint: Path) -> None:
        damo.load_model(checkpoint, self.model, optimizer=self.optimizer)
        extra = damo.checkpoint_info(checkpoint).extra
        self.position = self.saved = Position(**extra["position"])
        print(f"Resumed after step {self.position.step}, from {checkpoint}")

    def save(self) -> None:
        if self.position != self.saved:
            extra = {"position": asdict(self.position), "arguments": run_arguments(self.arguments)}
            damo.save_model(self.model, optimizer=self.optimizer, extra=extra)
            self.saved = self.position

    def train(self) -> int | None:
        """Trains from the position to the end. Returns the signal that stopped it, if any."""
        epochs = self.arguments.epochs
        if self.position.epoch >= epochs:
            print(
                f"Training is complete: {self.position.epoch} epochs are done. Go on with "
                f"--epochs {self.position.epoch + 1} or more, or start again with --fresh."
            )
            return None
        with StopRequest() as stop:
            try:
                self._train_until(stop)
            except MalformedFileError:  # between two steps, so there is a whole model to save
                self.save()
                raise
            self.save()
        if stop.signal is None or self.position.epoch >= epochs:
            return None
        print(
            f"Stopped after step {self.position.step}, in epoch {self.position.epoch + 1} of "
            f"{epochs}. Go on with:\n  {resume_command()}"
        )
        return stop.signal

    def _train_until(self, stop: StopRequest) -> None:
        epochs, every = self.arguments.epochs, self.arguments.checkpoint_every
        size = self.dataset.train_size
        done = (self.position.epoch * (size or 0)) + self.position.batch * self.arguments.batch_size
        with Progress(self.store, epochs, size and epochs * size, done) as progress:
            for batch, after in remaining(self.dataset, self.position, epochs):
                loss = train_step(self.model, self.optimizer, batch)
                progress.step(self.position.epoch, len(batch.labels), loss)
                self.position = after
                if stop.signal is not None:
                    return
                if self.position.step % every == 0:
                    self.save()


def open_dataset(arguments: Namespace) -> Dataset:
    if arguments.data == "census":
        return Census(arguments.batch_size, arguments.seed)
    if arguments.data == "criteo":
        return Criteo([Path(file) for file in arguments.files], arguments.batch_size)
    return Synthetic(
        arguments.batch_size,
        tables=arguments.tables,
        rows_per_table=arguments.rows_per_table,
        steps=arguments.steps,
        exponent=arguments.zipf,
        seed=arguments.seed,
    )


def last_checkpoint(store: damo.EmbeddingStore) -> Path | None:
    """The newest checkpoint that holds a model, not the rows alone; None in a new store."""
    checkpoints = [path for path in store.checkpoints() if (path / "model.pt").is_file()]
    return checkpoints[-1] if checkpoints else None


def refuse_other_arguments(checkpoint: Path, arguments: Namespace) -> None:
    changes = differences(damo.checkpoint_info(checkpoint).extra["arguments"], run_arguments(arguments))
    if changes:
        raise ValueError(
            f"{checkpoint} was trained with other arguments:\n  "
            + "\n  ".join(changes)
            + "\nGo on with the same ones, or start another run with --fresh or --store."
        )


def set_aside(directory: Path) -> None:
    """Renames a store's directory, after a look that it is one and that nobody has it open."""
    if not directory.exists():
        return
    if not (directory / "LOCK").is_file() or not any(directory.glob("checkpoints/*/manifest.json")):
        raise ValueError(f"--fresh: {directory} is not a damo_torchrec store; it stays as it is")
    damo.EmbeddingStore(directory).close()
    number = 1
    while (target := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    directory.rename(target)
    print(f"The store that was there is now {target.resolve()}; delete it when it is not needed.")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # outside training, where there is nothing to save
        sys.exit(130)
    except (damo.DamoError, OSError, ValueError) as error:
        sys.exit(f"dlrm.py: error: {error}")
