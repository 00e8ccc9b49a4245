"""Tables whose rows are spread over the ranks of a process group, under TorchRec's `DistributedModelParallel`.

docs/distributed.md tells how to run a model on several processes and machines.
"""

from typing import TYPE_CHECKING

from damo_torchrec import lazy
from damo_torchrec.distributed.checkpoint_manager import CheckpointManager
from damo_torchrec.distributed.gathering import gather
from damo_torchrec.distributed.loading import load_model
from damo_torchrec.distributed.mixing import rank_of
from damo_torchrec.distributed.pipelines import PrefetchTrainPipeline
from damo_torchrec.distributed.rank_stores import open_store
from damo_torchrec.distributed.saving import save_model, save_model_async
from damo_torchrec.distributed.sharded_bags import ShardedEmbeddingBagCollection
from damo_torchrec.distributed.sharded_sequences import ShardedEmbeddingCollection
from damo_torchrec.distributed.sharders import EmbeddingBagCollectionSharder, EmbeddingCollectionSharder, sharders

if TYPE_CHECKING:
    from damo_torchrec.distributed.publishing import DeltaPublisher as DeltaPublisher

__all__ = [
    "CheckpointManager",
    "DeltaPublisher",
    "EmbeddingBagCollectionSharder",
    "EmbeddingCollectionSharder",
    "PrefetchTrainPipeline",
    "ShardedEmbeddingBagCollection",
    "ShardedEmbeddingCollection",
    "gather",
    "load_model",
    "open_store",
    "rank_of",
    "save_model",
    "save_model_async",
    "sharders",
]
_get, __dir__ = lazy.attributes(__name__, {"DeltaPublisher": "publishing"})  # which needs packages that others do not

if not TYPE_CHECKING:  # else a misspelt name would be of any type
    __getattr__ = _get
