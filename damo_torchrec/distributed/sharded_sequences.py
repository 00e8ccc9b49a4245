"""`ShardedEmbeddingCollection`: ids to the ranks that have their rows, each once, and the rows back."""

from dataclasses import replace

import torch
from torch import distributed
from torch.nn.functional import embedding
from torchrec.distributed.types import LazyAwaitable
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from damo_torchrec.distributed.exchange import Splits, exchange
from damo_torchrec.distributed.sharded_collection import Asked, Exchanged, Later, Received, ShardedCollection
from damo_torchrec.modules import jagged_input
from damo_torchrec.modules.autograd import Batch
from damo_torchrec.modules.embedding_collection import EmbeddingCollection
from damo_torchrec.modules.output_parts import parts_of_output


class ShardedEmbeddingCollection(ShardedCollection[EmbeddingCollection]):
    """An `EmbeddingCollection` whose rows are spread over the ranks. `EmbeddingCollectionSharder` makes it.

    Each rank asks for an id of a feature once, however often the batch has it, and says how often where tables count
    that (`Admit`). A feature of several tables is asked for in each of them.
    """

    def __init__(self, collection: EmbeddingCollection, group: distributed.ProcessGroup, device: torch.device) -> None:
        super().__init__(collection, group, device, keys=collection.lookup_plan.names)

    def _asked(self, ctx: Exchanged) -> KeyedJaggedTensor:
        assert ctx.features is not None
        features = ctx.features
        positions = self._plan.positions(features.keys())
        sizes = jagged_input.ids_per_key(features)
        batch = jagged_input.sequences(features.values(), sizes, features.keys(), self._accepted())
        ids = torch.split(batch.ids, sizes)
        distinct, place, occurrences, before = [], [], [], 0
        for position in positions:
            found, its_place, counts = torch.unique(ids[position], return_inverse=True, return_counts=True)
            distinct.append(found)
            occurrences.append(counts)
            place.append(its_place + before)
            before += len(found)
        lengths = torch.tensor([len(found) for found in distinct], dtype=torch.int64, device="cpu")
        ctx.asked = Asked(torch.cat(place), lengths, bags=[len(found) for found in place])
        return KeyedJaggedTensor(
            keys=self._keys,
            values=self._mix(torch.cat(distinct)),
            weights=torch.cat(occurrences).to(self._device, torch.float32) if self._counts_occurrences() else None,
            lengths=lengths.to(self._device, torch.int32),
            stride=1,
        )

    def _counts_occurrences(self) -> bool:
        """Whether a table gives ids rows by how often they were seen."""
        lives = (table.opened.life for table in self.tables())
        return any(life is not None and life.admit.sightings > 1 for life in lives)

    def _received(self, ctx: Exchanged, mixed: KeyedJaggedTensor) -> Received:
        ids, lengths = self._unmix(mixed.values()), mixed.lengths().cpu().to(torch.int64)
        ones = torch.ones(len(ids), dtype=torch.int64, device="cpu")
        batch = Batch(self._keys_by_source, ids, ones, None, 0, lengths, divisor=self._divisor)
        if (occurrences := mixed.weights_or_none()) is not None:
            batch = _with_occurrences(batch, occurrences.cpu().to(torch.int64))
        return Received(self._by_source, batch, lengths.view(len(self._keys), -1), ones)

    def output_dist(self, ctx: Exchanged, output: list[torch.Tensor]) -> LazyAwaitable[dict[str, JaggedTensor]]:
        """Begins to send each rank its rows."""
        assert ctx.received is not None
        assert ctx.asked is not None
        ids = self._splits_of_ids(ctx, ctx.received)
        rows = output[0].view(-1, self._collection.embedding_dim())
        arriving = exchange(rows, Splits(to_ranks=ids.from_ranks, from_ranks=ids.to_ranks), self._group)
        return Later(lambda: self._outputs(ctx, arriving.wait()))

    def _outputs(self, ctx: Exchanged, rows: torch.Tensor) -> dict[str, JaggedTensor]:
        """What each feature gets, of the rows of its distinct ids as they came from the ranks."""
        assert ctx.features is not None
        assert ctx.asked is not None
        sent_from = ctx.sharding_contexts[0].unbucketize_permute_tensor
        assert sent_from is not None
        # Its backward adds up what the places of an id got, in their order.
        values = embedding(sent_from[ctx.asked.ids.to(sent_from.device)].long(), rows)
        outputs = parts_of_output(values.view(-1), [(n, rows.shape[1]) for n in ctx.asked.bags])
        ids, lengths = jagged_input.by_key(ctx.features)
        need_indices = self._collection.need_indices()
        return {
            name: JaggedTensor(
                values=of_output, lengths=lengths[feature], weights=ids[feature] if need_indices else None
            )
            for name, feature, of_output in zip(self._plan.names, self._plan.features, outputs, strict=True)
        }

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """The tables' configs."""
        return self._collection.embedding_configs()

    def need_indices(self) -> bool:
        """Whether the outputs' weights are the ids."""
        return self._collection.need_indices()


def _with_occurrences(batch: Batch, occurrences: torch.Tensor) -> Batch:
    """The same lookup of rows, in which each id occurs so often: its other occurrences weigh nothing."""
    ids = torch.repeat_interleave(batch.ids, occurrences)
    weights = torch.zeros(len(ids), dtype=torch.float32, device="cpu")
    weights[torch.cumsum(occurrences, 0) - occurrences] = 1
    return replace(batch, ids=ids, lengths=occurrences, weights=weights)
