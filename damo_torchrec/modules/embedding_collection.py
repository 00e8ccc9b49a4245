"""`EmbeddingCollection`: TorchRec's embeddings of sequences, with rows in a store."""

from collections.abc import Mapping
from typing import Any

import torch
import torchrec
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollectionInterface
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from damo_torchrec.lookup_plan import LookupKind, LookupPlan
from damo_torchrec.modules import jagged_input, operators, tracing
from damo_torchrec.modules.autograd import Batch
from damo_torchrec.modules.collection import Collection
from damo_torchrec.options import TableOptions
from damo_torchrec.store.embedding_store import EmbeddingStore


class EmbeddingCollection(Collection, EmbeddingCollectionInterface):
    """A collection of embedding tables that are not pooled: a row for each id, in an `EmbeddingStore`.

    Takes the place of TorchRec's `EmbeddingCollection` and `FusedEmbeddingCollection`. What `EmbeddingBagCollection`
    says of ids and updates holds here, too.

    ::

        #             i = 0    i = 1   i = 2   <- samples
        # "clicks"    [1, 2]   []      [2]
        ec(KeyedJaggedTensor(keys=["clicks"], values=[1, 2, 2], lengths=[2, 0, 1]))["clicks"]

        # values  w[1], w[2], w[2]   (3, dim)
        # lengths 2, 0, 1

    Args:
        tables: TorchRec's configs, all with one ``embedding_dim``. ``num_embeddings`` is no limit, as in
            `EmbeddingBagCollection`.
        optimizer_type: an optimizer class of torch.optim, torchrec.optim or damo.optim.
        optimizer_kwargs: its hyperparameters.
        device: as in `EmbeddingBagCollection`.
        need_indices: whether the outputs' weights are the ids.
        use_gather_select: kept for TorchRec's sharding; without effect here.
        use_gather_select_per_sharding: kept for TorchRec's sharding; without effect here.
        store: where the rows are; None for `default_store()`.
        table_options: by table name.

    Raises:
        ValueError: tables differ in their dim, and what `EmbeddingBagCollection` raises.
        SchemaMismatchError: the store has a table of this name with another dim, optimizer or initializer.
    """

    def __init__(
        self,
        tables: list[EmbeddingConfig],
        optimizer_type: type[torch.optim.Optimizer] = torchrec.optim.RowWiseAdagrad,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        need_indices: bool = False,
        use_gather_select: bool = False,
        use_gather_select_per_sharding: dict[str, bool] | None = None,
        *,
        store: EmbeddingStore | None = None,
        table_options: Mapping[str, TableOptions] | None = None,
    ) -> None:
        super().__init__()
        outputs = self._define(tables, "embeddings", (optimizer_type, optimizer_kwargs), device, table_options)
        dims = {config.embedding_dim for config in tables}
        if len(dims) > 1:
            raise ValueError(f"all tables of an EmbeddingCollection must have one embedding_dim, got {sorted(dims)}")
        self._embedding_dim = dims.pop()
        self._need_indices = need_indices
        self._use_gather_select = use_gather_select
        self._use_gather_select_per_sharding = use_gather_select_per_sharding
        self._use_sorted_select = False
        self._plan = LookupPlan(LookupKind.SEQUENCES, outputs)
        self.attach_store(store)
        self._number = operators.register(self)

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Looks up.

        Args:
            features: F features of B lists of int64 or int32 ids. Keys may come in any order; those that no table uses
                are passed over. Weights are, too.

        Returns:
            dict: by feature, in the tables' order: values float32 ``(n, dim)``, with the feature's lengths, and its ids
            as weights with ``need_indices``. A feature of several tables is named ``feature@table`` in each.

        Raises:
            KeyError: a feature is missing.
            TypeError: the values are not integers.
            ValueError: lengths do not fit the values, or the batch needs more memory than the budget allows.
        """
        features = jagged_input.as_keyed_jagged(features)
        if tracing.is_fx_proxy(features):
            return self._traced_forward(features)
        shapes_only = self._has_shapes_only(features.values())
        if not shapes_only:
            batch = self._batch(features)
            outputs = self._outputs(self._lookup(batch, self.trains), batch)
        ids, lengths = jagged_input.by_key(features)
        if shapes_only:
            outputs = [torch.empty(len(ids[name]), self._embedding_dim, device="meta") for name in self._plan.features]
        return {
            name: JaggedTensor(
                values=values,
                lengths=lengths[feature],
                weights=ids[feature] if self._need_indices else None,
            )
            for name, feature, values in zip(self._plan.names, self._plan.features, outputs, strict=True)
        }

    def _traced_forward(self, features: Any) -> dict[str, JaggedTensor]:
        """What torch.fx sees of `forward`: nothing that depends on the proxy's values."""
        parts = jagged_input.sequence_parts_in_graph(features)
        outputs = operators.embedding_collection(*parts, self._number, self.trains)
        jagged = features.to_dict()
        return {
            name: JaggedTensor(
                values=outputs[number],
                lengths=jagged[feature].lengths(),
                weights=jagged[feature].values() if self._need_indices else None,
            )
            for number, (name, feature) in enumerate(zip(self._plan.names, self._plan.features, strict=True))
        }

    def graph_sequences(
        self, ids: torch.Tensor, ids_per_key: list[int], keys: list[str], training: bool
    ) -> list[torch.Tensor]:
        """What operators.py's operator computes."""
        batch = jagged_input.sequences(ids, ids_per_key, keys, self._accepted())
        return self._outputs(self._lookup(batch, training), batch)

    def _batch(self, features: KeyedJaggedTensor) -> Batch:
        sizes = jagged_input.ids_per_key(features)
        return jagged_input.sequences(features.values(), sizes, features.keys(), self._accepted())

    def embedding_configs(self) -> list[EmbeddingConfig]:
        """The tables' configs."""
        return self._configs

    def embedding_dim(self) -> int:
        """Of all tables."""
        return self._embedding_dim

    def embedding_names_by_table(self) -> list[list[str]]:
        """The outputs' names, by table."""
        by_table: dict[str, list[str]] = {config.name: [] for config in self._configs}
        for output, name in zip(self._plan.outputs, self._plan.names, strict=True):
            by_table[output.table].append(name)
        return list(by_table.values())

    def need_indices(self) -> bool:
        """Whether the outputs' weights are the ids."""
        return self._need_indices

    def use_gather_select(self) -> bool:
        """What was given."""
        return self._use_gather_select

    def use_gather_select_per_sharding(self) -> dict[str, bool] | None:
        """What was given."""
        return self._use_gather_select_per_sharding

    def use_sorted_select(self) -> bool:
        """What `set_use_sorted_select` was given. TorchRec's sharding asks from its version 1.9 on."""
        return self._use_sorted_select

    def set_use_sorted_select(self, use_sorted_select: bool) -> None:
        """Kept for TorchRec's sharding; without effect here."""
        self._use_sorted_select = use_sorted_select
