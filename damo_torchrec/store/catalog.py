"""Which tables a store has: those of its manifest, and those that collections opened since."""

import gc
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.layout import CHECKPOINTS
from damo_torchrec.checkpoints.lineage import Lineage
from damo_torchrec.checkpoints.manifest import Manifest, new_id
from damo_torchrec.checkpoints.table_entry import NEVER_GIVEN, TableEntry, TableSchema
from damo_torchrec.errors import DamoError, SchemaMismatchError
from damo_torchrec.init import from_description
from damo_torchrec.life import ASKS_NOTHING, AskedLife, Life
from damo_torchrec.optim.spec import OptimizerSpec
from damo_torchrec.store.lives import Lives
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.store.schemas import call_that_converts, differ, differences
from damo_torchrec.store.table_definition import TableDefinition

_log = logging.getLogger(__name__)


class Catalog:
    """The tables of one store.

    Args:
        path: the store's, for messages.
        manifest: of the checkpoint that the store goes on from.

    Attributes:
        manifest: of the checkpoint that was made last, or that the store goes on from.
        lineage: the states that led here.
        checkpoints: those of the store's own line of states, inside the store.
        open: tables that are open, by name.
        lives: how long their rows live.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path = path
        self.manifest = manifest
        self.lineage = Lineage()
        self.checkpoints = CheckpointLine(path / CHECKPOINTS, None, with_unknown=True)
        self.open: dict[str, OpenTable] = {}
        self.lives = Lives(path, self.open)

    def check(self, definition: TableDefinition, engine: _core.Store) -> None:
        """Whether the table can be opened. It keeps the initial values that it began with.

        Raises:
            SchemaMismatchError: the store has a table of this name with another schema.
            ValueError: its rows are too large for the memory budget, or how long they are to live is contradictory.
        """
        self.lives.check(definition.name, self.life(definition.name), definition.life)
        if definition.name in self.open:
            existing = self.schema(self.open[definition.name])
        elif definition.name in self.manifest.tables:
            existing = self.manifest.tables[definition.name].schema
        else:
            schema = _core.TableSchema()
            schema.name, schema.dim = definition.name, definition.dim
            schema.optimizer = definition.optimizer.to_core()
            schema.weight_type = _core.WeightType[definition.row_dtype.upper()]
            engine.check_table(schema)
            return
        wanted = definition.schema()
        if differ(existing, wanted):
            raise SchemaMismatchError(
                f"table {definition.name!r} of the store {self._path} has {differences(existing, wanted)}. To have "
                f"its rows go on so, call {call_that_converts(definition.name, existing, wanted)} first"
            )
        if existing.initializer != wanted.initializer:
            _log.info(
                "table %r of the store %s keeps the initial values that it began with, %s, and ignores %s",
                definition.name,
                self._path,
                existing.initializer,
                wanted.initializer,
            )

    def check_restorable(self, manifest: Manifest, source: Path) -> None:
        """Raises SchemaMismatchError if a table that is in use, or the seed, is another in `manifest`.

        Raises ValueError if what collections ask of how long rows live contradicts what the tables have there.
        """
        check_seed(source, manifest.seed, self.manifest.seed)
        self.lives.check_restorable(manifest.tables)
        others = {
            name: table
            for name, table in self.open.items()
            if name not in manifest.tables or differ(self.schema(table), manifest.tables[name].schema)
        }
        if any(table.in_use for table in others.values()):
            gc.collect()  # what a model refers to in a circle may still await that
        for name, table in others.items():
            if table.in_use and name in manifest.tables:
                now, then = self.schema(table), manifest.tables[name].schema
                raise SchemaMismatchError(
                    f"table {name!r} of the checkpoint {source} has {differences(then, now)}. To have its rows go on "
                    "so, open a store over that checkpoint (restore=) without this table's collection, call "
                    f"{call_that_converts(name, then, now)} and checkpoint; or make the model then and have load_model "
                    "load the dense part of that checkpoint, which leaves the rows as they are now"
                )

    def tables_that_differ(self, manifest: Manifest, engine: _core.Store) -> set[str]:
        """Names of the tables with rows, or updates, that another checkpoint has otherwise, as far as counts tell."""
        now = {name: (table.iter, table.rows) for name, table in self.manifest.tables.items()}
        now.update({name: (engine.iter(table.index), engine.rows(table.index)) for name, table in self.open.items()})
        then = {name: (table.iter, table.rows) for name, table in manifest.tables.items()}
        edited = {name for name, table in self.open.items() if table.edited_after >= manifest.sequence}
        return {name for name, counts in now.items() if any(counts) and counts != then.get(name)} | edited

    def next_number(self) -> int:
        """A number on disk that no table has had."""
        taken = [table.number + 1 for table in self.open.values()]
        return max([self.manifest.next_table_number, *taken])

    def _new_number(self) -> int:
        """The same for a new table. Raises DamoError if there is none."""
        if (number := self.next_number()) >= NEVER_GIVEN:
            raise DamoError(f"the store {self._path} can have no more tables: it has given out all numbers for them")
        return number

    def take_number(self) -> int:
        """The same, and no other table gets it from now on, whatever becomes of this one."""
        number = self._new_number()
        self.manifest = replace(self.manifest, next_table_number=number + 1)
        return number

    def adopt(
        self, manifest: Manifest, lineage: Lineage, engine: _core.Store, lives: Mapping[str, bytes] | None = None
    ) -> None:
        """Goes on from `manifest`, the end of `lineage`, whose rows `engine` holds, with the tables that are open.

        And with those whose rows have a life, what the engine knew of which is in `lives`: every checkpoint has to say.
        """
        lives = lives or {}
        self.manifest = manifest
        self.lineage = lineage
        tables = list(self.open.values())
        self.open.clear()
        for table in tables:
            entry = manifest.tables.get(table.name)
            if table.in_use or (entry and not differ(table.definition.schema(), entry.schema)):
                self._add(table, engine, lives.get(table.name))
                for asked in table.asked():
                    self.lives.change(table, asked, engine)
            elif entry:
                table.define_by(entry.schema)
                self._add(table, engine, lives.get(table.name))
            else:
                table.gone = True
        for name in lives.keys() - self.open.keys():
            self._open_by_schema(name, engine, lives[name])

    def entry(self, name: str, engine: _core.Store) -> TableEntry:
        """The table of this name as a checkpoint of now would have it. Raises KeyError."""
        if (table := self.open.get(name)) is None:
            return self.manifest.tables[name]
        iteration, rows = engine.iter(table.index), engine.rows(table.index)
        return TableEntry(table.number, self.schema(table), iteration, rows, table.life)

    def change_tables(self, tables: Mapping[str, TableEntry], why: str) -> None:
        """Goes on with other stored tables, of numbers that it has given out. Deltas begin anew, as `why` says.

        REQUIRES: no checkpoint is being written.
        """
        self.manifest = replace(self.manifest, tables=dict(tables), next_table_number=self.next_number())
        self.lineage = Lineage(begun_by=why)

    def take_over(self, name: str, entry: TableEntry, index: int) -> None:
        """Has a new stored table be open, which the engine has at `index`. REQUIRES: `change_tables` named it."""
        definition = TableDefinition.of_schema(name, entry.schema)
        table = OpenTable(definition, definition.optimizer, number=entry.number, by_schema=True)
        table.earlier_updates = entry.iter if entry.rows else 0
        table.is_at(index)
        self.open[name] = table

    def open_table(self, definition: TableDefinition, engine: _core.Store) -> OpenTable:
        """The table of this name, which is opened, or made, if it is not open. REQUIRES: `check` has passed."""
        if definition.name not in self.open:
            self._add(OpenTable(definition, definition.optimizer), engine)
        table = self.open[definition.name]
        if table.by_schema:
            table.definition, table.by_schema = definition, False
        self.lives.change(table, definition.life, engine)
        return table

    def open_stored(self, name: str, engine: _core.Store) -> OpenTable:
        """The table of this name, opened as it is stored if it is not open.

        Raises:
            KeyError: there is none.
            ValueError: this version does not know its initializer.
        """
        if name not in self.open:
            self._open_by_schema(name, engine)
        return self.open[name]

    def _open_by_schema(self, name: str, engine: _core.Store, life: bytes | None = None) -> None:
        definition = TableDefinition.of_schema(name, self.manifest.tables[name].schema)
        self._add(OpenTable(definition, definition.optimizer, by_schema=True), engine, life)

    def life(self, name: str) -> Life | None:
        """What decides how long the rows of the table `name` live; None if that has never been said."""
        if (table := self.open.get(name)) is not None:
            return table.life
        return self.manifest.tables[name].life if name in self.manifest.tables else None

    def ask_life(self, table: OpenTable, asked: AskedLife, engine: _core.Store) -> None:
        """As where a collection that asks this opens the table. Raises ValueError if that contradicts itself."""
        self.lives.check(table.name, table.life, asked)
        self.lives.change(table, asked, engine)

    def to_be_read(self, definition: TableDefinition) -> TableDefinition:
        """The same with the optimizer that the stored table has, which nothing is trained with, and its life."""
        if not definition.life.asks_nothing:
            _log.info(
                "table %r of the store %s is only read: how long rows live is as it is stored, and %s is ignored",
                definition.name,
                self._path,
                definition.life,
            )
            definition = replace(definition, life=ASKS_NOTHING)
        entry = self.manifest.tables.get(definition.name)
        if entry is None:
            return definition
        return replace(definition, optimizer=TableDefinition.of_schema(definition.name, entry.schema).optimizer)

    def names(self) -> list[str]:
        """Of all tables, open or stored."""
        return sorted({*self.manifest.tables, *self.open})

    def set_optimizers(
        self, tables: Sequence[OpenTable], specs: Mapping[str, OptimizerSpec], engine: _core.Store
    ) -> None:
        """Has the next update of each table use its hyperparameters in `specs`, by name."""
        for table in tables:
            spec = specs[table.definition.name]
            if spec != table.optimizer:
                engine.set_optimizer(table.index, spec.to_core())
                table.optimizer = spec

    def _add(self, table: OpenTable, engine: _core.Store, life: bytes | None = None) -> None:
        """Makes `table` known to an engine that holds the manifest's rows, with what one knew of their life."""
        entry = self.manifest.tables.get(table.name)
        table.number = entry.number if entry else self._new_number()
        table.earlier_updates = entry.iter if entry and entry.rows else 0
        schema = self._engine_schema(table)
        schema.number = table.number
        schema.iter = entry.iter if entry else 0
        schema.rows = entry.rows if entry else 0
        table.life = entry.life if entry else None
        if life is not None and table.life is not None:
            table.is_at(engine.open_table(schema, life=life, life_options=table.life.to_core()))
        else:
            table.is_at(engine.open_table(schema))
        table.edited_after = OpenTable.edited_after
        self.open[table.name] = table

    def let_deletions_go(self, engine: _core.Store) -> None:
        """Has records of deletions go that are older than all states which a delta can begin from.

        To be called before a checkpoint: its lineage has these states, and its rows have to have the records since.
        """
        for name in self.names():
            number = self.open[name].number if name in self.open else self.manifest.tables[name].number
            if before := self.lineage.least_iter(name):
                engine.set_reclaimable_deletions(number, before)

    def open_without_rows(self, table: OpenTable, engine: _core.Store) -> int:
        """Opens another table like `table` in the engine, which never has a row; returns its index."""
        schema = self._engine_schema(table)
        schema.number = NEVER_GIVEN
        return engine.open_table(schema)

    def _engine_schema(self, table: OpenTable) -> _core.TableSchema:
        definition = table.definition
        schema = _core.TableSchema()
        schema.name = definition.name
        schema.dim = definition.dim
        schema.weight_type = _core.WeightType[definition.row_dtype.upper()]
        schema.optimizer = table.optimizer.to_core()
        schema.initializer = self.initializer(table)
        return schema

    def initializer(self, table: OpenTable) -> _core.Initializer:
        """What the initial values of a table's rows are drawn from."""
        return self.initializer_of(self.schema(table), table.name)

    def initializer_of(self, schema: TableSchema, name: str) -> _core.Initializer:
        """The same of a table of this schema and name."""
        return _initializer(schema, self.manifest.seed, name)

    def schema(self, table: OpenTable) -> TableSchema:
        """What may not change while the table has rows, and the initial values that it began with."""
        entry = self.manifest.tables.get(table.name)
        return entry.schema if entry else table.definition.schema()

    def step(self, engine: _core.Store) -> int:
        """The largest number of updates of any table."""
        live = {name: engine.iter(table.index) for name, table in list(self.open.items())}
        stored = {name: entry.iter for name, entry in self.manifest.tables.items()}
        return max({**stored, **live}.values(), default=0)

    def new_manifest(self, sequence: int, states: Sequence[_core.TableState]) -> Manifest:
        """A manifest of the tables as the engine's `states` say, with the last one's id if no row has changed."""
        live = {
            name: TableEntry(
                number=table.number,
                schema=self.schema(table),
                iter=states[table.index].iter,
                rows=states[table.index].rows,
                life=table.life,
            )
            for name, table in self.open.items()
        }
        tables = {**self.manifest.tables, **live}
        iters = {name: table.iter for name, table in tables.items()}
        lives = [name for name, table in tables.items() if table.life is not None]
        unchanged = self.lineage.unchanged_id(iters, lives)
        return Manifest(
            id=unchanged or new_id(),
            seed=self.manifest.seed,
            step=max((table.iter for table in tables.values()), default=0),
            sequence=sequence,
            next_table_number=self.next_number(),
            tables=tables,
        )


