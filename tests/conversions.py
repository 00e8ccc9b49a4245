"""A table that is trained, and then converted."""

import torch

import damo_torchrec as damo
from support import config, kjt

DIM = 4


def collection(store, optimizer=torch.optim.Adam, kwargs=None, dim=DIM, **options):
    table = damo.TableOptions(optimizer=(optimizer, {"lr": 0.1, **(kwargs or {})}), **options)
    return damo.EmbeddingBagCollection([config("t", dim)], store=store, table_options={"t": table})


def step(ebc, ids, factor=1.0):
    out = ebc(kjt({"t": [[i] for i in ids]})).values()
    (factor * out * torch.arange(1.0, out.shape[1] + 1)).sum().backward()


def train(store, *args, ids=range(1, 40), **options):
    """Two updates of some rows and one of others, by a collection that is gone when it returns."""
    ebc = collection(store, *args, **options)
    step(ebc, ids)
    step(ebc, list(ids)[::2], -0.5)


def all_of(table):
    """Weights, state and metadata of all rows."""
    ids, weights = table.to_torch()
    metadata = table.metadata(ids)
    return ids, weights, table.get_state(ids), metadata.updates, metadata.last_step
