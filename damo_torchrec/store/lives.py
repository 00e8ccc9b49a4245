"""How long the rows of a store's tables live: what is asked, what is in force, and the time that it goes by."""

import gc
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.layout import life_file
from damo_torchrec.checkpoints.table_entry import TableEntry
from damo_torchrec.life import AskedLife, Life
from damo_torchrec.store.clock import Clock
from damo_torchrec.store.life_log import LifeLog
from damo_torchrec.store.open_table import OpenTable

_log = logging.getLogger(__name__)


class Lives:
    """Of the tables of one store. Tables whose rows have a life are open. The session's mutex guards it.

    Args:
        path: the store's, for messages.
        tables: that are open, by name: the catalog's own.

    Attributes:
        clock: what the time is asked of.
    """

    def __init__(self, path: Path, tables: Mapping[str, OpenTable]) -> None:
        self._path = path
        self._tables = tables
        self._log = LifeLog(path)
        self.clock = Clock(path)

    def tables(self) -> list[OpenTable]:
        """Those whose rows have a life."""
        return [table for table in list(self._tables.values()) if table.life is not None]

    def check(self, name: str, life: Life | None, asked: AskedLife) -> None:
        """Raises ValueError if what is asked fits neither what the table has, nor what other collections ask."""
        try:
            _ = asked.over(life or Life())
        except ValueError as error:
            raise ValueError(f"table {name!r}: {error}") from None
        table = self._tables.get(name)
        if table is None or asked.asks_nothing:
            return
        if any(other.difference(asked) for other in table.asked()):
            gc.collect()  # what a notebook's cell has replaced may still await that
        for other in table.asked():
            if difference := other.difference(asked):
                raise ValueError(
                    f"table {name!r} of the store {self._path} is open in another collection whose TableOptions have "
                    f"{difference}. Give both the same, or none in one of them, or delete the one not used any more"
                )

    def check_restorable(self, stored: Mapping[str, TableEntry]) -> None:
        """Raises ValueError if what collections ask contradicts what their tables have in a checkpoint."""
        for name, table in self._tables.items():
            life = (stored[name].life if name in stored else None) or Life()
            for asked in table.asked():
                try:
                    life = asked.over(life)
                except ValueError as error:
                    raise ValueError(f"table {name!r} has other TableOptions in that checkpoint: {error}") from None

    def change(self, table: OpenTable, asked: AskedLife, engine: _core.Store) -> None:
        """Has a table's rows live as long as is asked, from the next update on. REQUIRES: `check` has passed."""
        before = table.life or Life()
        life = asked.over(before)
        if life == before:
            return
        engine.set_life(table.index, life.to_core(), self.clock.read())
        table.life = life
        _log.info("rows of table %r of the store %s live by: %s; before: %s", table.name, self._path, life, before)

    def differ_from(self, stored: Mapping[str, TableEntry]) -> bool:
        """Whether a table's rows live by other rules than its entry says."""
        return any(table.name not in stored or table.life != stored[table.name].life for table in self.tables())

    def files(self, states: Sequence[_core.TableState]) -> dict[str, bytes]:
        """What the engine's `states` know of the lives of rows, by the file of a checkpoint that has it."""
        files = {}
        for table in self.tables():
            life = states[table.index].life
            assert life is not None, f"the engine knows no life of table {table.name!r}"
            files[life_file(table.number)] = life
        return files

    # ------------------------------------------------------------------ updates and checkpoints

    def read_clock(self) -> float:
        """What the update that comes goes by; 0 where no table's rows have a life.

        Raises:
            TypeError, ValueError: the user's clock says no time. So does whatever that raises.
        """
        return self.clock.read() if self.tables() else 0.0

    def note_clock(self, seconds: float, engine: _core.Store) -> None:
        """Says that an update went by that. Warns if the clock has gone back, or leapt ahead."""
        lives = [(table, table.life.narrowest_rule) for table in self.tables() if table.life is not None]
        rules = {table: rule for table, rule in lives if rule is not None}
        if not self.clock.note(seconds, min((rule.seconds or 0 for rule in rules.values()), default=None)):
            return
        gaps = {table: stats.clock_gap for table in rules if (stats := engine.life_stats(table.index)) is not None}
        less = {t.name: rules[t] for t, gap in gaps.items() if gap > (rules[t].seconds or 0) / 2}
        if less:
            self.clock.warn_of_leap(max(gaps.values()), less)

    def watch(self, engine: _core.Store, *, anew: bool = False) -> None:
        """Has `tell` tell what comes and goes from now on, in all tables, or in those that are new."""
        if anew:
            self.clock.restart()
        for table in self.tables():
            self._log.begin(table, engine, anew=anew)

    def tell(self, engine: _core.Store) -> None:
        """Logs what came and went in tables since this was last done."""
        for table in self.tables():
            self._log.tell(table, engine)
