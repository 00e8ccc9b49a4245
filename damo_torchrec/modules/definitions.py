"""From TorchRec's configs, and options of ours, to the definitions of tables and what is looked up in them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, DataType, EmbeddingBagConfig, PoolingType

from damo_torchrec.init import from_config
from damo_torchrec.lookup_plan import LookupOutput
from damo_torchrec.modules.eviction_policies import life_of
from damo_torchrec.optim.rules import optimizer_spec
from damo_torchrec.optim.spec import OptimizerSpec
from damo_torchrec.options import TableOptions
from damo_torchrec.store.table_definition import TableDefinition

_ROW_DTYPES = {DataType.FP32: "float32", DataType.FP16: "float16", DataType.BF16: "bfloat16"}


def _pooling_of(config: BaseEmbeddingConfig) -> PoolingType:
    """How a table's rows are pooled: each id is a bag of its own where they are not."""
    return config.pooling if isinstance(config, EmbeddingBagConfig) else PoolingType.SUM


def _check_tables(tables: object) -> None:
    what = "tables must be a list of TorchRec's configs of tables"
    if isinstance(tables, str) or not isinstance(tables, Sequence):
        raise TypeError(f"{what}, got {type(tables).__name__}")
    for config in tables:
        if not isinstance(config, BaseEmbeddingConfig):
            raise TypeError(f"{what}, got one with a {type(config).__name__}")
    if not tables:
        raise ValueError("tables is empty: a collection needs the config of at least one table")


def check_options(
    tables: Sequence[BaseEmbeddingConfig], options: Mapping[str, TableOptions]
) -> dict[str, TableOptions]:
    """The options of each table, by name.

    Raises:
        ValueError: there are no tables; a name is empty, or there twice, or has options but no table.
        TypeError: `tables` is no list of configs, or options are none.
    """
    _check_tables(tables)
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


def spec_of(
    options: TableOptions, optimizer_type: type[torch.optim.Optimizer], optimizer_kwargs: Mapping[str, Any] | None
) -> OptimizerSpec:
    """The table's own optimizer, or the collection's, with the table's clipping."""
    spec = optimizer_spec(*(options.optimizer or (optimizer_type, optimizer_kwargs)))
    if options.clip_grad_value is not None:
        spec = replace(spec, clip_value=options.clip_grad_value)
    if options.clip_grad_norm is not None:
        spec = replace(spec, clip_norm=options.clip_grad_norm)
    return spec


_MOST_IDS = 2**64  # as many as there are


def definition_of(config: BaseEmbeddingConfig, options: TableOptions, spec: OptimizerSpec) -> TableDefinition:
    """What a table of this config is. Raises ValueError for what has no counterpart here."""
    if _pooling_of(config) not in (PoolingType.SUM, PoolingType.MEAN):
        raise ValueError(f"table {config.name!r}: pooling must be SUM or MEAN, got {_pooling_of(config)}")
    if config.data_type not in _ROW_DTYPES:
        raise ValueError(f"table {config.name!r}: data_type must be FP32, FP16 or BF16, got {config.data_type}")
    if isinstance(config.num_embeddings, bool) or not isinstance(config.num_embeddings, int):
        raise TypeError(f"table {config.name!r}: num_embeddings must be an int, got {config.num_embeddings!r}")
    if config.num_embeddings < 1:
        raise ValueError(f"table {config.name!r}: num_embeddings must be positive, got {config.num_embeddings}")
    if config.num_embeddings >= _MOST_IDS:
        raise ValueError(f"table {config.name!r}: num_embeddings must be below 2^64, got {config.num_embeddings}")
    return TableDefinition(
        name=config.name,
        dim=config.embedding_dim,
        num_embeddings=config.num_embeddings,
        optimizer=spec,
        initializer=options.initializer or from_config(config),
        unseen_in_eval=options.unseen_in_eval,
        life=life_of(config, options.life),
        row_dtype=str(options.row_dtype).removeprefix("torch.") if options.row_dtype else _ROW_DTYPES[config.data_type],
    )


def outputs_of(configs: Sequence[BaseEmbeddingConfig], options: Mapping[str, TableOptions]) -> tuple[LookupOutput, ...]:
    """What the features of these tables give, in the order of the tables."""
    return tuple(
        LookupOutput(
            feature=feature,
            table=config.name,
            dim=config.embedding_dim,
            mean=_pooling_of(config) is PoolingType.MEAN,
            unseen=options[config.name].unseen_in_eval,
            unseen_in_train=options[config.name].unseen_in_train,
            trainable=options[config.name].trainable,
            string_salt=options[config.name].string_salt,
        )
        for config in configs
        for feature in config.feature_names
    )
