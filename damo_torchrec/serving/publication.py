"""Where the next delta has to begin, so that everything that is served, or will be, can follow.

Something is served from an export, or from a delta. A delta that the store's past has is live: there is a way from it
to the newest live one, over deltas that are published. One that it has not, because the store went back behind it, is
abandoned: from there servers follow only if the next delta has the rows that may be otherwise there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from damo_torchrec.checkpoints.lineage import Lineage, StoreState
from damo_torchrec.serving.published import Published


@dataclass(frozen=True)
class Publication:
    """How deltas and a store's past are to each other.

    Args:
        live: deltas of the store's past, oldest first.
        last: the newest of them that the store remembers; None if there is none.
        pending: abandoned deltas from which the next delta has to lead back, oldest first.
        done: other abandoned deltas: a live one leads back from them, or none can.
        base: the state since which the next delta has to be; None if nothing says so.
        leads_on: whether the live deltas lead from what is exported to `last`.
        stray: the state after which what is exported left the store's past; None if it did not.
        strays: ids of the states after it, up to what is exported.
    """

    live: Sequence[Published]
    last: Published | None
    pending: Sequence[Published]
    done: Sequence[Published]
    base: StoreState | None
    leads_on: bool
    stray: StoreState | None
    strays: Sequence[str]

    def states(self, lineage: Lineage) -> list[str]:
        """Ids of live deltas whose rows are those of a state of the lineage, which does not know them."""
        past = [] if self.base is None else lineage.ids_from(self.base)
        return [d.id for d in self.live if d.id not in past and d.manifest.same_rows in past]


def plan(lineage: Lineage, deltas: Sequence[Published], exported: Sequence[str]) -> Publication:
    """Works out what there is to publish.

    Args:
        lineage: the store's.
        deltas: all of the directory, oldest first.
        exported: ids of the states that led to what servers begin from, its own at the end; empty if none is known.

    Raises:
        ValueError: what is exported has nothing to do with the store's past, as far as that is remembered.
    """
    places = {state: place for place, state in enumerate(lineage.ids())}
    live, known, returned = _live(deltas, places)
    same = [(delta.id, places.get(delta.manifest.same_rows)) for delta in live]
    places |= {state: place for state, place in same if place is not None and state not in places}
    remembered = [delta for delta in live if delta.id in places]
    last = max(remembered, key=lambda delta: (places[delta.id], delta.order), default=None)
    abandoned = _abandoned([delta for delta in deltas if delta not in live], known | returned | {*exported})
    lost = [delta for delta in abandoned if delta.id not in returned]
    chain = [] if last is None else leading_to(last, live)
    covered = {state for delta in chain for state in (delta.id, *delta.line)}
    forks, stray, strays = _forks(lost, places, {}), None, list[str]()
    begins = [] if last is None else [places[last.id]]
    if exported and exported[-1] not in covered | forks.keys():
        begin = max((place for place, state in enumerate(exported) if state in places), default=None)
        if begin is None:
            raise ValueError(lineage.begun_by or "the store has gone back behind it, or has forgotten it")
        begins.append(places[exported[begin]])
        if exported[-1] not in places:
            stray = lineage.get(lineage.ids()[begins[-1]])
            strays = [*exported[begin + 1 :]]
            forks = _forks(lost, places, dict.fromkeys(strays, begins[-1]))
    begins += forks.values()
    pending = [delta for delta in lost if delta.id in forks]
    return Publication(
        live=live,
        last=last,
        pending=pending,
        done=[delta for delta in abandoned if delta not in pending],
        base=lineage.get(lineage.ids()[min(begins)]) if begins else None,
        leads_on=not exported or exported[-1] in covered,
        stray=stray,
        strays=strays,
    )


def leading_to(delta: Published, others: Sequence[Published]) -> list[Published]:
    """The delta and those of the others over which it is reached, oldest first."""
    states = {delta.id}
    found = []
    for other in reversed(others):
        if other.id in states:
            states.update(other.line)
            found.append(other)
    return found[::-1]


def _live(deltas: Sequence[Published], places: Mapping[str, int]) -> tuple[list[Published], set[str], set[str]]:
    """Deltas of the store's past; ids of all states there; and of those that live deltas lead back from."""
    known, returned = set(places), set[str]()
    live = []
    for delta in reversed(deltas):
        if delta.id in known or delta.manifest.same_rows in places:
            known.update([delta.id, *delta.manifest.past()])
            returned.update(delta.manifest.abandoned_states())
            live.append(delta)
    return live[::-1], known, returned - known


def _abandoned(others: Sequence[Published], known: set[str]) -> list[Published]:
    """Which deltas go on from known states, or from each other. Those of another store do not."""
    linked = set(known)
    found = []
    for delta in others:
        if not linked.isdisjoint(delta.line):
            linked.update([delta.id, *delta.line])
            found.append(delta)
    return found


def _forks(abandoned: Sequence[Published], places: Mapping[str, int], others: Mapping[str, int]) -> dict[str, int]:
    """Of each state that abandoned deltas lead from or to, a place in the store's past that they lead from as well.

    So a delta since there, with the rows of these deltas besides, has all that is otherwise in such a state. `others`
    are states of which that is known, and are among what is returned.
    """
    forks = {**others}
    for delta in abandoned:
        own = [places[state] for state in delta.line if state in places]
        inherited = [forks[state] for state in delta.line if state in forks]
        if own or inherited:
            place = max(own) if own else min(inherited)
            for state in (delta.id, *delta.line):
                if state not in places:
                    forks[state] = min(place, forks.get(state, place))
    return forks
