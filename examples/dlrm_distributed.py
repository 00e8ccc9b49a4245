#!/usr/bin/env python3
"""Trains the DLRM of dlrm.py on several processes or machines, under TorchRec's `DistributedModelParallel`.

    torchrun --nproc-per-node 2 examples/dlrm_distributed.py --data synthetic --steps 200

Each process takes its samples of each batch, and has the rows of its ids in a store of its own. It
takes the arguments of dlrm.py, but for --fresh; --batch-size is that of all processes together,
--memory-budget that of each. The stores are in DIR-distributed, where --store says DIR. Run it
again, with as many processes, and it goes on where all of them were saved.
"""

import sys
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import asdict

import torch
import torchrec
from sklearn.metrics import roc_auc_score
from torch import distributed
from torchrec import KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed.model_parallel import DistributedModelParallel

import damo_torchrec as damo
from dlrm import open_dataset
from dlrm_cli import parse_arguments
from dlrm_data.samples import Dataset
from dlrm_train import Position, build_model, dense_optimizer, remaining, table_configs, train_step

TELL_EVERY = 50  # steps


def main() -> None:
    arguments = parse_arguments()
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    if arguments.fresh:
        raise ValueError("--fresh is for a single process: name another --store, or delete this one")
    root = arguments.store.with_name(f"{arguments.store.name}-distributed")
    with damo.distributed.open_store(root, memory_budget=arguments.memory_budget, seed=arguments.seed) as store:
        dataset = open_dataset(arguments)
        torch.manual_seed(arguments.seed)
        collection = damo.EmbeddingBagCollection(
            tables=table_configs(dataset, arguments.dim),
            optimizer_type=torchrec.optim.RowWiseAdagrad,
            optimizer_kwargs={"lr": arguments.lr},
            store=store,
        )
        model = build_model(collection, dataset.dense_features)
        optimizer = dense_optimizer(model, arguments.dense_lr)
        model = DistributedModelParallel(model, sharders=damo.distributed.sharders())
        train(model, optimizer, dataset, arguments)
        auc, samples = evaluate(model, dataset.test_batches())
        rows = torch.tensor([sum(len(store.table(name)) for name in store.tables())])
        of_ranks = [torch.zeros_like(rows) for _ in range(size)]
        distributed.all_gather(of_ranks, rows)
        if rank == 0:
            print(f"Test AUC {auc:.4f} on {samples:,} samples")
            print("Rows by rank: " + ", ".join(f"{int(n):,}" for n in of_ranks))
    distributed.destroy_process_group()


def train(
    model: DistributedModelParallel, optimizer: torch.optim.Optimizer, dataset: Dataset, arguments: Namespace
) -> None:
    """From the last checkpoint of all ranks to the end, with a checkpoint there."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    saved = damo.distributed.load_model(model, optimizer=optimizer)
    position = Position(**saved.extra["position"]) if saved is not None else Position()
    if rank == 0:
        print(f"{size} processes, from step {position.step}")
    losses = []
    for batch, after in remaining(dataset, position, arguments.epochs):
        losses.append(train_step(model, optimizer, share_of(batch, rank, size)))
        position = after
        if rank == 0 and position.step % TELL_EVERY == 0:
            print(f"step {position.step}: loss {torch.tensor(losses[-TELL_EVERY:]).nanmean():.4f}")
        if position.step % arguments.checkpoint_every == 0:
            save(model, optimizer, position)
    if losses:
        save(model, optimizer, position)


def save(model: DistributedModelParallel, optimizer: torch.optim.Optimizer, position: Position) -> None:
    damo.distributed.save_model(model, optimizer=optimizer, extra={"position": asdict(position)})


def share_of(batch: Batch, rank: int, size: int) -> Batch:
    """The samples of a batch that one of several processes trains on; each feature has one id a sample."""
    n, features = len(batch.labels), batch.sparse_features
    begin, end = n * rank // size, n * (rank + 1) // size
    ids = features.values().view(-1, n)[:, begin:end]
    return Batch(
        dense_features=batch.dense_features[begin:end],
        sparse_features=KeyedJaggedTensor(
            keys=features.keys(), values=ids.reshape(-1), lengths=torch.ones(ids.numel(), dtype=torch.int32)
        ),
        labels=batch.labels[begin:end],
    )


@torch.no_grad()
def evaluate(model: DistributedModelParallel, batches: Iterable[Batch]) -> tuple[float, int]:
    """The area under the ROC curve of all processes' shares, and the sample count."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    model.eval()
    logits, labels = [torch.empty(0)], [torch.empty(0)]
    for batch in (share_of(batch, rank, size) for batch in batches):
        logits.append(model(batch.dense_features, batch.sparse_features).squeeze(-1))
        labels.append(batch.labels)
    model.train()
    of_ranks: list[tuple[torch.Tensor, torch.Tensor]] = [(logits[0], labels[0])] * size
    distributed.all_gather_object(of_ranks, (torch.cat(logits), torch.cat(labels)))
    scores, truth = (torch.cat(parts).numpy() for parts in zip(*of_ranks, strict=True))
    return float(roc_auc_score(truth, scores)), len(truth)


if __name__ == "__main__":
    try:
        main()
    except (damo.DamoError, OSError, ValueError) as error:
        sys.exit(f"dlrm_distributed.py: error: {error}")
