"""What a model on several ranks consists of."""

from typing import Any

from torch import nn

from damo_torchrec.distributed.rank_stores import membership_of
from damo_torchrec.distributed.sharded_collection import ShardedCollection
from damo_torchrec.modules.collection import Collection
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.training.model_checkpoint import check_optimizer


def collections_of(model: nn.Module) -> list[Collection | ShardedCollection[Any]]:
    """The collections of this package in a model, sharded or not."""
    return [module for module in model.modules() if isinstance(module, Collection | ShardedCollection)]


def store_of(model: nn.Module) -> EmbeddingStore:
    """The store of a model's collections on this rank. Raises ValueError if they have none, or several."""
    stores = {collection.store for collection in collections_of(model)}
    if len(stores) != 1:
        found = ", ".join(str(store.path) for store in stores) or "none"
        raise ValueError(f"the model's collections must be over one store, found {found}")
    return stores.pop()


def checked_store_of(model: nn.Module, optimizer: object) -> EmbeddingStore:
    """The store of a model that is saved or loaded on all ranks, with this optimizer.

    Raises:
        ValueError: the model's collections are over no store of `open_store`.
        TypeError: `optimizer` is none.
    """
    check_optimizer(optimizer)
    store = store_of(model)
    membership_of(store)
    return store


def tables_of(model: nn.Module) -> set[str]:
    """The names of the tables of a model's collections."""
    return {table.name for collection in collections_of(model) for table in collection.tables()}
