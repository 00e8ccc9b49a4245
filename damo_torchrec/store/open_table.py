"""A table of a store that is open: in its engine, and for those who use it."""

import weakref
from dataclasses import dataclass, field
from typing import Any

from damo_torchrec.checkpoints.table_entry import TableSchema
from damo_torchrec.life import AskedLife, Life
from damo_torchrec.optim.spec import OptimizerSpec
from damo_torchrec.optim.state_parts import STATE_PARTS, StatePart
from damo_torchrec.store.table_definition import TableDefinition


@dataclass(frozen=True)
class Layout:
    """How an engine has a table. It stays so: a table that is converted, or restored, gets another.

    Args:
        index: in the engine.
        dim: weights in a row.
        state: what a row's optimizer state is made of.
    """

    index: int
    dim: int
    state: tuple[StatePart, ...]

    @property
    def state_size(self) -> int:
        """Numbers in a row's optimizer state."""
        return sum(part.width(self.dim) for part in self.state)


@dataclass(eq=False)
class OpenTable:
    """A table that is open. The catalog alone changes it.

    Args:
        definition: what the first collection that opened it said of it.
        optimizer: as the engine has it.
        number: on disk.
        layout: in the engine that is open now. Whoever needs more than one of its numbers takes it once.
        by_schema: whether no collection has opened it: what it says beyond the stored schema is not known.
        edited_after: the sequence number of the checkpoint after which rows were last set or deleted by their ids.
        earlier_updates: of its rows, when that was started; 0 if there were none.
        life: what decides how long its rows live; None if that has never been said.
        users: those that cannot do without it, such as collections, and what each asks of that. While one lives, the
            table stays as it is.
        gone: whether the store has it no more.
    """

    definition: TableDefinition
    optimizer: OptimizerSpec
    number: int = 0
    layout: Layout = Layout(-1, 0, ())
    by_schema: bool = False
    edited_after: int = -2  # earlier than the manifest of a store without checkpoints
    earlier_updates: int = 0
    life: Life | None = None
    users: list[tuple[weakref.ref[Any], AskedLife]] = field(default_factory=list)
    gone: bool = False

    def note_user(self, user: object, asked: AskedLife) -> None:
        """Says that `user` cannot do without the table for as long as it lives, and what it asks."""
        others = ((one, its) for one, its in self.users if one() is not None and one() is not user)
        self.users = [*others, (weakref.ref(user), asked)]

    def asked(self) -> list[AskedLife]:
        """What those of its users that live ask of how long rows do."""
        return [its for user, its in self.users if user() is not None]

    def define_by(self, schema: TableSchema) -> None:
        """Takes a stored table's schema for what a collection said of it. REQUIRES: it is not in use."""
        self.definition = TableDefinition.of_schema(self.name, schema)
        self.optimizer = self.definition.optimizer
        self.by_schema = True

    def is_at(self, index: int) -> None:
        """Says where an engine has it, by the definition that it has now."""
        self.layout = Layout(index, self.definition.dim, STATE_PARTS[self.definition.optimizer.kind])

    @property
    def index(self) -> int:
        """In the engine that is open now."""
        return self.layout.index

    @property
    def in_use(self) -> bool:
        """Whether a user lives."""
        return any(reference() is not None for reference, _ in self.users)

    @property
    def name(self) -> str:
        """The table's name."""
        return self.definition.name
