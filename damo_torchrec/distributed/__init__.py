"""Tables whose rows are spread over the ranks of a process group, under TorchRec's `DistributedModelParallel`.

docs/distributed.md tells how to run a model on several processes and machines.
"""

from damo_torchrec.distributed.mixing import rank_of
from damo_torchrec.distributed.pipelines import PrefetchTrainPipeline
from damo_torchrec.distributed.sharded_bags import ShardedEmbeddingBagCollection
from damo_torchrec.distributed.sharded_sequences import ShardedEmbeddingCollection
from damo_torchrec.distributed.sharders import EmbeddingBagCollectionSharder, EmbeddingCollectionSharder, sharders

__all__ = [
    "EmbeddingBagCollectionSharder",
    "EmbeddingCollectionSharder",
    "PrefetchTrainPipeline",
    "ShardedEmbeddingBagCollection",
    "ShardedEmbeddingCollection",
    "rank_of",
    "sharders",
]
