"""What the sharded collections have in common: this rank's rows, and the ways of ids to them and of rows back."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch
from torch import distributed, nn
from torchrec.distributed.comm_ops import get_gradient_division
from torchrec.distributed.embedding_sharding import KJTListSplitsAwaitable
from torchrec.distributed.embedding_types import KJTList, ShardedEmbeddingModule
from torchrec.distributed.sharding.rw_sharding import RwSparseFeaturesDist
from torchrec.distributed.sharding.sequence_sharding import SequenceShardingContext
from torchrec.distributed.types import Awaitable, LazyAwaitable, LazyGetItemMixin
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Multistreamable

from damo_torchrec import _core
from damo_torchrec.distributed.agreement import RanksAgreement
from damo_torchrec.distributed.exchange import Splits, exchange
from damo_torchrec.distributed.means import mean_of_ranks
from damo_torchrec.distributed.mixing import mix, unmix
from damo_torchrec.distributed.shared_lives import SharedLives
from damo_torchrec.errors import DamoError
from damo_torchrec.lookup_plan import LookupKind, LookupPlan, engine_features
from damo_torchrec.modules.autograd import Batch, Call, lookup, make_lookup
from damo_torchrec.modules.collection import Collection
from damo_torchrec.modules.fused_optimizer import FusedTableOptimizer
from damo_torchrec.modules.jagged_input import Accepted, as_keyed_jagged
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.store.table import Table

if TYPE_CHECKING:
    from typing_extensions import Self


Kind = TypeVar("Kind", bound=Collection)


@dataclass
class Asked:
    """What this rank has asked of the others, by key of the exchange.

    Args:
        ids: int64 ``(n,)``, by key, then bag.
        lengths: int64, one for each bag.
        bags: by key.
        weights: float32 ``(n,)``, or None. They may need a gradient.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    bags: list[int]
    weights: torch.Tensor | None = None


@dataclass
class Exchanged(Multistreamable):
    """What is known of one batch on its way; the name of `sharding_contexts` is TorchRec's.

    Args:
        sharding_contexts: one, which TorchRec's input distribution fills.
        features: what the module was given.
        asked: what this rank has asked for.
        received: what it was asked for, once that is known.
    """

    sharding_contexts: list[SequenceShardingContext] = field(default_factory=list)
    features: KeyedJaggedTensor | None = None
    asked: Asked | None = None
    received: Received | None = None

    def record_stream(self, stream: torch.Stream) -> None:
        """For inputs on a GPU."""
        for context in self.sharding_contexts:
            context.record_stream(stream)


@dataclass(frozen=True)
class Received:
    """What all ranks have asked of this one, as the engine looks it up.

    Args:
        plan: what is looked up, for `batch`; where sources differ in their number of bags, for each source.
        batch: on the CPU.
        bags: int64 ``(keys, ranks)``: of each key, how many each rank has.
        lengths: int64, one for each bag.
    """

    plan: LookupPlan
    batch: Batch
    bags: torch.Tensor
    lengths: torch.Tensor

    def sizes(self) -> list[int]:
        """By output, its floats, where it is looked up for each source."""
        assert self.batch.bags is not None
        bags = dict(zip(self.batch.keys, self.batch.bags.tolist(), strict=True))
        return [bags[name] * dim for name, dim in zip(self.plan.features, self.plan.dims, strict=True)]

    def by_source(self) -> torch.Tensor:
        """Places of ids, which stand by key, then source, in the order of sources, then keys: int64 ``(n,)``."""
        ends = torch.cumsum(self.bags.reshape(-1), 0)
        offsets = torch.nn.functional.pad(torch.cumsum(self.lengths, 0), (1, 0))
        first = offsets[torch.nn.functional.pad(ends, (1, 0))]
        counts = first.diff().view(self.bags.shape).T.reshape(-1)
        begin = first[:-1].view(self.bags.shape).T.reshape(-1)
        shift = begin - torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0))[:-1]
        return torch.repeat_interleave(shift, counts) + torch.arange(int(counts.sum()))


class Later(LazyGetItemMixin[str, Any], LazyAwaitable[Any]):
    """An output that is put together once it is used.

    Args:
        finish: waits for it.
    """

    def __init__(self, finish: Callable[[], Any]) -> None:
        super().__init__()
        self._finish = finish

    def _wait_impl(self) -> Any:
        return self._finish()


