"""Which rows live, by a plain model that looks at every row after every step and deletes those that go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Lives:
    """Rows of one table, and ids that were seen and have none: by id, the step of the last time and how often.

    Steps bring 4 occurrences at most: of such a step an engine has all rows go together, or none.

    Args:
        sightings: how often an id is seen before it has a row.
        idle_steps: after so many steps without an update a row goes, and what was seen of an id is forgotten.
        idle_seconds: the same by time, where it is not None.
        min_rows: idle rows stay where there would be fewer.
        max_rows: more are cut, to fifteen sixteenths of it: those of the oldest steps.
    """

    sightings: int = 1
    idle_steps: int | None = None
    idle_seconds: float | None = None
    min_rows: int = 0
    max_rows: int | None = None
    rows: dict[int, tuple[int, int]] = field(default_factory=dict)
    seen: dict[int, tuple[int, int]] = field(default_factory=dict)
    step: int = 0
    times: list[float] = field(default_factory=lambda: [0.0])

    def update(self, ids: Sequence[int], time: float) -> None:
        self.step += 1
        self.times.append(time)
        for id, occurrences in Counter(ids).items():
            if id in self.rows:
                self.rows[id] = (self.step, self.rows[id][1] + 1)
                continue
            seen = self.seen.pop(id, (0, 0))[1] + occurrences
            if seen >= self.sightings:
                self.rows[id] = (self.step, 1)
            else:
                self.seen[id] = (self.step, seen)
        for step in range(self.step):
            old = [id for id, (last, _) in self.rows.items() if last == step]
            if self._is_idle(step) and (not self.min_rows or len(self.rows) - len(old) >= self.min_rows):
                self._remove(old)
        if self.max_rows is not None and len(self.rows) > self.max_rows:
            for step in range(self.step):
                if len(self.rows) > self.max_rows - self.max_rows // 16:
                    self._remove([id for id, (last, _) in self.rows.items() if last == step])
        if self.idle_steps is not None:
            self.seen = {id: seen for id, seen in self.seen.items() if seen[0] + self.idle_steps >= self.step}

    def _remove(self, ids: Sequence[int]) -> None:
        for id in ids:
            del self.rows[id]

    def _is_idle(self, step: int) -> bool:
        by_steps = self.idle_steps is not None and step + self.idle_steps < self.step
        by_time = self.idle_seconds is not None and self.times[-1] - self.times[step] >= self.idle_seconds
        return by_steps or by_time
