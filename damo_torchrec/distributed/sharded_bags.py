"""`ShardedEmbeddingBagCollection`: ids to the ranks that have their rows, partial sums of bags back."""

from collections.abc import Sequence

import torch
from torch import distributed
from torchrec.distributed.types import LazyAwaitable
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from damo_torchrec.distributed.exchange import Splits, exchange
from damo_torchrec.distributed.sharded_collection import Asked, Exchanged, Later, Received, ShardedCollection
from damo_torchrec.modules import jagged_input
from damo_torchrec.modules.autograd import Batch
from damo_torchrec.modules.embedding_bag_collection import EmbeddingBagCollection
from damo_torchrec.modules.output_parts import parts_of_output


class ShardedEmbeddingBagCollection(ShardedCollection[EmbeddingBagCollection]):
    """An `EmbeddingBagCollection` whose rows are spread over the ranks. `EmbeddingBagCollectionSharder` makes it.

    Each rank pools what it has of every bag, and the parts are added in the order of the ranks, so that the result of a
    batch does not depend on when they arrive.
    """

    def __init__(
        self, collection: EmbeddingBagCollection, group: distributed.ProcessGroup, device: torch.device
    ) -> None:
        super().__init__(collection, group, device, keys=collection.lookup_plan.features)

    def _asked(self, ctx: Exchanged) -> KeyedJaggedTensor:
        assert ctx.features is not None
        features, plan = ctx.features, self._plan
        plan.positions(features.keys())
        batch = jagged_input.bags(jagged_input.parts_of(features), self._accepted())
        if batch.bags is not None:
            bags = dict(zip(batch.keys, batch.bags.tolist(), strict=True))
            jagged_input.inverse_indices(features, plan.features, [bags[name] for name in plan.features])
        ctx.asked = asked = _in_order(batch, self._keys)
        return KeyedJaggedTensor(
            keys=self._keys,
            values=self._mix(asked.ids),
            lengths=asked.lengths.to(self._device, torch.int32),
            stride=None if batch.bags is not None else batch.size,
            stride_per_key_per_rank=[[n] for n in asked.bags] if batch.bags is not None else None,
        )

    def _received(self, ctx: Exchanged, mixed: KeyedJaggedTensor) -> Received:
        ids, lengths = self._unmix(mixed.values()), mixed.lengths().cpu().to(torch.int64)
        if not mixed.variable_stride_per_key():
            batch = Batch(tuple(self._keys), ids, lengths, None, mixed.stride(), divisor=self._divisor)
            of_ranks = [mixed.stride()] if self._ranks == 1 else ctx.sharding_contexts[0].batch_size_per_rank
            bags = torch.tensor(of_ranks, dtype=torch.int64, device="cpu").expand(len(self._keys), -1)
            return Received(self._sums, batch, bags, lengths)
        bags = torch.tensor(mixed.stride_per_key_per_rank(), dtype=torch.int64, device="cpu")
        batch = Batch(self._keys_by_source, ids, lengths, None, 0, bags.reshape(-1), divisor=self._divisor)
        return Received(self._by_source, batch, bags, lengths)

    def output_dist(self, ctx: Exchanged, output: list[torch.Tensor]) -> LazyAwaitable[KeyedTensor]:
        """Begins to send each rank its bags."""
        assert ctx.received is not None
        assert ctx.asked is not None
        if ctx.received.batch.bags is None:
            to_ranks, own = ctx.received.bags[0].tolist(), ctx.asked.bags[0]
        else:
            sizes = ctx.received.sizes()
            n = len(self._plan.outputs)
            to_ranks = [sum(sizes[i : i + n]) for i in range(0, len(sizes), n)]
            own = sum(bags * dim for bags, dim in self._shapes(ctx.asked))
        arriving = exchange(output[0], Splits(to_ranks, [own] * self._ranks), self._group)
        return Later(lambda: self._pooled(ctx, _sum(torch.split(arriving.wait(), [own] * self._ranks))))

    def _pooled(self, ctx: Exchanged, sums: torch.Tensor) -> KeyedTensor:
        """The bags of this rank, of the sums of all ranks."""
        assert ctx.features is not None
        assert ctx.asked is not None
        factors = self._factors(ctx.asked)
        if not ctx.features.variable_stride_per_key():
            if factors:
                ones = torch.ones(len(sums), device=sums.device)
                columns = torch.stack([factors.get(i, ones) for i in range(len(self._plan.dims))], dim=1)
                sums = sums * torch.repeat_interleave(columns, torch.tensor(self._plan.dims, device=sums.device), dim=1)
            values = sums
        else:
            outputs = parts_of_output(sums, self._shapes(ctx.asked))
            scaled = [part * factors[i].unsqueeze(1) if i in factors else part for i, part in enumerate(outputs)]
            values = jagged_input.expand(ctx.features, self._plan.features, scaled)
        return KeyedTensor(keys=self._plan.names, length_per_key=self._plan.dims, values=values)

    def _shapes(self, asked: Asked) -> list[tuple[int, int]]:
        """By output, (bags, dim)."""
        bags = dict(zip(self._keys, asked.bags, strict=True))
        return [(bags[name], dim) for name, dim in zip(self._plan.features, self._plan.dims, strict=True)]

    def _factors(self, asked: Asked) -> dict[int, torch.Tensor]:
        """What makes means of sums: by output that is one, float32 ``(bags,)``."""
        means = {output.feature for output in self._plan.outputs if output.mean}
        if not means:
            return {}
        lengths = torch.split(asked.lengths, asked.bags)
        sizes = [int(of_key.sum()) for of_key in lengths]
        weights = torch.split(asked.weights, sizes) if asked.weights is not None else [None] * len(sizes)
        of_keys = {
            key: _factors_of(of_key, its_weights).to(self._device)
            for key, of_key, its_weights in zip(self._keys, lengths, weights, strict=True)
            if key in means
        }
        return {i: of_keys[output.feature] for i, output in enumerate(self._plan.outputs) if output.mean}

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The tables' configs."""
        return self._collection.embedding_bag_configs()

    def is_weighted(self) -> bool:
        """Whether inputs carry a weight for each id."""
        return self._plan.weighted


