"""Rows that died go from the disk, and nobody can tell when."""

import random
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from support import A_HANDFUL_OF_ROWS, config, kjt, payloads, small_store

LIFE = damo.TableOptions(
    admit=damo.Admit(sightings=2, within_steps=30), expire=[damo.Idle(steps=10)], max_rows=150, credit=2
)


def collection(store: damo.EmbeddingStore) -> damo.EmbeddingBagCollection:
    tables = {"table_options": {"t": LIFE}}
    return damo.EmbeddingBagCollection([config("t", 4)], torch.optim.Adagrad, {"lr": 0.1}, store=store, **tables)


def compact(store: damo.EmbeddingStore) -> None:
    """All files, as RocksDB may at any time."""
    store.flush()
    store.session.engine.reclaim_table(store.session.catalog.open["t"].number)


def run(path: Path, *, compacts: bool) -> tuple[list[object], int]:
    """What a run of updates, sets, deletions, checkpoints and iterations saw, and how many records went."""
    chance = random.Random(5)
    seen: list[object] = []
    with small_store(path, cache_bytes=A_HANDFUL_OF_ROWS) as store:
        ebc, table = collection(store), store.table("t")
        saving = None
        for step in range(60):
            ids = [chance.randrange(5 * step, 5 * step + 200) for _ in range(60)]
            ebc(kjt({"t": [ids]})).values().sum().backward()
            if step % 7 == 3:
                chosen = torch.tensor(sorted({chance.randrange(5 * step, 5 * step + 200) for _ in range(20)}))
                chosen = chosen[table.contains(chosen)]
                table.set(chosen, torch.ones(len(chosen), 4))
            if step % 9 == 4:
                table.delete(torch.tensor([chance.randrange(500) for _ in range(10)]))
            if step % 20 == 10:
                saving = store.checkpoint_async()
            if step == 35:
                assert saving is not None
                store.restore(saving.result())
            if compacts:
                compact(store)
            seen += [len(table), payloads(store, "t")]
        return seen, store.stats().reclaimed_records


def test_a_run_sees_the_same_whatever_is_compacted(tmp_path):
    never, _ = run(tmp_path / "never", compacts=False)
    always, gone = run(tmp_path / "always", compacts=True)
    assert always == never
    assert gone > 100


@pytest.mark.parametrize("link", [True, False])
def test_a_checkpoint_keeps_what_was_alive_in_it(tmp_path, link):
    with small_store(tmp_path / "s") as store:
        ebc = collection(store)
        for _ in range(2):
            ebc(kjt({"t": [list(range(100))]})).values().sum().backward()
        rows = payloads(store, "t")
        kept = store.checkpoint(tmp_path / "kept", link=link)
        for step in range(15):
            ebc(kjt({"t": [[1000 + step]]})).values().sum().backward()
        compact(store)
        assert len(store.table("t")) < 20
        assert store.stats().reclaimed_records >= 100
        store.restore(kept)
        compact(store)
        assert payloads(store, "t") == rows
    with small_store(tmp_path / "s") as store:
        assert payloads(store, "t") == rows
