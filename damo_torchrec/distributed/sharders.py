"""What TorchRec's planner and `DistributedModelParallel` ask of our collections."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed, nn
from torchrec.distributed.embedding_types import BaseEmbeddingSharder, EmbeddingComputeKernel
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.distributed.types import ModuleSharder, ParameterSharding, ShardingEnv, ShardingType

from damo_torchrec.distributed.sharded_bags import ShardedEmbeddingBagCollection
from damo_torchrec.distributed.sharded_collection import ShardedCollection
from damo_torchrec.distributed.sharded_sequences import ShardedEmbeddingCollection
from damo_torchrec.distributed.spreading import check_can_be_spread
from damo_torchrec.modules.collection import Collection
from damo_torchrec.modules.embedding_bag_collection import EmbeddingBagCollection
from damo_torchrec.modules.embedding_collection import EmbeddingCollection


class _Sharder(BaseEmbeddingSharder[Any]):
    """Of one kind of collection."""

    _kind: type[Collection]
    _sharded: type[ShardedCollection[Any]]

    def __init__(self) -> None:
        super().__init__()

    @property
    def module_type(self) -> type[Any]:
        """Exactly this class."""
        return self._kind

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """By rows alone: each row is on one rank."""
        return [ShardingType.ROW_WISE.value]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """With the optimizer in the backward pass."""
        return [EmbeddingComputeKernel.FUSED.value]

    def shardable_parameters(self, module: Any) -> dict[str, nn.Parameter]:
        """By table, what stands for its rows in a plan: on the meta device, with a row for each rank.

        Rows are on disk: what they take of a machine's memory is the store's ``memory_budget``, which stays as it is
        however many there are. So they are nothing that a planner could find too large.
        """
        rows = distributed.get_world_size() if distributed.is_initialized() else 1
        return {
            definition.name: nn.Parameter(torch.empty(rows, definition.dim, device="meta"))
            for definition in module.table_definitions()
        }

    def shard(
        self,
        module: Any,
        params: Mapping[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedCollection[Any]:
        """The collection over all ranks of a process group, each of which calls this over a store of its own.

        Args:
            module: over this rank's store.
            params: the plan: each table by rows, over all ranks.
            env: has the process group.
            device: where inputs and outputs are; None for the CPU.
            module_fqn: for messages.

        Raises:
            ValueError: the plan is another, there is no process group, the tables' options cannot be kept over several
                ranks, or ranks differ in their tables or their store's seed.
        """
        device = device if device is not None else torch.device("cpu")
        if env.process_group is None:
            raise ValueError(f"{_what(module, module_fqn)} is spread over a process group, but there is none")
        if module.device.type == "meta":
            module.to(device)
        _check_plan(module, params, env.process_group, _what(module, module_fqn))
        check_can_be_spread(module, env.process_group, _what(module, module_fqn))
        return self._sharded(module, env.process_group, device)  # type: ignore[call-arg]  # of its own kind


class EmbeddingBagCollectionSharder(_Sharder):
    """Spreads `damo_torchrec.EmbeddingBagCollection` over the ranks."""

    _kind, _sharded = EmbeddingBagCollection, ShardedEmbeddingBagCollection


class EmbeddingCollectionSharder(_Sharder):
    """Spreads `damo_torchrec.EmbeddingCollection` over the ranks."""

    _kind, _sharded = EmbeddingCollection, ShardedEmbeddingCollection


def sharders() -> list[ModuleSharder[nn.Module]]:
    """For ``DistributedModelParallel(model, sharders=...)``: of our collections, and TorchRec's own of all others."""
    return [EmbeddingBagCollectionSharder(), EmbeddingCollectionSharder(), *get_default_sharders()]


def _what(module: Collection, path: str | None) -> str:
    return f"{type(module).__name__} {path!r}" if path else type(module).__name__


def _check_plan(
    module: Collection, params: Mapping[str, ParameterSharding], group: distributed.ProcessGroup, what: str
) -> None:
    """Raises ValueError if a plan is not: every table, by rows, over all ranks."""
    tables, ranks = {definition.name for definition in module.table_definitions()}, list(range(group.size()))
    if params.keys() != tables:
        raise ValueError(f"the plan of {what} must name its tables {sorted(tables)}, got {sorted(params)}")
    for table, sharding in params.items():
        if sharding.sharding_type != ShardingType.ROW_WISE.value:
            raise ValueError(
                f"the plan of {what}: table {table!r} must be sharded row_wise, got {sharding.sharding_type}: each "
                "of its rows is on one rank"
            )
        if sharding.ranks is not None and sorted(sharding.ranks) != ranks:
            raise ValueError(
                f"the plan of {what}: table {table!r} must be on all {len(ranks)} ranks, got {sharding.ranks}"
            )
