"""What a collection puts into a model's state dict, and what it takes from one: never rows of its own."""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from damo_torchrec.errors import SchemaMismatchError
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.store.table import Table
from damo_torchrec.tensors import check_plain, plain

_log = logging.getLogger(__name__)
_ROWS_PER_CALL = 65536
# For the store's path, if that is not extraordinarily long, its seed and its step.
_BYTES_OF_STORE = 2048


class Description(torch.Tensor):
    """A tensor that warns when it is pickled, as by ``torch.save(model.state_dict())``: it stands for no rows.

    Whatever is computed of it is a plain tensor, and its pickle is one.
    `torch.distributed.checkpoint`, which saves what it computes of it, is not warned.
    """

    # What torch's notes on extending it name for a subclass whose results are plain; its stubs take it for a method.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # noqa: SLF001

    def __reduce_ex__(self, protocol: Any) -> Any:
        warnings.warn(
            "a state dict of a model over a store has no rows: they stay in the store, where a later run changes them. "
            "damo_torchrec.save_model and load_model keep a model with its rows",
            stacklevel=2,
        )
        return without_warning(self).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]  # torch's

    def __deepcopy__(self, memo: dict[int, Any]) -> "Description":
        return self.clone().as_subclass(Description)


def without_warning(state: torch.Tensor) -> torch.Tensor:
    """The same tensor, for whoever saves rows, too."""
    return state.as_subclass(torch.Tensor)


def nothing() -> torch.Tensor:
    """What is said of rows that are nowhere, or in a store that is closed: uint8 ``(0,)``."""
    return torch.empty(0, dtype=torch.uint8, device="cpu").as_subclass(Description)


def describe(store: EmbeddingStore, tables: Sequence[Table]) -> torch.Tensor:
    """Names the store, its seed and step, and the tables' schemas: JSON in UTF-8 and spaces, uint8 ``(n,)``.

    n depends on the tables alone, so that `torch.distributed.checkpoint` can load it. It warns when it is pickled.
    """
    schemas = {"tables": {table.name: _schema(table) for table in tables}}
    description = {"store": str(store.path), "seed": store.seed, "step": store.step, **schemas}
    content = json.dumps(description).encode().ljust(len(json.dumps(schemas)) + _BYTES_OF_STORE)
    return torch.tensor(list(content), dtype=torch.uint8, device="cpu").as_subclass(Description)


def _schema(table: Table) -> dict[str, Any]:
    """Without the initializer's numbers, in whose last bit machines may differ, and the name that it draws by."""
    schema = asdict(table.session.catalog.schema(table.opened))
    del schema["numbers"], schema["stream"]
    return schema


def check(state: torch.Tensor, store: EmbeddingStore, tables: Sequence[Table]) -> None:
    """Compares what `describe` said of another store with this one. Another step is logged.

    Raises:
        SchemaMismatchError: the seed or the tables differ.
        ValueError: `state` is nothing that `describe` returns.
    """
    try:
        saved = json.loads(bytes(plain("_extra_state", state).tolist()))
        _ = saved["store"], saved["seed"], saved["step"], saved["tables"]
    except (AttributeError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the state dict's _extra_state is none of a collection's: {error!r}") from error
    now = json.loads(bytes(describe(store, tables).tolist()))
    for what in ("seed", "tables"):
        if saved[what] != now[what]:
            raise SchemaMismatchError(
                f"the state dict was made over the store {saved['store']} with {what} {saved[what]}, "
                f"but {store.path} has {now[what]}"
            )
    store.session.continued_rows.ask_for()
    if saved["step"] != now["step"]:
        _log.warning(
            "the state dict is of step %d, but the rows in %s are of step %d: load_model brings both to one step",
            saved["step"],
            store.path,
            now["step"],
        )


def import_rows(
    tables: Sequence[Table], weights: Mapping[str, torch.Tensor], error_msgs: list[str], prefix: str
) -> None:
    """Makes row i of each weight, by table name, the row with id i, some thousands at a time.

    What does not fit is added to `error_msgs`, and changes nothing.
    """
    by_name = {table.name: table for table in tables}
    for name, weight in weights.items():
        if name not in by_name:
            continue
        try:
            check_plain(f"{prefix}{name}.weight", weight)
        except (TypeError, ValueError) as error:
            error_msgs.append(str(error))
            continue
        if weight.dim() != 2 or weight.shape[1] != by_name[name].dim or not weight.is_floating_point():
            error_msgs.append(
                f"{prefix}{name}.weight must be floating point (n, {by_name[name].dim}), "
                f"got {weight.dtype} {tuple(weight.shape)}"
            )
        elif not all_finite(weight):
            error_msgs.append(f"{prefix}{name}.weight must be finite, some of its weights are not")
    if error_msgs:
        return
    for name, weight in weights.items():
        if name in by_name:
            copy_rows(weight, by_name[name])


def all_finite(weight: torch.Tensor) -> bool:
    """Whether no number of a table's weight is NaN or infinite."""
    return all(bool(torch.isfinite(part).all()) for part in torch.split(weight.detach(), _ROWS_PER_CALL))


def copy_rows(weight: torch.Tensor, table: Table) -> None:
    """Makes row i of `weight`, ``(n, dim)``, the row with id i."""
    for begin in range(0, len(weight), _ROWS_PER_CALL):
        rows = weight[begin : begin + _ROWS_PER_CALL].detach()
        table.set(torch.arange(begin, begin + len(rows), device="cpu"), rows)


def copy_state(rows: torch.Tensor, table: Table) -> None:
    """Makes row i of `rows`, ``(n,)`` or ``(n, k)``, the optimizer state of the row with id i.

    Raises:
        ValueError: k is not what the table's rule has, or a number is not finite, or negative: state that TorchRec has,
            too, is sums of squares.
    """
    rows = plain(f"state of table {table.name!r}", rows).detach().to(torch.float32).reshape(len(rows), -1)
    size = table.session.engine.state_size(table.opened.index)
    if rows.shape[1] != size:
        raise ValueError(f"table {table.name!r}: a row has {size} floats of state, got {rows.shape[1]}")
    if not bool((torch.isfinite(rows) & (rows >= 0)).all()):
        raise ValueError(f"table {table.name!r}: the optimizer's state must be finite and not negative")
    for begin in range(0, len(rows), _ROWS_PER_CALL):
        part = rows[begin : begin + _ROWS_PER_CALL].contiguous()
        ids = torch.arange(begin, begin + len(part), device="cpu")
        table.set_new_state(ids, part)


def split(state_dict: Mapping[str, Any], prefix: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights of a TorchRec collection's state dict, by table, and all other entries.

    Args:
        state_dict: of a whole model.
        prefix: of TorchRec's weights, for example ``"sparse.ebc.embedding_bags."``.
    """
    weights: dict[str, torch.Tensor] = {}
    others: dict[str, Any] = {}
    for key, value in state_dict.items():
        if key.startswith(prefix) and key.endswith(".weight") and isinstance(value, torch.Tensor):
            weights[key[len(prefix) : -len(".weight")]] = value
        else:
            others[key] = value
    return weights, others
