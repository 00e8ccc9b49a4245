"""The model, one step of its training, its evaluation, and the position of a run in its data."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec import EmbeddingBagConfig
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRM

from dlrm_data.samples import Dataset

HIDDEN_UNITS = 64


def table_configs(dataset: Dataset, dim: int) -> list[EmbeddingBagConfig]:
    """One table of `dim` columns for each feature, named after it."""
    return [
        EmbeddingBagConfig(
            name=name,
            embedding_dim=dim,
            num_embeddings=dataset.expected_ids,
            feature_names=[name],
        )
        for name in dataset.feature_names
    ]


def build_model(embedding_bag_collection: torch.nn.Module, dense_in_features: int) -> DLRM:
    """TorchRec's DLRM over any module with the interface of its EmbeddingBagCollection."""
    dim = embedding_bag_collection.embedding_bag_configs()[0].embedding_dim
    return DLRM(
        embedding_bag_collection=embedding_bag_collection,
        dense_in_features=dense_in_features,
        dense_arch_layer_sizes=[HIDDEN_UNITS, dim],
        over_arch_layer_sizes=[HIDDEN_UNITS, 1],
    )


def dense_optimizer(model: DLRM, lr: float) -> torch.optim.Optimizer:
    """Adam for the dense layers; the embeddings' optimizer is fused into their backward pass."""
    layers = (model.dense_arch, model.over_arch)
    return torch.optim.Adam([weight for part in layers for weight in part.parameters()], lr=lr)


def train_step(model: DLRM, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """Updates dense layers and embeddings by one batch. Returns its mean cross-entropy."""
    optimizer.zero_grad()
    logits = model(batch.dense_features, batch.sparse_features).squeeze(-1)
    loss = binary_cross_entropy_with_logits(logits, batch.labels)
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluate(model: DLRM, batches: Iterable[Batch]) -> tuple[float, int]:
    """The area under the ROC curve (NaN without samples of both classes), and the sample count.

    In eval mode an id that was never trained on reads zeros. The model's mode is put back.
    """
    was_training = model.training
    model.eval()
    logits, labels = [torch.empty(0)], [torch.empty(0)]
    for batch in batches:
        logits.append(model(batch.dense_features, batch.sparse_features).squeeze(-1))
        labels.append(batch.labels)
    model.train(was_training)
    truth = torch.cat(labels).numpy()
    both_classes = 0 < truth.sum() < len(truth)
    auc = float(roc_auc_score(truth, torch.cat(logits).numpy())) if both_classes else math.nan
    return auc, len(truth)


@dataclass(frozen=True)
class Position:
    """What comes next: batch number `batch` of epoch `epoch`, after `step` steps in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


def remaining(dataset: Dataset, position: Position, epochs: int) -> Iterator[tuple[Batch, Position]]:
    """The batches from a position to the end of the last epoch, each with the position after it."""
    for epoch in range(position.epoch, epochs):
        first = position.batch if epoch == position.epoch else 0
        batches = enumerate(dataset.train_batches(epoch, first), start=first)
        current = next(batches, None)
        while current is not None:
            number, batch = current
            current = next(batches, None)
            after = (epoch, number + 1) if current is not None else (epoch + 1, 0)
            position = Position(*after, step=position.step + 1)
            yield batch, position
