"""What the collections have in common: tables of one store, and the batches that they are asked for."""

import abc
import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import nn
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from damo_torchrec import _core
from damo_torchrec.life import ASKS_NOTHING, AskedLife
from damo_torchrec.lookup_plan import LookupOutput, LookupPlan, engine_features
from damo_torchrec.modules import passing_by, state
from damo_torchrec.modules.autograd import Batch, Call, lookup, make_lookup
from damo_torchrec.modules.definitions import check_options, definition_of, outputs_of, spec_of
from damo_torchrec.modules.fused_optimizer import FusedTableOptimizer
from damo_torchrec.modules.jagged_input import Accepted, as_keyed_jagged
from damo_torchrec.modules.output_parts import parts_of_output
from damo_torchrec.modules.tracing import eager
from damo_torchrec.options import TableOptions
from damo_torchrec.store.default_store import default_store
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.store.session import Session
from damo_torchrec.store.table import Table, open_tables
from damo_torchrec.store.table_definition import TableDefinition

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from typing_extensions import Self


class Collection(FusedOptimizerModule, nn.Module):
    """Tables of one store with a fused optimizer. Rows are no parameters: a state dict holds none.

    As a `FusedOptimizerModule` it has its optimizer found by TorchRec's `DistributedModelParallel`.
    """

    # The constructor's arguments, to make the collection again over another store.
    made_with: tuple[tuple[Any, ...], dict[str, Any]]
    # What it looks up: made by each kind of collection, of what `_define` returns.
    _plan: LookupPlan

    def __new__(cls, *args: Any, **kwargs: Any) -> "Self":
        """Notes the constructor's arguments."""
        collection = super().__new__(cls)
        collection.__dict__["made_with"] = (args, kwargs)  # nn.Module's own __setattr__ needs its __init__ first
        return collection

    def _define(
        self,
        tables: Sequence[BaseEmbeddingConfig],
        prefix: str,
        optimizer: tuple[type[torch.optim.Optimizer], Mapping[str, Any] | None],
        device: torch.device | str | None,
        table_options: Mapping[str, TableOptions] | None,
    ) -> tuple[LookupOutput, ...]:
        """Works out what the tables are, and returns what their features give.

        What `EmbeddingBagCollection` says of its arguments holds.
        """
        self._device = _check_device(device)
        self._frozen = False
        self._alone = False
        options = check_options(tables, table_options or {})
        # Copies: the caller's configs stay as they are.
        self._configs: list[Any] = [copy.copy(config) for config in tables]
        for config in self._configs:
            config.feature_names = list(config.feature_names) or [config.name]
        self._optimizer_type, kwargs = optimizer
        self._optimizer_kwargs = dict(kwargs or {})
        specs = {c.name: spec_of(options[c.name], *optimizer) for c in self._configs}
        self._definitions = [definition_of(c, options[c.name], specs[c.name]) for c in self._configs]
        self._prefix = prefix
        self._optimizer = FusedTableOptimizer(specs, prefix, self._set_state)
        self._features: dict[tuple[Any, ...], list[_core.Feature]] = {}
        self._tables: list[Table] = []
        self._store: EmbeddingStore | None = None
        self._store_in_life: EmbeddingStore | None = None
        return outputs_of(self._configs, options)

    def attach_store(self, store: EmbeddingStore | None) -> None:
        """Opens the tables, or makes them: in `default_store()` if `store` is None. For the modules of this package."""
        if store is not None and not isinstance(store, EmbeddingStore):
            raise TypeError(f"store must be an EmbeddingStore, got {type(store).__name__}")
        if self._device.type == "meta":
            self._store_in_life = store
            return
        store = store if store is not None else default_store()
        self._tables, self._store = open_tables(store.session, self._definitions), store

    def ask_life(self, asked: AskedLife) -> None:
        """Asks this of how long rows live in place of what was asked before. For the modules of this package.

        Raises:
            ValueError: it contradicts what the tables have, or what other collections ask.
        """
        self._definitions = [replace(definition, life=asked) for definition in self._definitions]
        for table in self._tables:
            table.opened.note_user(table, ASKS_NOTHING)
        for table in self._tables:
            table.session.ask_life(table.opened, asked)
            table.opened.note_user(table, asked)

    def detach_store(self) -> None:
        """Undoes `attach_store`. For the modules of this package."""
        self._store, self._tables = None, []

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Self":
        """As of every module: what ``to``, ``to_empty`` and ``cuda`` call. Off the meta device, there are rows."""
        module = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        if self._device.type == "meta":
            self._come_to_life(_device_after(fn))
        return cast("Self", module)

    @eager
    def _come_to_life(self, device: torch.device) -> None:
        """Opens the tables of a collection that was made on the meta device, once it is to be on another."""
        if device.type != "meta":
            before, self._device = self._device, _check_device(device)
            try:
                self.attach_store(self._store_in_life)
            except BaseException:
                self._device = before
                raise
            _log.info("%s comes to life over the store %s", ", ".join(c.name for c in self._configs), self.store.path)

    def _has_shapes_only(self, values: torch.Tensor) -> bool:
        """Whether it is on the meta device: until an input has values.

        `DistributedModelParallel` would have parameters come to life, and there are none.
        """
        if self._device.type == "meta" and isinstance(values, torch.Tensor):
            self._come_to_life(values.device)
        return self._device.type == "meta"

    def requires_grad_(self, requires_grad: bool = True) -> "Self":
        """Whether gradients update rows; also of a module around this one. Frozen ones are read as in eval mode."""
        self._freeze(not requires_grad)
        return super().requires_grad_(requires_grad)

    def _freeze(self, frozen: bool) -> None:
        if self._frozen and not frozen:
            passing_by.warn_of_frozen({output.table for output in self._plan.outputs if not output.trainable})
        self._frozen = frozen

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """As of every module: ``parameters`` of a module around this one asks for it, whoever asks for these."""
        passing_by.check_who_walks(type(self).__name__)
        if (requires_grad := passing_by.requires_grad_of_all()) is not None:
            self._freeze(not requires_grad)
        return cast("Iterator[tuple[str, nn.Module]]", super().named_modules(memo, prefix, remove_duplicate))

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises ValueError where torch's quantization, by a ``qconfig``, would leave the rows out."""
        if name == "qconfig":
            passing_by.check_qconfig(type(self).__name__, value)
        super().__setattr__(name, value)

    @property
    def trains(self) -> bool:
        """Whether rows are read, and updated, as in train mode."""
        return self.training and not self._frozen and any(self._plan.trained)

    # ------------------------------------------------------------------ batches

    @eager
    def prefetch(self, features: Any) -> None:
        """Begins to read the rows of a later batch, and returns.

        The forward of that batch finds them in memory. They take up to a quarter of the store's cache until then; what
        does not fit is left to the forward. Changes no result, and creates no row.

        Args:
            features: what `forward` will get.

        Raises:
            KeyError, TypeError, ValueError: as `forward`.
        """
        features = as_keyed_jagged(features)
        if self._has_shapes_only(features.values()):
            return
        batch = self._batch(features)
        self._check_outputs(features, batch)
        self._session.engine.prefetch(make_lookup(batch, self._engine_features(batch.keys, self.trains)))

    @abc.abstractmethod
    def _batch(self, features: Any) -> Batch:
        """What the engine is to look up for these features."""

    def _check_outputs(self, features: KeyedJaggedTensor, batch: Batch) -> None:
        """Raises ValueError for what `forward` refuses once it has looked rows up."""

    def _accepted(self) -> Accepted:
        """What inputs may be."""
        return Accepted(self._device, self._session.memory_budget, self._plan.weighted)

    def _call(self, batch: Batch, training: bool) -> Call:
        if (training or self._session.has_rows_of is not None) and not self._alone:
            _check_one_process()
            self._alone = True
        self._take_means(training)
        sizes, partly = self._floats_of_outputs(batch), not all(self._plan.trained)
        return Call(
            session=self._session,
            tables=self._trained_tables() if partly else [table.opened for table in self._tables],
            optimizer=self._optimizer,
            features=self._engine_features(batch.keys, training),
            shape=(batch.size, self._plan.width) if sizes is None else (sum(sizes),),
            update=training,
            trained=self._plan.trained if partly else None,
            sizes=sizes,
            pinned=self._device.type == "cuda",
        )

    def _take_means(self, training: bool) -> None:
        """Has the means that a lookup is to read known, which may take as long as reading the tables."""
        read = self._plan.read_means(training)
        for table in self._tables:
            if table.name in read:
                table.mean()

    def _trained_tables(self) -> list[OpenTable]:
        frozen = {output.table for output in self._plan.outputs if not output.trainable}
        return [table.opened for table in self._tables if table.name not in frozen]

    def _lookup(self, batch: Batch, training: bool) -> torch.Tensor:
        """The output: float32 ``(batch, ΣD)`` if all keys have as many bags, and ``(Σ bags·dim,)`` otherwise."""
        return lookup(self._call(batch, training), batch).to(self._device, non_blocking=True)

    def _floats_of_outputs(self, batch: Batch) -> list[int] | None:
        """How many floats each output has, where keys differ in their number of bags."""
        if batch.bags is None:
            return None
        return [n * dim for n, dim in zip(self._bags_of_outputs(batch), self._plan.dims, strict=True)]

    def _bags_of_outputs(self, batch: Batch) -> list[int]:
        """How many bags each output has, where keys differ in that."""
        assert batch.bags is not None
        bags = dict(zip(batch.keys, batch.bags.tolist(), strict=True))
        return [bags[name] for name in self._plan.features]

    def _outputs(self, values: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
        """Each output's ``(bags, dim)``, of a lookup whose keys differ in their number of bags."""
        return parts_of_output(values, list(zip(self._bags_of_outputs(batch), self._plan.dims, strict=True)))

    def _engine_features(self, keys: tuple[str, ...], training: bool) -> list[_core.Feature]:
        """Which key goes from which table to which columns, for the engine that is open now."""
        cache_key = (keys, training, self._session.generation)
        features = self._features.get(cache_key)
        if features is None:
            if len(self._features) > 16:  # keys that change from batch to batch
                self._features.clear()
            tables = {table.name: table.opened.index for table in self._tables}
            features = self._features[cache_key] = engine_features(self._plan, keys, tables, training)
        return features

    # ------------------------------------------------------------------ what it is made of

    @property
    def fused_optimizer(self) -> FusedTableOptimizer:
        """The optimizer whose parameter groups, one per table, hold the learning rates. Calling it returns it."""
        return self._optimizer

    @property
    def lookup_plan(self) -> LookupPlan:
        """What it looks up."""
        return self._plan

    @property
    def store(self) -> EmbeddingStore:
        """Where the rows are. Raises ValueError for a collection on the meta device, which has none."""
        if self._store is None:
            raise ValueError(f"{type(self).__name__}(device='meta') has shapes only: it is over no store")
        return self._store

    @property
    def attached_to(self) -> EmbeddingStore | None:
        """The store, or None where there is none, or none yet."""
        return self._store

    @property
    def _session(self) -> Session:
        return self.store.session

    @property
    def device(self) -> torch.device:
        """Of inputs and outputs."""
        return self._device

    def optimizer_type(self) -> type[torch.optim.Optimizer]:
        """The optimizer class that was given."""
        return self._optimizer_type

    def optimizer_kwargs(self) -> dict[str, Any]:
        """The hyperparameters that were given."""
        return self._optimizer_kwargs

    def tables(self) -> list[Table]:
        """The tables, in the order of the configs."""
        return list(self._tables)

    def table_definitions(self) -> list[TableDefinition]:
        """What the tables are, in the order of the configs, to open them in another store."""
        return list(self._definitions)

    def feature_names(self) -> list[str]:
        """The features that an input needs, in the order of the configs."""
        return list(self._plan.features)

    def extra_repr(self) -> str:
        """The tables and the store, for ``print(model)``."""
        tables = ", ".join(f"{config.name}: {config.embedding_dim}" for config in self._configs)
        where = f"store={str(self._store.path)!r}" if self._store is not None else f"device={str(self._device)!r}"
        return f"tables={{{tables}}}, {where}"

    # ------------------------------------------------------------------ state dicts

    def _set_state(self, table: str, rows: torch.Tensor) -> None:
        """Makes row i of an optimizer's state, ``(n,)`` or ``(n, k)``, that of the row with id i."""
        _ = self.store  # an Embedding finds its store at its first use
        of_name = {t.name: t for t in self._tables}[table]
        state.copy_state(rows, of_name)

    def get_extra_state(self) -> torch.Tensor:
        """Which store the rows are in, at which step and with which schema: uint8 ``(n,)``, some kilobytes."""
        if self._store is None or self._store.closed:
            return state.nothing()
        return state.describe(self._store, self._tables)

    def set_extra_state(self, extra: Any) -> None:
        """Raises SchemaMismatchError if a state dict comes from a model over other tables, or of another seed."""
        said_nothing = isinstance(extra, torch.Tensor) and extra.numel() == 0
        if not said_nothing and self._store is not None:
            state.check(extra, self.store, self._tables)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Takes rows from the weights of a TorchRec collection, where the state dict has them."""
        weights, others = state.split(state_dict, f"{prefix}{self._prefix}.")
        known = {table.name for table in self._tables}
        unexpected_keys += [f"{prefix}{self._prefix}.{name}.weight" for name in weights if name not in known]
        if not self._tables:
            others.setdefault(f"{prefix}_extra_state", self.get_extra_state())  # says nothing
        if weights:
            # It has no state of ours. What it lacks is told by table.
            missing_keys += [f"{prefix}{self._prefix}.{name}.weight" for name in sorted(known - set(weights))]
            others.setdefault(f"{prefix}_extra_state", self.get_extra_state())
            state.import_rows(self._tables, weights, error_msgs, f"{prefix}{self._prefix}.")
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self._refuse_to_copy()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self._refuse_to_copy()

    def _refuse_to_copy(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled: use save_model and load_model; "
            "AveragedModel takes the dense part of a model alone"
        )


def store_of(model: nn.Module) -> EmbeddingStore:
    """The store of a model's collections. Raises ValueError if they have none, or several."""
    stores = {m.store for m in model.modules() if isinstance(m, Collection)}
    if len(stores) != 1:
        found = ", ".join(str(store.path) for store in stores) or "none"
        raise ValueError(f"the model's collections must be over one store, found {found}")
    return stores.pop()


def tables_of(model: nn.Module) -> set[str]:
    """The names of the tables of a model's collections."""
    return {table.name for m in model.modules() if isinstance(m, Collection) for table in m.tables()}


def _check_one_process() -> None:
    """Raises RuntimeError if there are others in a process group: each would read and train rows of its own."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
        if processes > 1:
            raise RuntimeError(
                f"the process group has {processes} processes, and each would have rows of its own. To spread the "
                "rows over all of them, wrap the model: "
                "DistributedModelParallel(model, sharders=damo_torchrec.distributed.sharders())"
            )


def _device_after(fn: Callable[[torch.Tensor], torch.Tensor]) -> torch.device:
    """Where what a module's `_apply` is given puts a tensor that is on the meta device."""
    try:
        return fn(torch.empty(0, device="meta")).device
    except NotImplementedError:  # there is nothing to copy from the meta device
        return fn(torch.empty(0, device="cpu")).device


def _check_device(device: torch.device | str | None) -> torch.device:
    device = torch.device(device) if device is not None else torch.device("cpu")
    if device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"device must be cpu, cuda or meta, got {device}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device} is not there: torch.cuda.is_available() is False")
    return device
