"""The end of the circle: a trained model as an ONNX file, and one question to that."""

from pathlib import Path

import torch
import torchrec
from torch import nn
from torchrec.datasets.utils import Batch

import damo_torchrec as damo


def export_and_ask(model: nn.Module, batch: Batch, path: Path) -> str:
    """Exports a model that takes a batch's dense and sparse features, and asks the file about the first sample.

    The file has the rows in it and takes raw ids. What it answers is compared with what the model does.

    Raises:
        ImportError: a package is missing, or this Python has no ONNX Runtime.
    """
    from onnxruntime import __version__ as runtime  # which the answer comes from, alone

    dense, sparse = batch.dense_features[:1], first_sample(batch)
    graph = damo.onnx.export(model, (dense, sparse), path)
    question = {
        "dense_features": dense.numpy(),
        "sparse_features.values": sparse.values().numpy(),
        "sparse_features.lengths": sparse.lengths().long().view(len(sparse.keys()), 1).numpy(),
    }
    (answer,) = damo.onnx.session(graph).run(None, question)
    was_training = model.training
    with torch.no_grad():
        expected = model.eval()(dense, sparse)
    model.train(was_training)
    said, meant = (float(torch.as_tensor(logit).sigmoid()) for logit in (answer.item(), expected.item()))
    if abs(said - meant) > 1e-4:
        raise ValueError(f"{graph} answers {said:.6f}, and the model {meant:.6f}")
    size = sum(file.stat().st_size for file in graph.parent.rglob("*") if file.is_file()) / 2**20
    ids = ", ".join(str(number) for number in sparse.values()[:3].tolist())
    return (
        f"Exported to {graph.resolve()}, {size:.1f} MiB with all rows.\n"
        f"Asked about a person with the ids {ids}, ..., ONNX Runtime {runtime} answers {said:.4f}, "
        f"and the model {meant:.4f}"
    )


def first_sample(batch: Batch) -> torchrec.KeyedJaggedTensor:
    """The sparse features of a batch's first sample."""
    features = [batch.sparse_features[key] for key in batch.sparse_features.keys()]  # noqa: SIM118  # it is no dict
    lengths = torch.stack([feature.lengths()[0] for feature in features])
    values = torch.cat([feature.values()[: feature.lengths()[0]] for feature in features])
    return torchrec.KeyedJaggedTensor(batch.sparse_features.keys(), values, lengths=lengths)
