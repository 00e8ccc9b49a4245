"""A store whose rows die, as plain dictionaries that forget them at once, and the deltas that it would write."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from damo_torchrec.checkpoints.array_file import ArrayWriter
from damo_torchrec.checkpoints.delta import DeltaManifest, TableChanges
from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.checkpoints.ladder import CLASSES, Ladder, position
from damo_torchrec.checkpoints.layout import array_files, header_file
from damo_torchrec.checkpoints.manifest import new_id


@dataclass(frozen=True)
class Row:
    """Weights, and when and how often they were updated."""

    weights: tuple[float, ...]
    last_step: int
    count: int


@dataclass(frozen=True)
class Moment:
    """A state that deltas begin from."""

    id: str
    iter: int


@dataclass
class PlainStore:
    """One table of a store."""

    rows: dict[int, Row]
    iter: int
    moments: list[Moment]
    ladder: Ladder = field(default_factory=Ladder)
    deletions: dict[int, int] = field(default_factory=dict)

    def update(self, weights: dict[int, tuple[float, ...]]) -> None:
        self.iter += 1
        for i, row in weights.items():
            before = self.rows.get(i)
            self.rows[i] = Row(row, self.iter, before.count + 1 if before else 1)

    def set(self, weights: dict[int, tuple[float, ...]]) -> None:
        for i, row in weights.items():
            if i in self.rows:
                self.deletions[i] = self.iter  # servers may have one that lives for longer
            self.rows[i] = Row(row, self.iter, 0)
        self.forget()

    def delete(self, ids: list[int]) -> None:
        for i in ids:
            if self.rows.pop(i, None) is not None:
                self.deletions[i] = self.iter

    def raise_ladder(self, to: Ladder) -> None:
        self.ladder = self.ladder.over(to)
        self.forget()

    def forget(self) -> None:
        """Drops what is dead."""
        ids = np.array([*self.rows], dtype=np.int64)
        headers = np.array([(r.last_step, r.count) for r in self.rows.values()], dtype=np.uint32).reshape(-1, 2)
        for i in ids[self.ladder.dead(headers, ids)].tolist():
            del self.rows[i]

    def delta(self, path: Path, since: Moment, seed: int, now: Moment | None = None) -> Path:
        """Writes what changed since a moment, and is at another one then, or at `now`, which it is at already."""
        path.mkdir()
        changed = sorted(i for i, row in self.rows.items() if row.last_step >= since.iter)
        deleted = sorted(i for i, when in self.deletions.items() if when >= since.iter and i not in changed)
        rows = [self.rows[i] for i in changed]
        arrays = [
            np.array(changed, dtype=np.int64),
            np.array([row.weights for row in rows], dtype=np.float32).reshape(len(rows), -1 if rows else 2),
            np.array(deleted, dtype=np.int64),
            np.array([(row.last_step, row.count) for row in rows], dtype=np.uint32).reshape(-1, 2),
        ]
        for name, array in zip([*array_files(1), header_file(1)], arrays, strict=True):
            with ArrayWriter(path / name, array.dtype, *array.shape[1:]) as writer:
                writer.append(array)
        if now is None:
            now = Moment(new_id(), self.iter)
            self.moments.append(now)
        line = [moment.id for moment in self.moments[self.moments.index(since) : self.moments.index(now)]]
        DeltaManifest(
            id=now.id,
            base=since.id,
            line=line,
            seed=seed,
            since_step=since.iter,
            step=self.iter,
            tables={"t": TableChanges(1, 2, len(changed), len(deleted), [*self.ladder.positions])},
            files={file.name: FileEntry.of(file) for file in sorted(path.iterdir())},
        ).write(path)
        return path


@dataclass(frozen=True)
class Policy:
    """By which a ladder rises: idle rows go, sooner where they had few updates, and old ones of a full table."""

    idle: int
    idle_of_few: int
    few: int
    most: int
    credit: int

    @staticmethod
    def any(chance: random.Random) -> "Policy":
        idle, of_few, most = chance.choice([5, 20, 200]), chance.choice([3, 10, 100]), chance.choice([3, 9, 99])
        return Policy(idle, of_few, chance.choice([0, 2, 4]), most, chance.choice([0, 4, 1000]))

    def ladder(self, store: PlainStore, part: int) -> Ladder:
        """As high as it wants it after an update."""
        steps = [max(store.iter - (self.idle_of_few if c < self.few else self.idle), 0) for c in range(CLASSES)]
        if len(store.rows) > self.most:
            places = sorted(row.last_step + self.credit * row.count.bit_length() for row in store.rows.values())
            cut = places[len(places) - self.most]
            for c in range(CLASSES):
                steps[c] = max(steps[c], min(cut - self.credit * c, store.iter))
        steps = [max(steps[c:]) for c in range(CLASSES)]  # ladders fall with the class
        return Ladder(tuple(position(step, part if step < store.iter else 0) for step in steps))
