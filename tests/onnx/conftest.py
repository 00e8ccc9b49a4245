"""A model to export."""

import pytest
from torch import nn

import damo_torchrec as damo
from exported_models import REQUEST
from serving_cases import Pooled, train


@pytest.fixture
def model(store: damo.EmbeddingStore) -> nn.Module:
    pooled = Pooled(store, weighted=False)
    train(pooled, (REQUEST,))
    return pooled
