"""TorchRec's embedding modules over a store."""

from damo_torchrec.modules.collection import Collection, store_of, tables_of
from damo_torchrec.modules.damo_start import damo_embedding_init, number_groups
from damo_torchrec.modules.embedding import Embedding
from damo_torchrec.modules.embedding_bag_collection import EmbeddingBagCollection
from damo_torchrec.modules.embedding_collection import EmbeddingCollection

__all__ = [
    "Collection",
    "Embedding",
    "EmbeddingBagCollection",
    "EmbeddingCollection",
    "damo_embedding_init",
    "number_groups",
    "store_of",
    "tables_of",
]
