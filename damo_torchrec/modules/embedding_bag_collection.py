"""`EmbeddingBagCollection`: TorchRec's pooled embeddings, with rows in a store."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torchrec
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    get_embedding_names_by_table,
)
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from damo_torchrec import _core
from damo_torchrec.autograd import Call, make_lookup, pooled_lookup
from damo_torchrec.default_store import default_store
from damo_torchrec.fused_optimizer import FusedTableOptimizer
from damo_torchrec.init import from_config
from damo_torchrec.optim import optimizer_spec
from damo_torchrec.options import TableOptions
from damo_torchrec.store import EmbeddingStore
from damo_torchrec.table import Table, TableDefinition

_POOLING = {PoolingType.SUM: _core.Pooling.SUM, PoolingType.MEAN: _core.Pooling.MEAN}


class EmbeddingBagCollection(EmbeddingBagCollectionInterface):
    """A collection of pooled embedding tables whose rows live in an `EmbeddingStore`.

    Takes the place of TorchRec's `EmbeddingBagCollection` and `FusedEmbeddingBagCollection`. Ids are any int64; an
    unseen id reads its initial value in train mode and zeros in eval mode, and gets its row with its first update.
    Rows are updated inside ``backward()``: pass a dense optimizer the model's parameters, which rows are none of.

    ::

        #             i = 0     i = 1   i = 2   <- samples
        # "user"      [7]       []      [-3]
        # "clicks"    [1, 2]    [2]     []        keys
        ebc(KeyedJaggedTensor(keys=["user", "clicks"], values=[7, -3, 1, 2, 2], lengths=[1, 0, 1, 2, 1, 0]))

        #         "user" (dim 2)  "clicks" (dim 3)
        # i = 0   w[7]            w[1] + w[2]
        # i = 1   zeros           w[2]
        # i = 2   w[-3]           zeros

    Args:
        tables: TorchRec's configs. ``num_embeddings`` is no limit: it sets the default range of initial weights,
            ±1/√num_embeddings, so give the number of ids that you expect.
        optimizer_type: an optimizer class of torch.optim or torchrec.optim.
        optimizer_kwargs: its hyperparameters.
        is_weighted: whether inputs carry a weight for each id.
        device: of inputs and outputs; only the CPU for now.
        store: where the rows are; None for `default_store()`.
        table_options: by table name.

    Raises:
        ValueError: two tables with one name, a pooling other than SUM or MEAN, a data type other than FP32, an
            ``init_fn``, optimizer or hyperparameter without a counterpart here (named).
        SchemaMismatchError: the store has a table of this name with another dim, optimizer or initializer.
    """

    def __init__(
        self,
        tables: list[EmbeddingBagConfig],
        optimizer_type: type[torch.optim.Optimizer] = torchrec.optim.RowWiseAdagrad,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        is_weighted: bool = False,
        device: torch.device | str | None = None,
        *,
        store: EmbeddingStore | None = None,
        table_options: Mapping[str, TableOptions] | None = None,
    ) -> None:
        super().__init__()
        self._device = torch.device(device) if device is not None else torch.device("cpu")
        if self._device.type != "cpu":
            raise ValueError(f"device must be cpu, got {self._device}")
        spec = optimizer_spec(optimizer_type, optimizer_kwargs)
        options = _check_options(tables, table_options or {})
        # Copies: the caller's configs stay as they are.
        self._embedding_bag_configs = [copy.copy(config) for config in tables]
        for config in self._embedding_bag_configs:
            config.feature_names = list(config.feature_names) or [config.name]
        self._is_weighted = is_weighted
        self._optimizer_type = optimizer_type
        self._optimizer_kwargs = dict(optimizer_kwargs or {})
        definitions = [_define(c, options[c.name], spec) for c in self._embedding_bag_configs]
        self._store = _check_store(store) if store is not None else default_store()
        self._tables = self._store._open_tables(definitions)
        self._unseen_in_eval = [options[c.name].unseen_in_eval for c in self._embedding_bag_configs]
        self._optimizer = FusedTableOptimizer(
            {config.name: spec for config in self._embedding_bag_configs}, "embedding_bags"
        )
        self._embedding_names = [
            name for names in get_embedding_names_by_table(self._embedding_bag_configs) for name in names
        ]
        self._lengths_per_embedding = [
            config.embedding_dim for config in self._embedding_bag_configs for _ in config.feature_names
        ]
        self._features: dict[tuple[Any, ...], list[_core.Feature]] = {}

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Looks up and pools.

        Args:
            features: F features of B bags: int64 or int32 values, and float weights if the collection is weighted. Keys
                may come in any order; those that no table uses are passed over.

        Returns:
            KeyedTensor: float32 ``(B, ΣD)``, one key per table and feature, in the tables' order. A feature of several
            tables is named ``feature@table`` in each. Empty bags are zeros.

        Raises:
            KeyError: a feature is missing.
            TypeError: the values are not integers.
            ValueError: lengths are negative or do not fit the values, weights are missing or of another size, or the
                batch needs more memory than the budget allows.
        """
        call, ids, lengths = self._prepare(features)
        values = pooled_lookup(call, ids, lengths, self._weights(features, ids.numel()))
        return KeyedTensor(
            keys=self._embedding_names,
            length_per_key=self._lengths_per_embedding,
            values=values,
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def prefetch(self, features: KeyedJaggedTensor) -> None:
        """Begins to read the rows of a later batch, and returns.

        The forward of that batch finds them in memory. They take up to a quarter of the store's cache until then; what
        does not fit is left to the forward. Changes no result, and creates no row.

        Args:
            features: what `forward` will get.

        Raises:
            KeyError, TypeError, ValueError: as `forward`.
        """
        call, ids, lengths = self._prepare(features)
        self._store._engine.prefetch(make_lookup(call, ids, lengths, self._weights(features, ids.numel())))

    def _prepare(self, features: KeyedJaggedTensor) -> tuple[Call, torch.Tensor, torch.Tensor]:
        """The call for a batch, its ids and its lengths."""
        keys = features.keys()
        if features.variable_stride_per_key():
            raise ValueError("batches with a different size per feature are not supported")
        batch = features.stride()
        ids = _as_int64("values", features.values())
        lengths = _as_int64("lengths", features.lengths())
        if lengths.numel() != len(keys) * batch:
            raise ValueError(
                f"lengths must be one for each of {len(keys)} keys and {batch} samples, got {lengths.numel()}"
            )
        call = Call(
            store=self._store,
            collection=id(self),
            features=self._engine_features(tuple(keys)),
            keys=len(keys),
            batch=batch,
            columns=sum(self._lengths_per_embedding),
            update=self.training,
            set_optimizers=self._set_optimizers,
        )
        return call, ids, lengths

    def _weights(self, features: KeyedJaggedTensor, n: int) -> torch.Tensor | None:
        if not self._is_weighted:
            return None
        weights = features.weights_or_none()
        if weights is None:
            raise ValueError("the collection is weighted, but the KeyedJaggedTensor has no weights")
        if not weights.is_floating_point():
            raise TypeError(f"weights must be floating point, got {weights.dtype}")
        if tuple(weights.shape) != (n,):
            raise ValueError(f"weights must be one for each of {n} values, got {tuple(weights.shape)}")
        _check_cpu("weights", weights)
        return weights.to(torch.float32).contiguous()

    def _engine_features(self, keys: tuple[str, ...]) -> list[_core.Feature]:
        """Which key goes from which table to which columns, for the engine that is open now."""
        cache_key = (keys, self.training, self._store._generation)
        features = self._features.get(cache_key)
        if features is None:
            if len(self._features) > 16:  # keys that change from batch to batch
                self._features.clear()
            features = self._features[cache_key] = self._make_features(keys)
        return features

    def _make_features(self, keys: tuple[str, ...]) -> list[_core.Feature]:
        position = {key: i for i, key in enumerate(keys)}
        features = []
        column = 0
        for config, table, unseen in zip(self._embedding_bag_configs, self._tables, self._unseen_in_eval, strict=True):
            for name in config.feature_names:
                if name not in position:
                    raise KeyError(f"no feature {name!r} in the input, whose keys are {list(keys)}")
                mode = "initial" if self.training else unseen
                features.append(
                    _core.Feature(
                        table=table._index,
                        pooling=_POOLING[config.pooling],
                        unseen=_core.UnseenRows[mode.upper()],
                        key=position[name],
                        column=column,
                    )
                )
                column += config.embedding_dim
        return features

    def _set_optimizers(self) -> None:
        specs = self._optimizer.specs()
        for table in self._tables:
            table._set_optimizer(specs[table.name])

    @property
    def fused_optimizer(self) -> FusedTableOptimizer:
        """The optimizer whose parameter groups, one per table, hold the learning rates. Calling it returns it."""
        return self._optimizer

    @property
    def store(self) -> EmbeddingStore:
        """Where the rows are."""
        return self._store

    @property
    def device(self) -> torch.device:
        """Of inputs and outputs."""
        return self._device

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The tables' configs."""
        return self._embedding_bag_configs

    def is_weighted(self) -> bool:
        """Whether inputs carry a weight for each id."""
        return self._is_weighted

    def optimizer_type(self) -> type[torch.optim.Optimizer]:
        """The optimizer class that was given."""
        return self._optimizer_type

    def optimizer_kwargs(self) -> dict[str, Any]:
        """The hyperparameters that were given."""
        return self._optimizer_kwargs

    def tables(self) -> list[Table]:
        """The tables, in the order of the configs."""
        return list(self._tables)

    def extra_repr(self) -> str:
        """The tables and the store, for ``print(model)``."""
        tables = ", ".join(f"{t.name}: {t.dim}" for t in self._tables)
        return f"tables={{{tables}}}, store={str(self._store.path)!r}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise TypeError("an EmbeddingBagCollection cannot be copied or pickled: use save_model and load_model")

    def __reduce__(self) -> Any:
        raise TypeError("an EmbeddingBagCollection cannot be copied or pickled: use save_model and load_model")


def _check_options(tables: list[EmbeddingBagConfig], options: Mapping[str, TableOptions]) -> dict[str, TableOptions]:
    names = [config.name for config in tables]
    for name in names:
        if not name:
            raise ValueError("every table needs a name, got an empty one")
        if names.count(name) > 1:
            raise ValueError(f"Duplicate table name {name}")
    for name, given in options.items():
        if not isinstance(given, TableOptions):
            raise TypeError(f"table_options[{name!r}] must be TableOptions, got {type(given).__name__}")
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise ValueError(f"table_options names tables that are not there: {unknown}; there are {names}")
    return {name: options.get(name, TableOptions()) for name in names}


def _check_store(store: object) -> EmbeddingStore:
    if not isinstance(store, EmbeddingStore):
        raise TypeError(f"store must be an EmbeddingStore, got {type(store).__name__}")
    return store


def _define(config: EmbeddingBagConfig, options: TableOptions, spec: Any) -> TableDefinition:
    if config.pooling not in _POOLING:
        raise ValueError(f"table {config.name!r}: pooling must be SUM or MEAN, got {config.pooling}")
    if config.data_type != DataType.FP32:
        raise ValueError(f"table {config.name!r}: data_type must be FP32, got {config.data_type}")
    if config.virtual_table_eviction_policy is not None:
        raise ValueError(f"table {config.name!r}: virtual_table_eviction_policy is not supported: rows never expire")
    if config.embedding_dim < 1:
        raise ValueError(f"table {config.name!r}: embedding_dim must be positive, got {config.embedding_dim}")
    if config.num_embeddings < 1:
        raise ValueError(f"table {config.name!r}: num_embeddings must be positive, got {config.num_embeddings}")
    return TableDefinition(
        name=config.name,
        dim=config.embedding_dim,
        num_embeddings=config.num_embeddings,
        optimizer=spec,
        initializer=options.initializer or from_config(config),
        unseen_in_eval=options.unseen_in_eval,
    )


def _as_int64(what: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{what} must be int64 or int32, got {tensor.dtype}")
    if tensor.dim() != 1:
        raise ValueError(f"{what} must have one dimension, got the shape {tuple(tensor.shape)}")
    _check_cpu(what, tensor)
    return tensor.to(torch.int64).contiguous()


def _check_cpu(what: str, tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu":
        raise ValueError(f"{what} must be on the cpu, got {tensor.device}")