class ShardedCollection(ShardedEmbeddingModule[Any, Any, Any, Any], FusedOptimizerModule, Generic[Kind]):
    """A collection whose rows are spread over the ranks: this rank's store holds those of `rank_of`.

    Args:
        collection: over this rank's store. It is no submodule; its state is this module's.
        group: of the ranks.
        device: where inputs and outputs are.
        keys: by output, what its feature is called in the exchange.
    """

    _collection: Kind

    def __init__(
        self, collection: Kind, group: distributed.ProcessGroup, device: torch.device, keys: list[str]
    ) -> None:
        super().__init__()
        self.__dict__["_collection"] = collection
        self._group, self._ranks, self._device = group, group.size(), device
        self._keys = list(dict.fromkeys(keys))
        self._divisor = self._ranks if get_gradient_division() else 1
        # Where ids went to has to be known for what comes back by id.
        places = collection.lookup_plan.kind is LookupKind.SEQUENCES or collection.lookup_plan.weighted
        # The owner of an id is its mix, as an unsigned number, modulo the number of ranks: what a block size of 0 says.
        self._input_dists = [
            RwSparseFeaturesDist(
                group,
                len(self._keys),
                [0] * len(self._keys),
                device=device,
                is_sequence=places,
                keep_original_indices=True,
            )
        ]
        # Sums: means are made of them where the bags are.
        self._plan = plan = collection.lookup_plan
        sums = (replace(output, feature=key, mean=False) for output, key in zip(plan.outputs, keys, strict=True))
        self._sums = replace(plan, outputs=tuple(sums))
        self._by_source = _for_each_source(self._sums, self._ranks)
        self._keys_by_source = tuple(_of_source(key, rank) for key in self._keys for rank in range(self._ranks))
        self._of_engine: dict[tuple[bool, bool, int], list[_core.Feature]] = {}
        if self._ranks > 1:
            session = collection.store.session
            if not isinstance(session.agreement, RanksAgreement):
                session.agreement = RanksAgreement(group, device, SharedLives(session))
            session.agreement.lives.add([table.opened for table in collection.tables()])

    # ------------------------------------------------------------------ what it is made of

    @property
    def collection(self) -> Kind:
        """Over this rank's rows: no submodule."""
        return self._collection

    @property
    def store(self) -> EmbeddingStore:
        """This rank's."""
        return self._collection.store

    def tables(self) -> list[Table]:
        """With this rank's rows, in the order of the configs."""
        return self._collection.tables()

    @property
    def fused_optimizer(self) -> FusedTableOptimizer:
        """The optimizer whose parameter groups, one per table, hold the learning rates: the same on all ranks."""
        return self._collection.fused_optimizer

    @property
    def unsharded_module_type(self) -> type[nn.Module]:
        """The collection's class."""
        return type(self._collection)

    # ------------------------------------------------------------------ TorchRec's steps of a forward

    def create_context(self) -> Exchanged:
        """For one batch."""
        return Exchanged()

    def input_dist(self, ctx: Exchanged, features: Any) -> Awaitable[Awaitable[KJTList]]:
        """Begins to send ids to the ranks that have their rows.

        Raises:
            KeyError, TypeError, ValueError: as the forward of the collection.
        """
        ctx.features = as_keyed_jagged(features)
        if len(set(keys := ctx.features.keys())) < len(keys):
            raise ValueError(f"keys must be unique, got {keys}")
        with torch.no_grad():
            sent = self._asked(ctx)
            context = SequenceShardingContext()
            to_ranks = cast("RwSparseFeaturesDist", self._input_dists[0])
            awaitable = to_ranks(sent)
            context.unbucketize_permute_tensor = to_ranks.unbucketize_permute_tensor
            ctx.sharding_contexts.append(context)
        return KJTListSplitsAwaitable([awaitable], ctx)

    @abc.abstractmethod
    def _asked(self, ctx: Exchanged) -> KeyedJaggedTensor:
        """Checks the features and notes what they ask; returns the mixed ids by key of the exchange."""

    @abc.abstractmethod
    def _received(self, ctx: Exchanged, mixed: KeyedJaggedTensor) -> Received:
        """What this rank was asked for."""

    def _known(self, ctx: Exchanged, dist_input: KJTList) -> Received:
        if ctx.received is None:
            ctx.received = self._received(ctx, dist_input[0])
        return ctx.received

    def compute(self, ctx: Exchanged, dist_input: KJTList) -> list[torch.Tensor]:
        """Looks up what all ranks have asked of this one."""
        received = self._known(ctx, dist_input)
        batch, training = received.batch, self._collection.trains
        assert ctx.asked is not None
        if ctx.asked.weights is not None:
            batch = replace(batch, weights=self._weights(ctx, received, ctx.asked.weights))
        sizes = received.sizes() if batch.bags is not None else None
        session = self.store.session
        means = self._means(training)
        partly = not all(received.plan.trained)
        trained = {output.table for output in received.plan.outputs if output.trainable}
        call = Call(
            session=session,
            tables=[table.opened for table in self.tables() if table.name in trained],
            optimizer=self.fused_optimizer,
            features=self._features(received, training, means),
            shape=(batch.size, received.plan.width) if sizes is None else (sum(sizes),),
            update=training,
            trained=received.plan.trained if partly else None,
            sizes=sizes,
            pinned=self._device.type == "cuda",
        )
        return [lookup(call, batch).to(self._device, non_blocking=True)]

    def prefetch(
        self, dist_input: KJTList, forward_stream: torch.Stream | None = None, ctx: Exchanged | None = None
    ) -> None:
        """Begins to read the rows of a later batch, whose ids have arrived, and returns. Changes no result."""
        received = self._known(self.create_context() if ctx is None else ctx, dist_input)
        features = self._features(received, self._collection.trains)
        self.store.session.engine.prefetch(make_lookup(received.batch, features))

    def _features(
        self, received: Received, training: bool, means: Mapping[str, list[float]] = MappingProxyType({})
    ) -> list[_core.Feature]:
        key = (received.plan is self._sums, training, self.store.session.generation)
        if key in self._of_engine and not means:
            return self._of_engine[key]
        indices = {table.name: table.opened.index for table in self.tables()}
        features = engine_features(received.plan, received.batch.keys, indices, training, means)
        if not means:
            self._of_engine = {key: features}
        return features

    def _means(self, training: bool) -> dict[str, list[float]]:
        """By table, the mean of all ranks' rows, where ids without a row read that. All ranks come here together."""
        if self._ranks == 1:
            return {}
        read = self._plan.read_means(training)
        return {
            table.name: mean_of_ranks(table, self._group, self._device) for table in self.tables() if table.name in read
        }

    def _mix(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids as they are sent: among themselves, ranks spread them evenly."""
        return (mix(ids) if self._ranks > 1 else ids).to(self._device)

    def _unmix(self, sent: torch.Tensor) -> torch.Tensor:
        return (unmix(sent) if self._ranks > 1 else sent).cpu()

    def _weights(self, ctx: Exchanged, received: Received, weights: torch.Tensor) -> torch.Tensor:
        """The weights of the ids that this rank was asked for: float32 ``(n,)``, with a gradient."""
        context = ctx.sharding_contexts[0]
        sent_from = context.unbucketize_permute_tensor
        assert sent_from is not None
        places = torch.empty_like(sent_from)
        places[sent_from.long()] = torch.arange(len(places), dtype=places.dtype, device=places.device)
        by_source = received.by_source()
        splits = self._splits_of_ids(ctx, received)
        arrived = exchange(weights.to(self._device)[places.long()], splits, self._group).wait().cpu()
        back = torch.empty_like(by_source)
        back[by_source] = torch.arange(len(back))
        return arrived[back]

    def _splits_of_ids(self, ctx: Exchanged, received: Received) -> Splits:
        """How many ids this rank was asked for by each rank, and how many it has asked each for."""
        if self._ranks == 1:
            n = int(received.lengths.sum())
            return Splits([n], [n])
        context = ctx.sharding_contexts[0]
        if not context.output_splits:
            raise DamoError(
                "the ids that arrived were sent before this forward's: TrainPipelineSparseDist.attach() sends those of "
                "a batch that is under way once more, and takes what came of the first time. detach() it where its "
                "batches have ended, or take damo_torchrec.distributed.PrefetchTrainPipeline"
            )
        return Splits(to_ranks=context.input_splits, from_ranks=context.output_splits)

    def _accepted(self) -> Accepted:
        return Accepted(self._device, self.store.session.memory_budget, self._plan.weighted)

    # ------------------------------------------------------------------ as a module

    def train(self, mode: bool = True) -> Self:
        """Whether rows are made, and updated."""
        self._collection.train(mode)
        return cast("Self", super().train(mode))

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Whether gradients update rows; also of a module around this one."""
        self._collection.requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """As of every module: the collection has to see who asks, which it does as of a submodule."""
        for _ in self._collection.named_modules():
            pass
        return cast("Iterator[tuple[str, nn.Module]]", super().named_modules(memo, prefix, remove_duplicate))

    def get_extra_state(self) -> torch.Tensor:
        """As the collection's."""
        return self._collection.get_extra_state()

    def set_extra_state(self, extra: Any) -> None:
        """As the collection's."""
        self._collection.set_extra_state(extra)

    def extra_repr(self) -> str:
        """The collection and this rank, for ``print(model)``."""
        return f"{self._collection.extra_repr()}, rank={self._group.rank()} of {self._ranks}"


def _for_each_source(plan: LookupPlan, ranks: int) -> LookupPlan:
    """The plan once for each rank that asks, with features of its own: outputs by source, then as in the plan."""
    return replace(
        plan,
        outputs=tuple(
            replace(output, feature=_of_source(output.feature, rank))
            for rank in range(ranks)
            for output in plan.outputs
        ),
    )


def _of_source(feature: str, rank: int) -> str:
    """A name for what one rank asks of a feature."""
    return f"{feature} of rank {rank}"
