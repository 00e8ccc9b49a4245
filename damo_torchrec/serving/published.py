"""`Published`: a delta in a directory, as far as its manifest tells."""

import re
from dataclasses import dataclass
from pathlib import Path

from damo_torchrec.checkpoints.delta import DeltaManifest


@dataclass(frozen=True)
class Published:
    """A delta in a directory.

    Args:
        path: where it is.
        manifest: what it says of itself.
    """

    path: Path
    manifest: DeltaManifest

    @property
    def id(self) -> str:
        """Of the state that it leads to."""
        return self.manifest.id

    @property
    def line(self) -> list[str]:
        """Ids of the states that it leads from."""
        return self.manifest.line

    @property
    def order(self) -> tuple[int, list[int]]:
        """What deltas are sorted by: when they were made, and the numbers in their names."""
        return self.manifest.sequence, order_of(self.path)

    def covers(self, other: "Published") -> bool:
        """Whether it leads from wherever the other one does, and from its end or to it."""
        return {other.id, *other.line} < {self.id, *self.line} and self.id not in other.line


def order_of(path: Path) -> list[int]:
    """The numbers in a delta's name."""
    return [int(number) for number in re.findall(r"\d+", path.name)]
