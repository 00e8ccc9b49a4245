"""Tables whose rows are spread over the ranks of a process group, under TorchRec's `DistributedModelParallel`.

docs/distributed.md tells how to run a model on several processes and machines.
"""

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

__all__ = [
    "CheckpointManager",
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
