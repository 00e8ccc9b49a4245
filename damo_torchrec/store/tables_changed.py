"""What was done to whole tables since a checkpoint: who loads that afterwards means the rows as they are now."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class TablesChanged:
    """Changes of tables after a checkpoint, if nothing else has changed.

    Args:
        since: the checkpoint's id.
        renamed: the names that its tables have now, where these are others.
        dropped: names of tables that went, and that one made since may have.
        some: whether there are such changes.
    """

    since: str
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    some: bool = False

    def renames(self, rates: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """Learning rates by module and table, of the checkpoint, by the names that tables have now."""
        return {
            module: {self.renamed.get(table, table): rate for table, rate in by_table.items()}
            for module, by_table in rates.items()
        }

    def note_rename(self, old: str, new: str) -> None:
        """Says that the table `old` is `new` now."""
        first = next((first for first, now in self.renamed.items() if now == old), old)
        self.renamed[first] = new

    def note_drop(self, name: str) -> None:
        """Says that the table `name` is gone."""
        self.renamed = {first: now for first, now in self.renamed.items() if now != name}
        self.dropped.add(name)
