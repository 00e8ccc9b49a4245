"""Which checkpoints of single ranks count for all of them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import damo_torchrec as damo
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.rank_identity import RankIdentity
from damo_torchrec.distributed.group_checkpoint import RanksCheckpoint, RanksManifest
from damo_torchrec.distributed.rank_directory import LocalCheckpoint, RankState
from damo_torchrec.distributed.starting_point import check_whole_group, closed_at, group_of

ROOT = Path("store")
GROUP, RUN, OTHER = "a" * 32, "b" * 32, "c" * 32


def _id(number: int) -> str:
    return f"{number:032x}"


def _state(rank: int, step: int, sequence: int = 20, **changes: object) -> RankState:
    newest = LocalCheckpoint(f"step_{step}", _id(100 * step + rank), sequence, {"t": step}, rows=step)
    return replace(RankState(RankIdentity(GROUP, rank, 2, RUN), closed=True, checkpoints=[newest]), **changes)


def _checkpoint(step: int, sequence: int = 10) -> RanksCheckpoint:
    ids = [_id(100 * step + rank) for rank in range(2)]
    manifest = RanksManifest(_id(1), GROUP, RUN, sequence, step, "", ids)
    parts = [Manifest(0, 0, sequence, 1, {}, id=part) for part in ids]
    return RanksCheckpoint(ROOT / "checkpoints" / f"step_{step}", manifest, parts)


@pytest.mark.parametrize("newest", [None, _checkpoint(5)])
def test_stores_closed_at_one_step_go_on_there(newest: RanksCheckpoint | None) -> None:
    closed = closed_at([_state(0, 7), _state(1, 7)], newest, ROOT)
    assert closed is not None
    assert [checkpoint.name for checkpoint in closed] == ["step_7"] * 2


@pytest.mark.parametrize(
    ("states", "why"),
    [
        ([_state(0, 7), _state(1, 6)], "they had 7, 6 updates"),
        ([_state(0, 7), _state(1, 7, closed=False)], r"those of ranks \[1\] were not closed"),
        ([_state(0, 7), _state(1, 7, identity=RankIdentity(GROUP, 1, 2, OTHER))], "an opening .* was interrupted"),
        ([_state(0, 7), _state(1, 0, identity=None, checkpoints=[])], "that of rank 1 is new"),
        ([_state(0, 7), _state(1, 7, sequence=5)], "that of rank 1 is older"),
    ],
)
def test_others_go_back_to_the_newest_checkpoint_of_all_with_a_warning(
    states: list[RankState], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert closed_at(states, _checkpoint(5), ROOT) is None
    (message,) = caplog.messages
    assert "they go back to" in message
    assert re.search(why, message)


def test_what_that_checkpoint_has_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    assert closed_at([_state(0, 5), _state(1, 5)], _checkpoint(5), ROOT) is None
    assert closed_at([_state(0, 4, sequence=3), _state(1, 3, sequence=3)], _checkpoint(5), ROOT) is None
    assert not caplog.messages


def test_without_a_checkpoint_of_all_nothing_is_begun_anew_over_rows() -> None:
    with pytest.raises(damo.CorruptionError, match="they had 7, 6 updates"):
        closed_at([_state(0, 7), _state(1, 6)], None, ROOT)
    with pytest.raises(damo.CorruptionError, match=r"stores of ranks \[1\] of 2 are missing"):
        check_whole_group([_state(0, 7), _state(1, 0, identity=None, checkpoints=[])], None)


def test_stores_of_two_groups_do_not_belong_together() -> None:
    states = [_state(0, 7), _state(1, 7, identity=RankIdentity(OTHER, 1, 2, RUN))]
    with pytest.raises(damo.SchemaMismatchError, match="do not belong together"):
        group_of(states, ROOT)
    assert group_of([_state(0, 7), _state(1, 0, identity=None)], ROOT) == GROUP