def _sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """In this order, on every machine."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _factors_of(lengths: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """One over the ids of each bag, or the sum of their weights; 0 where that is 0."""
    if weights is None:
        total = lengths.to(torch.float32)
    else:
        bag = torch.repeat_interleave(torch.arange(len(lengths), device="cpu"), lengths)
        total = torch.zeros(len(lengths), device="cpu").index_add(0, bag, weights)
    nothing = total == 0
    return torch.where(nothing, 0, 1 / torch.where(nothing, 1, total))


def _in_order(batch: Batch, keys: Sequence[str]) -> Asked:
    """A batch's bags by key, in the order of `keys`."""
    bags = batch.bags.tolist() if batch.bags is not None else [batch.size] * len(batch.keys)
    total = int(batch.lengths.sum())
    if total != len(batch.ids) or bool((batch.lengths < 0).any()):
        raise ValueError(
            f"lengths must not be negative, and sum to the number of values, {len(batch.ids)}, got {total}"
        )
    if list(batch.keys) == list(keys):
        return Asked(batch.ids, batch.lengths, bags, batch.weights)
    where = [batch.keys.index(key) for key in keys]
    lengths = torch.split(batch.lengths, bags)
    per_key = [int(of_key.sum()) for of_key in lengths]
    ids = torch.split(batch.ids, per_key)
    weights = torch.split(batch.weights, per_key) if batch.weights is not None else None
    return Asked(
        ids=torch.cat([ids[i] for i in where]),
        lengths=torch.cat([lengths[i] for i in where]),
        bags=[bags[i] for i in where],
        weights=torch.cat([weights[i] for i in where]) if weights is not None else None,
    )
