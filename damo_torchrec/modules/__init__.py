"""TorchRec's embedding modules over a store."""

from damo_torchrec.modules.embedding_bag_collection import EmbeddingBagCollection

__all__ = ["EmbeddingBagCollection"]
