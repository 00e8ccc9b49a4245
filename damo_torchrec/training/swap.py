"""`swap`: from a TorchRec model to the same model over a store."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torchrec
from torch import nn
from torchrec.distributed.embedding_types import ShardedEmbeddingModule
from torchrec.modules.embedding_modules import EmbeddingBagCollectionInterface, EmbeddingCollectionInterface
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection, FusedEmbeddingCollection

from damo_torchrec.modules import EmbeddingBagCollection, EmbeddingCollection
from damo_torchrec.modules.collection import Collection
from damo_torchrec.modules.state import all_finite, copy_rows, copy_state
from damo_torchrec.optim.rules import optimizer_spec
from damo_torchrec.options import TableOptions
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.training.given_optimizer import Optimizer, as_given, given_optimizers, sums_of_squares

_log = logging.getLogger(__name__)
_BAGS = (torchrec.EmbeddingBagCollection, FusedEmbeddingBagCollection)
_SEQUENCES = (torchrec.EmbeddingCollection, FusedEmbeddingCollection)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TORCHRECS = (EmbeddingBagCollectionInterface, EmbeddingCollectionInterface, ShardedEmbeddingModule)


def swap(
    model: nn.Module,
    *,
    store: EmbeddingStore | None = None,
    optimizer_type: type[torch.optim.Optimizer] | None = None,
    optimizer_kwargs: Mapping[str, Any] | None = None,
    table_options: Mapping[str, TableOptions] | None = None,
    rename: Mapping[str, str] | None = None,
    copy_weights: bool = False,
) -> nn.Module:
    """Replaces every embedding collection of a model, in place, and returns the model.

    TorchRec's `EmbeddingBagCollection`, `FusedEmbeddingBagCollection`, `EmbeddingCollection` and
    `FusedEmbeddingCollection` are replaced, wherever they are, also on the meta device; if the model itself is one, its
    replacement is returned. What was replaced is logged, and what was left alone is warned of: subclasses, and what
    `DistributedModelParallel` has sharded. Collections of which no weight requires a gradient are frozen, until
    ``requires_grad_()``; of others, the tables whose weights do not are not trained.

    Args:
        model: any module.
        store: where the rows go; None for `default_store()`.
        optimizer_type: as for `EmbeddingBagCollection`. None for what the model was set up with, by fused collections
            or ``apply_optimizer_in_backward``, with the learning rates of now, and `torchrec.optim.RowWiseAdagrad`
            where that is nothing.
        optimizer_kwargs: as for `EmbeddingBagCollection`.
        table_options: by table name, after renaming.
        rename: names of tables in the store, by ``"path.table"``, with the path of the collection in the model. Two
            tables of one name are one table where at least one of them has got that name here.
        copy_weights: whether row i of each table becomes the row with id i, with what Adagrad has summed up of it. A
            table that has rows already, as when a program is run again, keeps them, and a warning is logged.

    Raises:
        ValueError: there is nothing to replace, two collections have a table of the same name, an optimizer cannot be
            taken over, and whatever `EmbeddingBagCollection` raises. The model is unchanged.
    """
    found = _find(model)
    _check_found(model, found)
    _rename(found, rename or {})
    if copy_weights:
        _check_copies(found)
    options = dict(table_options or {})
    if unknown := sorted(set(options) - {name for one in found for name in one.names.values()}):
        raise ValueError(f"table_options names tables that are not in the model: {unknown}")
    given = None if optimizer_type is None else (optimizer_type, dict(optimizer_kwargs or {}))
    optimizers = {one.module: _optimizers(one, given, optimizer_kwargs) for one in found}
    replacements = {one.module: _replacement(one, optimizers[one.module], options, store) for one in reversed(found)}
    if copy_weights:
        for one in {one.module: one for one in found}.values():
            _copy(one, replacements[one.module], {} if given else sums_of_squares(one.module, one.weights))
    for one in found:
        if any(vars(one.module)[hooks] for hooks in _HOOKS):
            _log.warning("%s has hooks, which its replacement has not: register them anew", one.path or "the model")
        _log.info("%s: %s -> %s", one.path or "model", type(one.module).__name__, replacements[one.module])
        if one.path == "":
            return replacements[one.module]
        parent, _, attribute = one.path.rpartition(".")
        setattr(model.get_submodule(parent), attribute, replacements[one.module])
    return model


@dataclass(frozen=True)
class _Found:
    """A collection to be replaced.

    Args:
        path: in the model.
        module: it.
        weights: by table.
        names: of its tables in the store, by their own.
    """

    path: str
    module: Any
    weights: Mapping[str, torch.Tensor]
    names: dict[str, str]

    def configs(self) -> list[Any]:
        """Of its tables, under their names in the store."""
        configs = [copy.copy(config) for config in _configs(self.module)]
        for config in configs:
            config.feature_names = list(config.feature_names) or [config.name]
            config.name = self.names[config.name]
        return configs


def _find(model: nn.Module) -> list[_Found]:
    """The collections to be replaced, one that is used in several places for each of them."""
    names: dict[nn.Module, dict[str, str]] = {}
    return [
        _Found(path, module, _weights(module), names.setdefault(module, {}))
        for path, module in model.named_modules(remove_duplicate=False)
        if type(module) in _BAGS + _SEQUENCES
    ]


def _configs(module: Any) -> list[Any]:
    return list(module.embedding_bag_configs() if type(module) in _BAGS else module.embedding_configs())


def _weights(module: Any) -> dict[str, torch.Tensor]:
    tables = module.embedding_bags if type(module) in _BAGS else module.embeddings
    return {config.name: tables[config.name].weight for config in _configs(module)}


def _check_found(model: nn.Module, found: Sequence[_Found]) -> None:
    """Raises ValueError if there is nothing to replace; warns of what is left alone."""
    modules = {one.module for one in found}
    inside = {part for module in modules for part in module.modules()}
    others = {
        path or "model": type(module).__name__
        for path, module in model.named_modules()
        if isinstance(module, _TORCHRECS) and module not in inside and not isinstance(module, Collection)
    }
    why = (
        f"swap does not replace {others}: it replaces TorchRec's EmbeddingBagCollection, EmbeddingCollection and their "
        "Fused ones, no subclasses, and has to come before DistributedModelParallel"
    )
    if found:
        if others:
            _log.warning(why)
    elif others:
        raise ValueError(why)
    elif not any(isinstance(module, Collection) for module in model.modules()):
        raise ValueError(f"there is no embedding collection of TorchRec's to replace in {type(model).__name__}")


def _rename(found: Sequence[_Found], rename: Mapping[str, str]) -> None:
    """Gives tables their names in the store. Raises ValueError if two have one without having been given it."""
    names: list[object] = list(rename.values())
    if odd := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"rename must have names of tables, got {odd[0]!r}")
    unused, given = set(rename), set()
    for one in found:
        for table in one.weights:
            path = f"{one.path}.{table}" if one.path else table
            if path in rename:
                unused.discard(path)
                one.names[table] = rename[path]
                given.add(rename[path])
            else:
                one.names.setdefault(table, table)
    if unused:
        raise ValueError(f"rename has {sorted(unused)}, which are not in the model")
    owners: dict[str, _Found] = {}
    for one in found:
        for table, name in one.names.items():
            other = owners.setdefault(name, one)
            if other.module is not one.module and name not in given:
                raise ValueError(
                    f"table {name!r} is in two collections, {other.path!r} and {one.path!r}, and a store keeps one "
                    f"table of a name: give one of them another by rename={{'{one.path}.{table}': ...}}, or {name!r} "
                    "itself if they are to share its rows"
                )


def _check_copies(found: Sequence[_Found]) -> None:
    """Raises ValueError if there are no weights to copy, or two for one table."""
    owners: dict[str, Any] = {}
    for one in found:
        for table, weight in one.weights.items():
            if weight.is_meta:
                raise ValueError(f"table {table!r} of {one.path!r} is on the meta device: it has no weights to copy")
            if not all_finite(weight):
                raise ValueError(f"table {table!r} of {one.path!r} has weights that are not finite")
            if owners.setdefault(one.names[table], one.module) is not one.module:
                raise ValueError(f"two collections share the table {one.names[table]!r}: both have weights to copy")


def _optimizers(
    one: _Found, given: Optimizer | None, optimizer_kwargs: Mapping[str, Any] | None
) -> dict[str, Optimizer]:
    """What is to train each table, by its own name."""
    if given is not None:
        return dict.fromkeys(one.weights, given)
    own = given_optimizers(one.module, one.weights)
    for optimizer in own.values():
        _check_taken_over(one, optimizer)
    if own and optimizer_kwargs:
        raise ValueError(
            f"{one.path or 'the model'} has an optimizer of its own: give optimizer_kwargs with optimizer_type"
        )
    default: Optimizer = (torchrec.optim.RowWiseAdagrad, dict(optimizer_kwargs or {}))
    return {table: own.get(table, default) for table in one.weights}


def _check_taken_over(one: _Found, optimizer: Optimizer) -> None:
    try:
        optimizer_spec(*optimizer)
    except ValueError as error:
        where = one.path or "the model"
        raise ValueError(
            f"the optimizer of {where} cannot be taken over, give swap an optimizer_type: "
            f"{as_given(optimizer[0])}{error}"
        ) from error


def _replacement(
    one: _Found, optimizers: Mapping[str, Optimizer], options: Mapping[str, TableOptions], store: EmbeddingStore | None
) -> EmbeddingBagCollection | EmbeddingCollection:
    of_tables = {name: options[name] for name in one.names.values() if name in options}
    optimizer_type, kwargs = next(iter(optimizers.values()))
    for table, optimizer in optimizers.items():
        own = of_tables.get(one.names[table], TableOptions())
        if optimizer != (optimizer_type, kwargs) and own.optimizer is None:
            of_tables[one.names[table]] = replace(own, optimizer=optimizer)
    frozen = not any(weight.requires_grad for weight in one.weights.values())
    for table, weight in one.weights.items():
        if not (frozen or weight.requires_grad):
            _log.info("the weight of table %r requires no gradient: its rows are not trained", table)
            of_tables[one.names[table]] = replace(of_tables.get(one.names[table], TableOptions()), trainable=False)
    device = next(iter(one.weights.values())).device
    arguments: dict[str, Any] = {
        "tables": one.configs(),
        "device": "cpu" if device.type == "meta" else device,
        "optimizer_type": optimizer_type,
        "optimizer_kwargs": kwargs,
        "store": store,
        "table_options": of_tables,
    }
    if type(one.module) in _BAGS:
        made: Any = EmbeddingBagCollection(is_weighted=one.module.is_weighted(), **arguments)
    else:
        made = EmbeddingCollection(need_indices=one.module.need_indices(), **arguments)
    made.train(one.module.training)
    if frozen:
        _log.info("no weight of %s requires a gradient: its rows are frozen", one.path or "the model")
        made.requires_grad_(False)
    return cast("EmbeddingBagCollection | EmbeddingCollection", made)


def _copy(one: _Found, replacement: Collection, sums: Mapping[str, torch.Tensor]) -> None:
    tables = {table.name: table for table in replacement.tables()}
    for own, weight in one.weights.items():
        table = tables[one.names[own]]
        if rows := len(table):
            _log.warning(
                "table %r of %s has %d rows: they stay, copy_weights does not replace them", table.name, table, rows
            )
            continue
        copy_rows(weight, table)
        if own in sums:
            copy_state(sums[own], table)
