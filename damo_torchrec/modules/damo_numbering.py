"""Which groups a model's Embeddings have that were given none: by their place, or as when the model was saved."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from damo_torchrec.errors import SchemaMismatchError
from damo_torchrec.modules import damo_groups
from damo_torchrec.modules.embedding import Embedding
from damo_torchrec.modules.wrappers import unwrapped
from damo_torchrec.store.embedding_store import EmbeddingStore


@dataclass(frozen=True)
class SavedGroups:
    """Which tables the modules of a saved model had.

    Args:
        tables_by_module: the names of a module's tables, by the module's name in the model.
        taken: the groups of all tables that were saved, the model's or not: no new module gets one of these.
    """

    tables_by_module: Mapping[str, Iterable[str]]
    taken: frozenset[int]

    @staticmethod
    def of(by_module: Mapping[str, Mapping[str, Any]] | None, tables: Iterable[str]) -> "SavedGroups | None":
        """Of a checkpoint: something by module and table, and all its tables. None where it does not say so much."""
        if by_module is None:
            return None
        names = {*tables, *(table for of_module in by_module.values() for table in of_module)}
        groups = frozenset(group for name in names if (group := damo_groups.group_of_table(name)) is not None)
        return SavedGroups(by_module, groups)

    def group_of(self, name: str, dim: int) -> int | None:
        """The group that the module of this name had; None if there was none, or one of another dim."""
        for table in self.tables_by_module.get(name, ()):
            group = damo_groups.group_of_table(table)
            if group is not None and damo_groups.table_name(group, dim) == table:
                return group
        return None

    def tables(self) -> set[str]:
        """The tables of groups that the model had."""
        names = {table for tables in self.tables_by_module.values() for table in tables}
        return {name for name in names if damo_groups.group_of_table(name) is not None}


@contextmanager
def groups_numbered(model: nn.Module, saved: SavedGroups | None = None) -> Iterator[None]:
    """Has Embeddings that were given no group have theirs; if what follows fails, they have what they had.

    Without `saved`, that is each one's place among the model's Embeddings, of those that have none yet. With it, each
    has the group that it had when the model was saved, whatever it has had since, and is over that table; a module that
    is new keeps its group, or gets its place, or the next one that is free, which no table of `saved` has.

    Raises:
        ValueError: others have a group there otherwise, or train its rows with another optimizer.
        SchemaMismatchError: a module is over a store already, which has the table of its group with another schema.
    """
    numbers = _numbers(model, saved)
    changed = {module: group for module, group in numbers.items() if module.group != group}
    before = {module: (module.group, module.attached_to) for module in changed}
    try:
        try:
            _renumber({module: (group, before[module][1]) for module, group in changed.items()})
        except SchemaMismatchError as error:
            raise SchemaMismatchError(
                f"the model's Embeddings have other groups than when it was saved, and cannot have these now: {error}. "
                "Or load into a model that has not been over this store: damo_embedding_init takes the checkpoint as "
                "reload, with a new workdir"
            ) from error
        yield
    except BaseException:
        _renumber(before)
        raise


def _numbers(model: nn.Module, saved: SavedGroups | None) -> dict[Embedding, int]:
    found = [(name, module) for name, module in unwrapped(model).named_modules() if isinstance(module, Embedding)]
    numbers: dict[Embedding, int] = {}
    taken = set(saved.taken) if saved is not None else set()
    awaiting: list[tuple[int, Embedding]] = []
    for place, (name, module) in enumerate(found):
        if module.group is not None and not (saved is not None and module.numbered):
            if module.numbered or saved is not None:
                taken.add(module.group)
        elif saved is not None and (group := saved.group_of(name, module.dim)) is not None:
            numbers[module] = group
        else:
            awaiting.append((place, module))
    for place, module in awaiting:
        candidates = itertools.chain([module.group, place], itertools.count(len(found)))
        numbers[module] = next(group for group in candidates if group is not None and group not in taken)
        taken.add(numbers[module])
    return numbers


def _renumber(groups: Mapping[Embedding, tuple[int | None, EmbeddingStore | None]]) -> None:
    """Gives modules groups, and stores: all have theirs before the first one looks who else has it."""
    for module, (group, _) in groups.items():
        module.detach_store()
        module.number(group)
    for module, (_, store) in groups.items():
        if store is not None:
            module.attach_store(store)
