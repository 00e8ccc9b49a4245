"""Several deltas as one: what a plain dictionary has after all of them."""

import random
from pathlib import Path

import pytest

import damo_torchrec as damo
from damo_torchrec import Delta
from damo_torchrec.checkpoints import folding
from damo_torchrec.checkpoints.folding import fold_deltas
from delta_model import Model, applied


@pytest.mark.parametrize("seed", range(4))
def test_it_changes_rows_as_all_of_them_do(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "_WORKING_BYTES", 100)  # so that arrays are cut
    chance = random.Random(seed)
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        model = Model(store)
        model.train("a", list(range(-5, 20)))
        last = store.checkpoint()
        before = model.rows()
        paths = []
        for number in range(5):
            for name in ("a", "b"):
                model.train(name, chance.sample(range(-20, 40), 6))
                model.table(name).delete(chance.sample(range(-20, 40), 6))
            last = store.export_delta(tmp_path / f"delta-{number}", since=last)
            paths.append(last)
        after = model.rows()
    folded = Delta.read(fold_deltas(paths, tmp_path / "folded"))
    assert applied(before, folded) == after
    first, last_one = Delta.read(paths[0]), Delta.read(paths[-1])
    assert (folded.base, folded.id, folded.step) == (first.base, last_one.id, last_one.step)
    assert {first.base, *(Delta.read(path).id for path in paths[:-1])} <= {*folded.line}
    assert Delta.read(fold_deltas(paths[:1], tmp_path / "alone")).manifest == first.manifest


def test_deltas_that_do_not_follow_each_other_are_refused(tmp_path: Path) -> None:
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        model = Model(store)
        base = store.checkpoint(tmp_path / "base")
        paths = []
        for number in range(3):
            model.train("a", [number])
            base = store.export_delta(tmp_path / f"delta-{number}", since=base)
            paths.append(base)
    with pytest.raises(ValueError, match="delta-2 does not go on from"):
        fold_deltas([paths[0], paths[2]], tmp_path / "folded")
    assert not (tmp_path / "folded").exists()
