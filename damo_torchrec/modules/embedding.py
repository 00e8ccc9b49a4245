"""`Embedding`: ids in, rows out, with the arguments of Damo-Embedding's module."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torchrec
from torchrec.modules.embedding_configs import EmbeddingConfig

from damo_torchrec import init
from damo_torchrec.lookup_plan import LookupKind, LookupPlan
from damo_torchrec.modules import damo_dicts, damo_groups
from damo_torchrec.modules.autograd import Batch
from damo_torchrec.modules.collection import Collection
from damo_torchrec.modules.jagged_input import as_ids, check_device
from damo_torchrec.optim.spec import OptimizerSpec
from damo_torchrec.options import TableOptions
from damo_torchrec.store.default_store import default_store
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.tensors import plain

_log = logging.getLogger(__name__)
_FEATURE = "ids"


class Embedding(Collection):
    """One table, asked with a tensor of ids: Damo-Embedding's module.

    What `EmbeddingBagCollection` says of ids and updates holds here, too. Modules of one store with equal `group` and
    `dim` are over the same rows, in the table ``group_G_dim_D``.

    ::

        embedding = damo.Embedding(8, group=1, optimizer={"name": "adamw", "gamma": 0.001})
        embedding(torch.tensor([[3, 4], [5, 3]]))  # (2, 2, 8)

    Args:
        dim: of a row.
        args: ``group, initializer, optimizer``; or, where the first is a dict, ``initializer, optimizer, group``, as in
            Damo-Embedding up to 1.1.12. Each may be given by its name instead.
        group: 0 to 65535. None, or -1: a group of its own, which `damo_embedding_init` and `load_model` number by the
            module's place among a model's Embeddings. One that is used without either gets the next number that is free
            in its store.
        initializer: one of damo.init's, or a dict whose ``"name"`` is ``zeros``, ``ones``, ``uniform`` (``min``,
            ``max``; ±√(1/dim) without), ``random_uniform`` (the same; ±1 without), ``normal``, ``random`` or
            ``random_normal`` (``mean``, ``stddev``), ``truncate_normal`` (the same, within two standard deviations), or
            ``xavier`` (±√(6/(dim + dim))). None, or ``{}``, for ``uniform``.
        optimizer: ``(optimizer_type, optimizer_kwargs)`` as of `EmbeddingBagCollection`, or a dict whose ``"name"`` is
            ``sgd``, ``adagrad``, ``adam``, ``amsgrad``, ``adamw``, ``ftrl`` or ``lion``, with ``gamma`` (the learning
            rate), ``lambda`` (weight decay), ``beta1``, ``beta2``, ``epsilon``, ``eta`` (Adagrad's decay of the
            learning rate; Lion's learning rate), ``alpha`` (FTRL's learning rate), ``beta``, ``lambda1`` and
            ``lambda2`` (FTRL's). None, or ``{}``, for row-wise Adagrad.
        grad: what a row's gradient is, of the gradients of its occurrences: their sum divided by the batch size, the
            first dimension of the ids, for ``"mean"``, as in Damo-Embedding; their sum for ``"sum"``, as of
            `torch.nn.Embedding`.
        store: where the rows are. None: what `damo_embedding_init` or the first use finds as `default_store()`.
        padding_idx: an id that reads zeros and has no row; None for none. Damo-Embedding keeps 0 for that.
        device: as of `EmbeddingBagCollection`.
        kwargs: what Damo-Embedding may take besides has no effect here, and warns.

    Raises:
        ValueError: the group is out of range, or is another Embedding's that has it by its place; an initializer, an
            optimizer or one of its numbers is not known; or another Embedding of the same rows has another optimizer.
        SchemaMismatchError: the store has this table with another optimizer.
    """

    def __init__(
        self,
        dim: int,
        *args: Any,
        group: int | None = None,
        initializer: Any = None,
        optimizer: Mapping[str, Any] | tuple[type[torch.optim.Optimizer], Mapping[str, Any]] | None = None,
        grad: Literal["mean", "sum"] = "mean",
        store: EmbeddingStore | None = None,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        group, initializer, optimizer = _by_place(args, group, initializer, optimizer)
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"dim must be an int, got {dim!r}")
        if padding_idx is not None and (isinstance(padding_idx, bool) or not isinstance(padding_idx, int)):
            raise TypeError(f"padding_idx must be an int or None, got {padding_idx!r}")
        if grad not in ("mean", "sum"):
            raise ValueError(f"grad must be 'mean' or 'sum', got {grad!r}")
        if kwargs:
            warnings.warn(f"Embedding: {', '.join(sorted(kwargs))} has no effect here", stacklevel=2)
        self.dim = dim
        self.group = damo_groups.check_group(group)
        self.grad = grad
        self.padding_idx = padding_idx
        self.numbered = False  # whether its group is its place, and was not given
        if not optimizer:
            optimizer = (torchrec.optim.RowWiseAdagrad, {})
        elif isinstance(optimizer, Mapping):
            optimizer = damo_dicts.optimizer(optimizer)
        given: object = optimizer
        if not isinstance(given, tuple) or len(given) != 2:
            raise TypeError(f"optimizer must be a dict or (optimizer_type, optimizer_kwargs), got {optimizer!r}")
        config = EmbeddingConfig(
            name=damo_groups.table_name(self.group, dim), embedding_dim=dim, num_embeddings=1, feature_names=[_FEATURE]
        )
        options = TableOptions(initializer=damo_dicts.initializer(initializer, dim))
        outputs = self._define([config], "embeddings", optimizer, device, {config.name: options})
        self._plan = LookupPlan(LookupKind.ROWS, outputs, padding=padding_idx)
        if store is not None:
            self.attach_store(store)

    def attach_store(self, store: EmbeddingStore | None) -> None:
        """As of every collection; one without a group gets the next of the store's."""
        if self._device.type == "meta" or not (store is None or isinstance(store, EmbeddingStore)):
            super().attach_store(store)
            return
        store = store if store is not None else default_store()
        had_none = self.group is None
        if self.group is None:
            self.number(damo_groups.free_group(store))
        try:
            damo_groups.check_member(self, store)
            super().attach_store(store)
        except BaseException:
            if had_none:
                self.number(None)
            raise
        damo_groups.add_member(self, store)
        if had_none:
            _log.info("an Embedding without a group is over the table %s of %s", self._configs[0].name, store.path)

    def number(self, group: int | None) -> None:
        """Gives it a group of its own, or takes it back. REQUIRES: it was made without one, and has no store now.

        For the modules of this package.
        """
        before = self._configs[0].name
        self.group, self.numbered = group, group is not None
        name = damo_groups.table_name(group, self.dim)
        self._configs[0].name = name
        self._definitions = [replace(self._definitions[0], name=name)]
        self._plan = replace(self._plan, outputs=(replace(self._plan.outputs[0], table=name),))
        self._optimizer.rename_table(before, name)
        self._features.clear()

    @property
    def has_own_group(self) -> bool:
        """Whether it was made without a group."""
        return self.group is None or self.numbered

    @property
    def made_with_optimizer(self) -> OptimizerSpec:
        """The update rule with the numbers that were given."""
        return self._definitions[0].optimizer

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
        return self._lookup(self._batch(ids), self.trains).view(*ids.shape, self.dim)

    def _batch(self, ids: torch.Tensor) -> Batch:
        check_device("ids", ids, self._device)
        flat = as_ids("ids", plain("ids", ids).reshape(-1), self._accepted().memory_budget)
        n = flat.numel()
        lengths = torch.ones(n, dtype=torch.int64, device="cpu")
        if self.padding_idx is not None:
            real = flat != self.padding_idx
            flat, lengths = flat[real], real.to(torch.int64)
        divisor = max(len(ids), 1) if self.grad == "mean" and ids.dim() > 0 else 1
        return Batch(keys=(_FEATURE,), ids=flat, lengths=lengths, weights=None, size=n, divisor=divisor)


def _by_place(args: tuple[Any, ...], group: Any, initializer: Any, optimizer: Any) -> tuple[Any, Any, Any]:
    """Group, initializer and optimizer, of which `args` are the first, in one of their two orders."""
    of_1_1_12 = len(args) > 0 and isinstance(args[0], Mapping | init.Initializer)
    names = ("initializer", "optimizer", "group") if of_1_1_12 else ("group", "initializer", "optimizer")
    if len(args) > len(names):
        raise TypeError(f"Embedding takes dim, {', '.join(names)} by their place, got {1 + len(args)} arguments")
    given = {"group": group, "initializer": initializer, "optimizer": optimizer}
    for name, value in zip(names, args, strict=False):
        if given[name] is not None:
            raise TypeError(f"Embedding got {name} by its place and by its name")
        given[name] = value
    return given["group"], given["initializer"], given["optimizer"]
