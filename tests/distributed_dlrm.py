"""The DLRM that several ranks train, and its global batches."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torchrec
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.dlrm import DLRM

import damo_torchrec as damo
import spread

FEATURES = ("user", "item", "clicks")
GLOBAL_BATCH = 16


@dataclass(frozen=True)
class Run:
    """How a model is trained: `plan` is "default", "planner" or "by hand"."""

    plan: str = "default"
    store: Mapping[str, Any] = field(default_factory=dict)
    prefetch: bool = False
    threads: int = 1
    steps: int = 6
    ids: int = 60


def batch_of(run: Run, step: int, begin: int, end: int) -> tuple[torch.Tensor, KeyedJaggedTensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    dense = torch.rand(GLOBAL_BATCH, 3, generator=generator)
    labels = torch.randint(0, 2, (GLOBAL_BATCH,), generator=generator).float()
    case = spread.Case({name: ([name], "SUM") for name in FEATURES}, batch=GLOBAL_BATCH, ids=run.ids)
    return dense[begin:end], spread.batch_of(case, step, begin, end), labels[begin:end]


def model_over(store: damo.EmbeddingStore) -> DLRM:
    torch.manual_seed(0)
    tables = [
        EmbeddingBagConfig(name=f"t_{name}", embedding_dim=8, num_embeddings=1000, feature_names=[name])
        for name in FEATURES
    ]
    ebc = damo.EmbeddingBagCollection(tables, torchrec.optim.RowWiseAdagrad, {"lr": 0.1}, store=store)
    return DLRM(ebc, 3, [16, 8], [16, 1])