def core_tables(manifest: Manifest) -> list[_core.TableSchema]:
    """The tables as an engine takes them that loads their journal: with what ids that have no row yet read."""
    tables = []
    for name, table in manifest.tables.items():
        core = table.to_core(name)
        core.optimizer = OptimizerSpec.of_schema(table.schema.optimizer).to_core()
        core.initializer = _initializer(table.schema, manifest.seed, name)
        tables.append(core)
    return tables


def _initializer(schema: TableSchema, seed: int, name: str) -> _core.Initializer:
    """The engine's initializer, with the numbers that were worked out when the table was made."""
    initializer, num_embeddings = from_description(schema.initializer)
    core = initializer.to_core(num_embeddings, schema.dim)
    for number, value in asdict(schema.numbers).items():
        setattr(core, number, value)
    core.stream_key = _stream_key(seed, schema.stream or name)
    return core


def check_seed(path: Path, stored: int, seed: int | None) -> None:
    """Raises SchemaMismatchError if a seed is asked for, and `stored` is another."""
    if seed is not None and seed != stored:
        raise SchemaMismatchError(f"{path} has the seed {stored}, got seed={seed}")


def empty_manifest(seed: int) -> Manifest:
    """Of a store without tables, before its first checkpoint."""
    return Manifest(seed=seed, step=0, sequence=-1, next_table_number=1, tables={})


def check_is_seed(seed: object) -> None:
    """Raises TypeError or ValueError for what is neither None nor a seed."""
    if seed is None:
        return
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int or None, got {seed!r}")
    if not -(2**127) <= seed < 2**127:
        raise ValueError(f"seed must fit 128 bits, got {seed}")


def _stream_key(seed: int, table: str) -> int:
    """Where a table's random numbers begin: the first 8 bytes of BLAKE2b of its name, keyed by the seed."""
    key = seed.to_bytes(16, "little", signed=True)
    return int.from_bytes(hashlib.blake2b(table.encode(), digest_size=8, key=key).digest(), "little")
