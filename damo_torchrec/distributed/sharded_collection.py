"""What the sharded collections have in common: this rank's tables, and the collection that they came from."""

from typing import Any

from torchrec.distributed.embedding_types import ShardedEmbeddingModule
from torchrec.optim.fused import FusedOptimizerModule

from damo_torchrec.modules.collection import Collection
from damo_torchrec.modules.fused_optimizer import FusedTableOptimizer
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.store.table import Table


class ShardedCollection(ShardedEmbeddingModule[Any, Any, Any, Any], FusedOptimizerModule):
    """A collection whose rows are spread over the ranks: this rank's store holds those of `rank_of`."""

    _collection: Collection

    @property
    def collection(self) -> Collection:
        """Over this rank's rows: no submodule."""
        return self._collection

    @property
    def store(self) -> EmbeddingStore:
        """This rank's."""
        return self.collection.store

    def tables(self) -> list[Table]:
        """With this rank's rows, in the order of the configs."""
        return self.collection.tables()

    @property
    def fused_optimizer(self) -> FusedTableOptimizer:
        """The optimizer whose parameter groups, one per table, hold the learning rates: the same on all ranks."""
        return self.collection.fused_optimizer
