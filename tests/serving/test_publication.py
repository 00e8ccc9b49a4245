"""Where the next delta begins: by hand-made lines of states, which are numbers here."""

from pathlib import Path
from typing import Any

import pytest

from damo_torchrec.checkpoints.delta import DeltaManifest
from damo_torchrec.checkpoints.lineage import Lineage, StoreState
from damo_torchrec.serving.publication import Publication, plan
from damo_torchrec.serving.published import Published


def name(state: int) -> str:
    return f"{state:032x}"


def delta(line: list[int], to: int, **fields: Any) -> Published:
    """From any of the states `line` to another, made at that time."""
    ids = [name(state) for state in line]
    manifest = DeltaManifest(name(to), ids[0], ids, 0, 0, to, {}, {}, **{"sequence": to, **fields})
    manifest.check()
    return Published(Path(f"delta-{to:012}"), manifest)


def planned(past: list[int], deltas: list[Published], exported: list[int]) -> Publication:
    return plan(Lineage(StoreState(name(s), 0, {}) for s in past), deltas, [name(s) for s in exported])


def base_of(publication: Publication) -> int:
    assert publication.base is not None
    return int(publication.base.id, 16)


def test_the_next_delta_goes_on_from_the_last() -> None:
    first, second = delta([1, 2], 3), delta([3], 5)
    found = planned([1, 2, 3, 4, 5, 6], [first, second], exported=[1, 2])
    assert (found.last, found.pending, found.leads_on, base_of(found)) == (second, [], True, 5)


def test_it_begins_at_what_is_exported_if_nothing_leads_on_from_there() -> None:
    assert base_of(planned([1, 2, 3], [], exported=[1, 2])) == 2
    found = planned([1, 2, 3, 4, 5], [delta([3], 4)], exported=[1, 2])  # the ones before were removed
    assert (base_of(found), found.leads_on) == (2, False)


def test_it_leads_back_from_abandoned_deltas() -> None:
    first, dead, deader = delta([1], 2), delta([2, 3, 7], 8), delta([8], 9)
    found = planned([1, 2, 3, 4], [first, dead, deader], exported=[1])
    assert (found.last, found.pending, found.done, base_of(found)) == (first, [dead, deader], [], 2)
    back = delta([2, 3, 4, 8, 9], 10, abandoned=2)
    found = planned([1, 2, 3, 4, 10], [first, dead, deader, back], exported=[1])
    assert (found.last, found.pending, found.done, base_of(found)) == (back, [], [dead, deader], 10)


def test_a_delta_is_known_by_the_state_with_the_same_rows() -> None:
    first, dead = delta([1, 2], 8, same_rows=name(2)), delta([8], 9)
    found = planned([1, 2, 3], [first, dead], exported=[1])
    assert (found.last, found.pending, base_of(found)) == (first, [dead], 2)
    assert found.states(Lineage(StoreState(name(s), 0, {}) for s in [1, 2, 3])) == [name(8)]


def test_it_leads_back_from_an_abandoned_export() -> None:
    found = planned([1, 2, 5], [delta([4], 6)], exported=[1, 2, 3, 4])
    assert found.stray is not None
    assert (int(found.stray.id, 16), found.strays, base_of(found)) == (2, [name(3), name(4)], 2)
    assert [int(d.id, 16) for d in found.pending] == [6]  # which goes on from there
    with pytest.raises(ValueError, match="gone back behind it"):
        planned([1, 2], [], exported=[7, 8])


def test_deltas_of_another_store_are_neither_live_nor_abandoned() -> None:
    found = planned([1, 2], [delta([7], 8)], exported=[1])
    assert (found.live, found.pending, found.done, base_of(found)) == ([], [], [], 1)
