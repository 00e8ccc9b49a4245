"""`swap`: from a TorchRec model to the same model over a store."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
import torchrec
from torch import nn
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection, FusedEmbeddingCollection

from damo_torchrec.modules import EmbeddingBagCollection, EmbeddingCollection
from damo_torchrec.modules.state import copy_rows
from damo_torchrec.options import TableOptions
from damo_torchrec.store.embedding_store import EmbeddingStore

_log = logging.getLogger(__name__)
_BAGS = (torchrec.EmbeddingBagCollection, FusedEmbeddingBagCollection)
_SEQUENCES = (torchrec.EmbeddingCollection, FusedEmbeddingCollection)


def swap(
    model: nn.Module,
    *,
    store: EmbeddingStore | None = None,
    optimizer_type: type[torch.optim.Optimizer] = torchrec.optim.RowWiseAdagrad,
    optimizer_kwargs: Mapping[str, Any] | None = None,
    table_options: Mapping[str, TableOptions] | None = None,
    copy_weights: bool = False,
) -> nn.Module:
    """Replaces every embedding collection of a model, in place, and returns the model.

    TorchRec's `EmbeddingBagCollection`, `FusedEmbeddingBagCollection`, `EmbeddingCollection` and
    `FusedEmbeddingCollection` are replaced, wherever they are; if the model itself is one, its replacement is returned.
    Modules of subclasses are left alone. What was replaced is logged.

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
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) in _BAGS + _SEQUENCES
    }
    _check_names(found)
    options = table_options or {}
    unknown = set(options) - {c.name for m in found.values() for c in _configs(m)}
    if unknown:
        raise ValueError(f"table_options names tables that are not in the model: {sorted(unknown)}")
    replacements: dict[nn.Module, EmbeddingBagCollection | EmbeddingCollection] = {}
    for module in found.values():
        if module not in replacements:
            names = {config.name for config in _configs(module)}
            of_module = {name: o for name, o in options.items() if name in names}
            replacements[module] = _replacement(
                module,
                optimizer_type=optimizer_type,
                optimizer_kwargs=optimizer_kwargs,
                store=store,
                table_options=of_module,
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


def _replacement(module: Any, **arguments: Any) -> EmbeddingBagCollection | EmbeddingCollection:
    if type(module) in _BAGS:
        return EmbeddingBagCollection(tables=_configs(module), is_weighted=module.is_weighted(), **arguments)
    return EmbeddingCollection(tables=_configs(module), need_indices=module.need_indices(), **arguments)


def _configs(module: Any) -> list[Any]:
    configs = module.embedding_bag_configs() if type(module) in _BAGS else module.embedding_configs()
    return [copy.copy(config) for config in configs]


def _check_names(found: Mapping[str, nn.Module]) -> None:
    owners: dict[str, tuple[str, nn.Module]] = {}
    for path, module in found.items():
        for config in _configs(module):
            other, owner = owners.setdefault(config.name, (path, module))
            if owner is not module:
                raise ValueError(
                    f"table {config.name!r} is in two collections, {other!r} and {path!r}: rename one, "
                    "a store keeps one table of a name"
                )


def _copy_weights(source: Any, target: EmbeddingBagCollection | EmbeddingCollection) -> None:
    weights = source.embedding_bags if type(source) in _BAGS else source.embeddings
    for table in target.tables():
        copy_rows(weights[table.name].weight, table)
