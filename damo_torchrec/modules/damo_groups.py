"""Groups of Damo-Embedding's modules: which each has, and which modules of a store have one in common."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from damo_torchrec.optim.spec import OptimizerSpec
from damo_torchrec.store.embedding_store import EmbeddingStore

_GROUPS = 1 << 16


class Member(Protocol):
    """An Embedding of rows of `dim` weights, whose group is `numbered` where it is its place, and was not given."""

    dim: int
    group: int | None
    numbered: bool

    @property
    def made_with_optimizer(self) -> OptimizerSpec:
        """The update rule with the numbers that were given."""


def check_group(group: object) -> int | None:
    """A group as it was given; None where none was. Raises TypeError or ValueError for what is none."""
    if group is None or (group == -1 and not isinstance(group, bool)):
        return None
    if isinstance(group, bool) or not isinstance(group, int):
        raise TypeError(f"group must be an int or None, got {group!r}")
    if not 0 <= group < _GROUPS:
        raise ValueError(f"group must be in 0..{_GROUPS - 1}, got {group}")
    return group


def table_name(group: int | None, dim: int) -> str:
    """The table of a group; one that has no number yet has a name that no store ever sees."""
    return f"group_{'of_its_own' if group is None else group}_dim_{dim}"


def group_of_table(name: str) -> int | None:
    """The group whose table has this name; None if none's has."""
    match = re.fullmatch(r"group_(\d{1,5})_dim_\d+", name)
    return int(match[1]) if match else None


@dataclass
class _Members:
    """The Embeddings of one store. References without callbacks: an interrupt that comes while one runs is lost."""

    store: weakref.ref[EmbeddingStore]
    taken: set[int] = field(default_factory=set)
    modules: list[weakref.ref[Member]] = field(default_factory=list)

    def others(self, module: Member) -> list[Member]:
        living = [other for reference in self.modules if (other := reference()) is not None]
        return [other for other in living if other is not module and other.group == module.group]


_stores: list[_Members] = []


def _members_of(store: EmbeddingStore) -> _Members:
    _stores[:] = [members for members in _stores if members.store() is not None]
    found = next((members for members in _stores if members.store() is store), None)
    if found is None:
        found = _Members(weakref.ref(store))
        _stores.append(found)
    return found


def free_group(store: EmbeddingStore) -> int:
    """The lowest number that no Embedding has had in this store since it was opened. Raises ValueError without one."""
    taken = _members_of(store).taken
    number = next((number for number in range(_GROUPS) if number not in taken), None)
    if number is None:
        raise ValueError(f"the store {store.path} has had Embeddings of all {_GROUPS} groups")
    return number


def check_member(module: Member, store: EmbeddingStore) -> None:
    """Whether a module, which has a group, can be over this store.

    Raises:
        ValueError: others have its group there, and it is theirs by their place and not by name, or the other way
            round; or they train the same rows with another optimizer.
    """
    members = _members_of(store)
    if _clash(module, members.others(module)):
        gc.collect()  # what a notebook's cell has replaced may still await that
        if clash := _clash(module, members.others(module)):
            raise ValueError(clash)


def _clash(module: Member, others: Iterable[Member]) -> str | None:
    for other in others:
        if other.numbered != module.numbered:
            return f"group {module.group} is given to one Embedding, and is another's by its place: give it to both"
        ours, theirs = module.made_with_optimizer, other.made_with_optimizer
        if other.dim == module.dim and ours != theirs:
            return (
                f"Embeddings of group {module.group} and dim {module.dim} are over the same rows, which have one "
                f"optimizer: {theirs.difference(ours)}"
            )
    return None


def add_member(module: Member, store: EmbeddingStore) -> None:
    """Notes that a module is over this store."""
    assert module.group is not None
    members = _members_of(store)
    members.taken.add(module.group)
    living = [reference for reference in members.modules if reference() not in (None, module)]
    members.modules = [*living, weakref.ref(module)]
