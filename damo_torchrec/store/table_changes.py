"""Stored tables that get another name, or go: `EmbeddingStore.rename_table` and `drop_table`."""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from damo_torchrec.checkpoints.table_entry import TableEntry
from damo_torchrec.errors import DamoError
from damo_torchrec.optim.spec import OptimizerSpec
from damo_torchrec.store.session import Session

_log = logging.getLogger(__name__)


def drop_table(session: Session, name: str) -> None:
    """What `EmbeddingStore.drop_table` does."""
    with changing_table(session, "drop", name) as entry, undone_unless_done(session):
        catalog = session.catalog
        others = {other: stored for other, stored in catalog.manifest.tables.items() if other != name}
        catalog.change_tables(others, f"table {name!r} was dropped")
        table = catalog.open.pop(name, None)
        if table is not None:
            table.gone = True  # before its rows go: who reads them meanwhile finds out
        session.engine.drop_table(entry.number)
        session.hyperparameters.forget(name)
        if session.tables_changed is not None:
            session.tables_changed.note_drop(name)
        _log.info("dropped table %r of the store %s, with %d rows", name, session.path, entry.rows)
    reclaim(session, entry.number)


def rename_table(session: Session, old: str, new: str) -> None:
    """What `EmbeddingStore.rename_table` does."""
    check_name(new)
    with changing_table(session, "rename", old) as entry, undone_unless_done(session):
        catalog = session.catalog
        if new in catalog.names():
            raise ValueError(f"table {old!r} cannot be renamed: the store {session.path} has a table {new!r} already")
        stream = entry.schema.stream or old
        renamed = replace(entry, schema=replace(entry.schema, stream="" if stream == new else stream))
        others = {other: stored for other, stored in catalog.manifest.tables.items() if other != old}
        catalog.change_tables({**others, new: renamed}, f"table {old!r} was renamed {new!r}")
        if (table := catalog.open.pop(old, None)) is not None:
            session.engine.rename_table(table.index, new)
            table.definition = replace(table.definition, name=new)
            catalog.open[new] = table
        session.hyperparameters.forget(old)
        if session.tables_changed is not None:
            session.tables_changed.note_rename(old, new)
        _log.info("renamed table %r of the store %s: it is %r", old, session.path, new)


def check_name(name: str) -> None:
    """Raises TypeError or ValueError for what no table can be called."""
    if not isinstance(name, str):
        raise TypeError(f"a table's name must be a str, got {name!r}")
    if not name:
        raise ValueError("a table's name must not be empty")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"a table's name must be text that UTF-8 can hold, got {name!r}") from None


@contextmanager
def changing_table(session: Session, what: str, name: str) -> Iterator[TableEntry]:
    """For a change of a whole table that nobody uses. What there is of it is noted to have changed.

    Args:
        session: which.
        what: is done to it, for messages.
        name: the table's.

    Yields:
        TableEntry: the table, as a checkpoint of now would have it.

    Raises:
        KeyError: there is no such table.
        ValueError: the store is read-only, gradients wait, or a collection has the table open.
    """
    if session.read_only:
        raise ValueError(f"the store {session.path} is read-only: it cannot {what} tables")
    with session.alone(f"{what} a table of"):
        engine, catalog = session.engine, session.catalog
        session.waiting.check_none(f"{what} a table")
        session.wait_for_checkpoint()
        if name not in catalog.names():
            raise KeyError(f"the store {session.path} has no table {name!r}; its tables are {catalog.names()}")
        if (table := catalog.open.get(name)) is not None and table.in_use:
            gc.collect()  # what a model refers to in a circle may still await that
            if table.in_use:
                raise ValueError(
                    f"cannot {what} table {name!r} of the store {session.path} while a collection has it open: do it "
                    "before the model is made, or delete that"
                )
        changes = session.tables_changed
        session.note_change()
        session.tables_changed = changes
        if changes is not None:
            changes.some = True
        yield catalog.entry(name, engine)


@contextmanager
def undone_unless_done(session: Session) -> Iterator[None]:
    """Has the catalog be as it was where the engine does not follow."""
    catalog = session.catalog
    manifest, lineage, tables = catalog.manifest, catalog.lineage, dict(catalog.open)
    states = [(table, dict(vars(table))) for table in tables.values()]
    try:
        yield
    except Exception:
        catalog.manifest, catalog.lineage = manifest, lineage
        catalog.open.clear()
        catalog.open.update(tables)
        for table, state in states:
            vars(table).update(state)
        raise


@contextmanager
def hidden_table(
    session: Session, name: str, entry: TableEntry, life: bytes | None = None
) -> Iterator[tuple[int, int]]:
    """A table of its own for rows that are to be the table `name`: its number and its index.

    It goes if what follows fails, unless it is the table `name` by then.

    Args:
        session: which.
        name: for messages, and what initial values are drawn by.
        entry: what it is. Of its rows none is there yet.
        life: of these rows, which it has counted already, if `entry` has a life.

    Raises:
        ValueError: its rows are too large for the memory budget.
    """
    engine, catalog = session.engine, session.catalog
    core = entry.to_core(name)
    core.optimizer = OptimizerSpec.of_schema(entry.schema.optimizer).to_core()
    core.initializer = catalog.initializer_of(entry.schema, name)
    core.rows = entry.rows if life is not None else 0
    engine.check_table(core)
    core.number = number = catalog.take_number()
    try:
        if life is not None and entry.life is not None:
            yield number, engine.open_table(core, life=life, life_options=entry.life.to_core())
        else:
            yield number, engine.open_table(core)
    except BaseException:
        stored = catalog.manifest.tables.get(name)
        if stored is None or stored.number != number:  # else an interrupt came when it was done
            with suppress(DamoError):  # nobody asks for its rows
                engine.drop_table(number)
        raise


def reclaim(session: Session, number: int) -> None:
    """Gives back what the rows of a table that is gone take on disk. Left to compactions to come where that fails."""
    try:
        with session.waiting_call("reclaim space of"):
            session.engine.reclaim_table(number)
    except DamoError as error:
        _log.warning("the space of a table that is gone from %s is given back later: %s", session.path, error)
