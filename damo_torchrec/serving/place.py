"""Where what is served is among the states that a store went through, and how it gets to the newest published one."""

from collections.abc import Sequence
from dataclasses import dataclass

from damo_torchrec.checkpoints.delta import DeltaManifest
from damo_torchrec.checkpoints.lineage import Lineage
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.serving.published import Published


@dataclass(frozen=True)
class Place:
    """A state that is served.

    Args:
        states: ids of the state, which may have two: that of a delta, and of a checkpoint with the same rows.
        past: ids of these and of all that are known to have led there.
        step: of the rows.
        sequence: when it was made, in microseconds since 1970; 0 if it does not say.
    """

    states: frozenset[str]
    past: frozenset[str]
    step: int
    sequence: int

    @staticmethod
    def of_checkpoint(manifest: Manifest, lineage: Lineage) -> "Place":
        """That of a checkpoint with the lineage that leads to it."""
        return Place(frozenset([manifest.id]), frozenset(lineage.ids()), manifest.step, manifest.sequence)

    def after(self, delta: DeltaManifest) -> "Place":
        """Where a delta leads. REQUIRES: it leads on from here."""
        states = frozenset([delta.id, delta.same_rows]) if delta.same_rows else frozenset([delta.id])
        return Place(states, self.past | states | frozenset(delta.line), delta.step, delta.sequence)

    def leads_on(self, delta: DeltaManifest) -> bool:
        """Whether a delta can be applied here."""
        return not self.states.isdisjoint(delta.line)

    def is_behind(self, delta: DeltaManifest) -> bool:
        """Whether what a delta brings is part of what is served, or is older."""
        if delta.id in self.past:
            return True
        if delta.sequence and self.sequence:
            return delta.sequence < self.sequence
        return delta.step <= self.step and not self.leads_on(delta)


def route(place: Place, deltas: Sequence[Published]) -> list[Published]:
    """The fewest deltas that lead from a place to the newest state that can be reached, in their order."""
    leading: dict[str, list[Published]] = {}
    for delta in deltas:
        if delta.id not in place.past:
            for state in delta.line:
                leading.setdefault(state, []).append(delta)
    before: dict[str, Published | None] = dict.fromkeys(place.states)
    by: dict[str, Published] = {}
    reached = [*place.states]
    for state in reached:  # which grows meanwhile
        for delta in leading.get(state, []):
            if delta.id not in before:
                before[delta.id], by[delta.id] = by.get(state), delta
                reached.append(delta.id)
    found: list[Published] = []
    step: Published | None = max(by.values(), key=lambda delta: delta.order, default=None)
    while step is not None:
        found.append(step)
        step = before[step.id]
    return found[::-1]


@dataclass(frozen=True)
class Following:
    """How far what is served is behind what is published in watched directories, as of the last look.

    Args:
        newest_step: of the newest state that is published, or of what is served, if that is newer.
        waiting: deltas that are newer than what is served.
        refused: deltas that are damaged or do not fit, or that the disk refuses.
        reason: why what is newest cannot be reached; None if it can, or is served.
    """

    newest_step: int
    waiting: int = 0
    refused: int = 0
    reason: str | None = None

    def __add__(self, other: "Following") -> "Following":
        """That of two directories."""
        return Following(
            max(self.newest_step, other.newest_step),
            self.waiting + other.waiting,
            self.refused + other.refused,
            self.reason or other.reason,
        )


def following(place: Place, deltas: Sequence[Published], refused: Sequence[Published], unreadable: int) -> Following:
    """Works that out.

    Args:
        place: of what is served.
        deltas: that are there and can be read, but for the next.
        refused: others, whose manifests can be read.
        unreadable: how many others there are.
    """
    ahead = sorted(
        (delta for delta in (*deltas, *refused) if not place.is_behind(delta.manifest)), key=lambda delta: delta.order
    )
    count = len(refused) + unreadable
    if not ahead:
        return Following(place.step, refused=count)
    newest = ahead[-1]
    way = route(place, deltas)
    reason = None
    if not way or way[-1].id != newest.id:
        why = "deltas between them are missing or refused, or the training went back behind what is served"
        if any(not place.past.isdisjoint(d.line) and not place.leads_on(d.manifest) for d in ahead):
            why = "the training went back behind what is served"
        if newest in refused:
            why = f"{newest.path.name} is refused"
        reason = (
            f"no delta leads from what is served, at step {place.step}, to the newest, at {newest.manifest.step}: {why}"
        )
    return Following(newest.manifest.step, len(ahead), count, reason)
