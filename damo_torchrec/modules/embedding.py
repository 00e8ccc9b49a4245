"""`Embedding`: ids in, rows out, with the arguments of Damo-Embedding's module."""

import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torchrec
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingConfig

from damo_torchrec.modules import damo_dicts
from damo_torchrec.modules.autograd import Batch
from damo_torchrec.modules.collection import Collection
from damo_torchrec.modules.jagged_input import as_ids, check_device
from damo_torchrec.modules.lookup_plan import LookupKind, LookupPlan
from damo_torchrec.options import TableOptions
from damo_torchrec.store.default_store import set_default_store
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.tensors import plain

_log = logging.getLogger(__name__)
_FEATURE = "ids"
_GROUPS = 256


class Embedding(Collection):
    """One table, asked with a tensor of ids: Damo-Embedding's module.

    What `EmbeddingBagCollection` says of ids and updates holds here, too. Modules of one store with equal `group` and
    `dim` are over the same rows, in the table ``group_G_dim_D``.

    ::

        embedding = damo.Embedding(8, group=1, optimizer={"name": "adamw", "gamma": 0.001})
        embedding(torch.tensor([[3, 4], [5, 3]]))  # (2, 2, 8)

    Args:
        dim: of a row.
        group: 0 to 255.
        initializer: one of damo.init's, or a dict whose ``"name"`` is ``zeros``, ``ones``, ``uniform`` or
            ``random_uniform`` (``min``, ``max``; ±√(1/dim) without), ``normal``, ``random`` or ``random_normal``
            (``mean``, ``stddev``), ``truncate_normal`` (the same, within two standard deviations), or ``xavier``
            (±√(6/(dim + dim))). None for ``uniform``.
        optimizer: ``(optimizer_type, optimizer_kwargs)`` as of `EmbeddingBagCollection`, or a dict whose ``"name"`` is
            ``sgd``, ``adagrad``, ``adam``, ``amsgrad``, ``adamw``, ``ftrl`` or ``lion``, with ``gamma`` (the learning
            rate), ``lambda`` (weight decay), ``beta1``, ``beta2``, ``epsilon``, ``eta`` (Adagrad's decay of the
            learning rate; Lion's learning rate), ``alpha``, ``beta``, ``lambda1`` and ``lambda2`` (FTRL's). None for
            row-wise Adagrad.
        store: where the rows are. None: what `damo_embedding_init` or the first use finds as `default_store()`.
        padding_idx: an id that reads zeros and has no row; None for none. Damo-Embedding keeps 0 for that.
        device: as of `EmbeddingBagCollection`.
        kwargs: what Damo-Embedding may take besides has no effect here, and warns.

    Raises:
        ValueError: the group is out of range, or an initializer, an optimizer or one of its numbers is not known.
        SchemaMismatchError: the store has this table with another optimizer or initializer.
    """

    def __init__(
        self,
        dim: int,
        group: int = 0,
        initializer: Any = None,
        optimizer: Mapping[str, Any] | tuple[type[torch.optim.Optimizer], Mapping[str, Any]] | None = None,
        *,
        store: EmbeddingStore | None = None,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("group", group)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
        if padding_idx is not None and (isinstance(padding_idx, bool) or not isinstance(padding_idx, int)):
            raise TypeError(f"padding_idx must be an int or None, got {padding_idx!r}")
        if not 0 <= group < _GROUPS:
            raise ValueError(f"group must be in 0..{_GROUPS - 1}, got {group}")
        if kwargs:
            warnings.warn(f"Embedding: {', '.join(sorted(kwargs))} has no effect here", stacklevel=2)
        self.dim = dim
        self.group = group
        self.padding_idx = padding_idx
        if optimizer is None:
            optimizer = (torchrec.optim.RowWiseAdagrad, {})
        elif isinstance(optimizer, Mapping):
            optimizer = damo_dicts.optimizer(optimizer)
        given: object = optimizer
        if not isinstance(given, tuple) or len(given) != 2:
            raise TypeError(f"optimizer must be a dict or (optimizer_type, optimizer_kwargs), got {optimizer!r}")
        config = EmbeddingConfig(
            name=f"group_{group}_dim_{dim}", embedding_dim=dim, num_embeddings=1, feature_names=[_FEATURE]
        )
        options = TableOptions(initializer=damo_dicts.initializer(initializer, dim))
        outputs = self._define([config], "embeddings", optimizer, device, {config.name: options})
        self._plan = LookupPlan(LookupKind.ROWS, outputs, padding=padding_idx)
        if store is not None:
            self.attach_store(store)

    @property
    def store(self) -> EmbeddingStore:
        """Where the rows are: from the first use on `default_store()`, if it was not said before."""
        if self._store is None:
            self.attach_store(None)
        return super().store

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Looks up.

        Args:
            ids: int64 or int32, of any shape; ``(B, S)`` in Damo-Embedding.

        Returns:
            float32 of the ids' shape, and ``dim``.

        Raises:
            TypeError: the ids are no integers.
            ValueError: they need more memory than the budget allows.
        """
        if not isinstance(ids, torch.Tensor):
            raise TypeError(f"ids must be a tensor, got {type(ids).__name__}")
        if self._has_shapes_only(ids):
            return torch.empty(*ids.shape, self.dim, device="meta")
        return self._lookup(self._batch(ids), self._trains).view(*ids.shape, self.dim)

    def _batch(self, ids: torch.Tensor) -> Batch:
        check_device("ids", ids, self._device)
        flat = as_ids("ids", plain("ids", ids).reshape(-1), self._accepted().memory_budget)
        n = flat.numel()
        lengths = torch.ones(n, dtype=torch.int64, device="cpu")
        if self.padding_idx is not None:
            real = flat != self.padding_idx
            flat, lengths = flat[real], real.to(torch.int64)
        return Batch(keys=(_FEATURE,), ids=flat, lengths=lengths, weights=None, size=n)


def damo_embedding_init(model: nn.Module, workdir: str | os.PathLike[str], ttl: int = 0) -> EmbeddingStore:
    """Opens the store `workdir`, makes it the default one, and puts the rows of a model's Embeddings there.

    As in Damo-Embedding, it comes after the model was made and before it is used.

    Args:
        model: its Embeddings without a store get this one.
        workdir: a new store, or one that was closed.
        ttl: Damo-Embedding lets rows expire that have not been updated for so many seconds. Rows do not expire here: a
            number other than 0 warns.

    Returns:
        EmbeddingStore: the store; it closes itself when the interpreter ends.

    Raises:
        ValueError: an Embedding has been used already, and has its rows elsewhere.
        DamoError: the store cannot be opened.
    """
    found = [module for module in model.modules() if isinstance(module, Embedding)]
    for module in found:
        if module.attached_to is not None:
            raise ValueError(f"the Embedding of group {module.group} has its rows in {module.attached_to.path} already")
    if ttl != 0:
        warnings.warn(f"ttl={ttl} has no effect: rows do not expire here", stacklevel=2)
    store = EmbeddingStore(workdir)
    try:
        for module in found:
            module.attach_store(store)
    except BaseException:
        for module in found:
            module.detach_store()
        store.close()
        raise
    set_default_store(store)
    _log.info("%d embeddings have their rows in %s", len(found), store.path)
    return store
