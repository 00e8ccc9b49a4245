"""What came and went in tables, and why, in the log: a line for each checkpoint and table where there was something."""

import logging
import weakref
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.stats import LifeStats
from damo_torchrec.store.open_table import OpenTable

_log = logging.getLogger(__name__)


def life_stats(table: OpenTable, engine: _core.Store) -> LifeStats | None:
    """What came and went in a table; None if nothing has ever been said of how long its rows live."""
    life = table.life
    stats = engine.life_stats(table.index) if life is not None else None
    if life is None or stats is None:
        return None
    return LifeStats(
        rows=stats.rows,
        sighted=stats.sighted,
        created=stats.counts.created,
        expired=dict(zip(life.expire, stats.counts.expired, strict=True)),
        cut=stats.counts.cut,
        forgotten_sightings=stats.counts.forgotten_sightings,
        ladder=tuple(stats.ladder.positions),
        memory_bytes=stats.memory_bytes,
    )


class LifeLog:
    """Tells what came and went since it told last. The session's mutex guards it.

    Args:
        path: the store's, for messages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told: weakref.WeakKeyDictionary[OpenTable, LifeStats] = weakref.WeakKeyDictionary()

    def begin(self, table: OpenTable, engine: _core.Store, *, anew: bool) -> None:
        """Says that what is told of a table is what comes from now on; unless `anew`, if that was not said before."""
        if (anew or table not in self._told) and (now := life_stats(table, engine)) is not None:
            self._told[table] = now

    def tell(self, table: OpenTable, engine: _core.Store) -> None:
        """Logs a line of the table, if there is something new."""
        now = life_stats(table, engine)
        if now is None:
            return
        before, self._told[table] = self._told.get(table, now), now
        news = [
            (now.created - before.created, "were made"),
            *((n - before.expired.get(rule, n), f"expired by {rule}") for rule, n in now.expired.items()),
            (now.cut - before.cut, f"were cut by max_rows={table.life.max_rows if table.life else None}"),
        ]
        told = [f"{n} {what}" for n, what in news if n > 0]
        if (forgotten := now.forgotten_sightings - before.forgotten_sightings) > 0:
            told.append(f"{forgotten} ids were forgotten that had been seen too rarely")
        if told:
            _log.info(
                "rows of table %r of the store %s: %s; %d live, and %d ids are seen that have none",
                table.name,
                self._path,
                ", ".join(told),
                now.rows,
                now.sighted,
            )
