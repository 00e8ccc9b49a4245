"""`swap`: from a TorchRec model to the same model over a store."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
import torchrec
from torch import nn
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

from damo_torchrec.modules import EmbeddingBagCollection
from damo_torchrec.options import TableOptions
from damo_torchrec.store import EmbeddingStore

_log = logging.getLogger(__name__)
_REPLACED = (torchrec.EmbeddingBagCollection, FusedEmbeddingBagCollection)
_ROWS_PER_CALL = 65536


def swap(
    model: nn.Module,
    *,
    store: EmbeddingStore | None = None,
    optimizer_type: type[torch.optim.Optimizer] = torchrec.optim.RowWiseAdagrad,
    optimizer_kwargs: Mapping[str, Any] | None = None,
    table_options: Mapping[str, TableOptions] | None = None,
    copy_weights: bool = False,
) -> nn.Module:
    """Replaces every embedding bag collection of a model, in place, and returns the model.

    TorchRec's `EmbeddingBagCollection` and `FusedEmbeddingBagCollection` are replaced, wherever they are; if the model
    itself is one, its replacement is returned. Modules of subclasses are left alone. What was replaced is logged.

    Args:
        model: any module.
        store: where the rows go; None for `default_store()`.
        optimizer_type: as for `EmbeddingBagCollection`.
        optimizer_kwargs: as for `EmbeddingBagCollection`.
        table_options: by table name.
        copy_weights: whether row i of each table becomes the row with id i.

    Raises:
        ValueError: two collections have a table of the same name, and whatever `EmbeddingBagCollection` raises. The
            model is unchanged.
    """
    found = {name: module for name, module in model.named_modules(remove_duplicate=False) if type(module) in _REPLACED}
    _check_names(found)
    options = table_options or {}
    unknown = set(options) - {c.name for m in found.values() for c in _configs(m)}
    if unknown:
        raise ValueError(f"table_options names tables that are not in the model: {sorted(unknown)}")
    replacements: dict[nn.Module, EmbeddingBagCollection] = {}
    for module in found.values():
        if module not in replacements:
            names = {config.name for config in _configs(module)}
            replacements[module] = EmbeddingBagCollection(
                tables=_configs(module),
                optimizer_type=optimizer_type,
                optimizer_kwargs=optimizer_kwargs,
                is_weighted=module.is_weighted(),
                store=store,
                table_options={name: o for name, o in options.items() if name in names},
            ).train(module.training)
    for module, replacement in replacements.items():
        if copy_weights:
            _copy_weights(module, replacement)
    for name, module in found.items():
        _log.info("%s: %s -> %s", name or "model", type(module).__name__, replacements[module])
        if name == "":
            return replacements[module]
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, replacements[module])
    return model


def _configs(module: nn.Module) -> list[Any]:
    configs: list[Any] = module.embedding_bag_configs()  # type: ignore[operator]
    return [copy.copy(config) for config in configs]


def _check_names(found: dict[str, nn.Module]) -> None:
    owners: dict[str, tuple[str, nn.Module]] = {}
    for path, module in found.items():
        for config in _configs(module):
            other, owner = owners.setdefault(config.name, (path, module))
            if owner is not module:
                raise ValueError(
                    f"table {config.name!r} is in two collections, {other!r} and {path!r}: rename one, "
                    "a store keeps one table of a name"
                )


def _copy_weights(source: nn.Module, target: EmbeddingBagCollection) -> None:
    for table in target.tables():
        weight = source.embedding_bags[table.name].weight.detach()  # type: ignore[union-attr,index]
        for begin in range(0, len(weight), _ROWS_PER_CALL):
            rows = weight[begin : begin + _ROWS_PER_CALL]
            table.set(torch.arange(begin, begin + len(rows)), rows)
