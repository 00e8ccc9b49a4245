"""TorchRec's embedding modules over a store."""

from damo_torchrec.modules.collection import Collection, store_of, tables_of
from damo_torchrec.modules.damo_numbering import SavedGroups, groups_numbered
from damo_torchrec.modules.damo_start import damo_embedding_init
from damo_torchrec.modules.embedding import Embedding
from damo_torchrec.modules.embedding_bag_collection import EmbeddingBagCollection
from damo_torchrec.modules.embedding_collection import EmbeddingCollection

__all__ = [
    "Collection",
    "Embedding",
    "EmbeddingBagCollection",
    "EmbeddingCollection",
    "SavedGroups",
    "damo_embedding_init",
    "groups_numbered",
    "store_of",
    "tables_of",
]
