"""What a profile says of memory budgets, against stores that have them."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchrec
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec.advice import CachePoint, advise
from damo_torchrec.checkpoints.origin import Origin
from damo_torchrec.errors import CorruptionError
from damo_torchrec.store.profile_keeper import ProfileKeeper

MIB = 1 << 20
FILE = "cache_profile.json"
BATCH = 512  # of two tables: 64 steps are 2^16 ids, after which the profile counts anew


def batches(steps: int, rows: int = 60_000, *, seed: int = 0):
    """Ids of two tables, some of which come once and never again."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, rows + 1) ** 0.9
    sums = np.cumsum(shares) / shares.sum()
    for step in range(steps):
        ids = np.searchsorted(sums, rng.random((2, BATCH)))
        new = rng.random((2, BATCH)) < 0.05
        yield np.where(new, 10**9 + np.arange(2 * BATCH).reshape(2, -1) + step * 2 * BATCH, ids)


def collection_of(store: damo.EmbeddingStore, dims: tuple[int, int] = (512, 1024)) -> damo.EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig(name=f"t{i}", embedding_dim=dim, num_embeddings=100, feature_names=[f"f{i}"])
        for i, dim in enumerate(dims)
    ]
    return damo.EmbeddingBagCollection(
        tables=tables,
        optimizer_type=torchrec.optim.RowWiseAdagrad,
        optimizer_kwargs={"lr": 0.1},
        store=store,
    )


def look_up(collection: damo.EmbeddingBagCollection, ids: np.ndarray) -> torch.Tensor:
    lengths = torch.ones(ids.size, dtype=torch.int64)
    values = torch.from_numpy(ids.ravel())
    return collection(KeyedJaggedTensor(keys=["f0", "f1"], values=values, lengths=lengths)).values()


def train(collection: damo.EmbeddingBagCollection, given) -> None:
    for ids in given:
        look_up(collection, ids).sum().backward()


def opened(path=None, budget: int = 64 * MIB, *, profile: bool = True, **options: object) -> damo.EmbeddingStore:
    options = {"backend": "memory" if path is None else "rocksdb", "num_threads": 2, **options}
    return damo.EmbeddingStore(path, memory_budget=budget, options=damo.StoreOptions(profile_cache=profile, **options))


def hit_rate(store: damo.EmbeddingStore) -> float:
    tables = store.stats().tables.values()
    return sum(table.hits for table in tables) / sum(table.training.ids for table in tables)


@pytest.mark.slow
def test_the_curve_is_that_of_stores_with_these_budgets():
    with opened() as store:
        train(collection_of(store), batches(128))
        profile, advice = store.cache_profile(), store.advise()
    points = {point.memory_budget: point for point in profile.points()}
    budgets = sorted(points)[:5]
    assert len(budgets) == 5
    for budget in budgets:
        with opened(budget=budget, profile=False) as store:
            collection = collection_of(store)
            given = batches(128)
            train(collection, (next(given) for _ in range(64)))
            store.reset_stats()
            train(collection, given)
            assert points[budget].hit_rate == pytest.approx(hit_rate(store), abs=0.02), budget
    rates = [point.hit_rate for point in profile.points()]
    assert rates == sorted(rates)
    assert rates[-1] - 0.01 <= advice.best.hit_rate
    assert advice.own.memory_budget == 64 * MIB
    assert advice.new_ids > 0.04


def test_what_is_trained_is_the_same_to_the_bit(tmp_path):
    outputs = []
    for profile in (False, True):
        with opened(tmp_path / str(profile), profile=profile) as store:
            collection = collection_of(store, (4, 8))
            train(collection, batches(20, 1000))
            outputs.append(look_up(collection.eval(), next(batches(1, 1000, seed=1))))
            steps = store.checkpoint()
        assert (tmp_path / str(profile) / FILE).exists() == profile
        manifest = json.loads((steps / "manifest.json").read_text())["manifest"]
        assert FILE not in manifest["files"]
    assert torch.equal(*outputs)


def test_training_and_evaluation_are_counted_apart():
    with opened() as store:
        collection = collection_of(store, (4, 4))
        ids = np.arange(2 * BATCH).reshape(2, -1)
        train(collection, [ids] * 3)
        collection.eval()
        for _ in range(5):
            look_up(collection, ids + 10**6)
        profile = store.cache_profile()
    assert profile.lookups == [3, 5]
    assert profile.ids == [3 * 2 * BATCH, 5 * 2 * BATCH]
    (point,) = profile.points()
    assert point.hit_rate == pytest.approx(2 / 3, abs=0.1)
    assert point.evaluation_hit_rate == pytest.approx(4 / 5, abs=0.1)


def test_the_next_session_goes_on(tmp_path):
    given = list(batches(160, 1000))
    with opened(tmp_path) as store:
        train(collection_of(store, (4, 4)), given)
        first = store.cache_profile()
        assert first.warm
    with opened(tmp_path) as store:
        train(collection_of(store, (4, 4)), given[:10])
        assert store.cache_profile() == first  # too little to say anything
        train(collection_of(store, (4, 4)), given)
        assert store.cache_profile().ids[0] > first.ids[0]
        second = store.cache_profile()
    with opened(tmp_path, profile=False) as store:
        assert store.cache_profile() == second
        before = (tmp_path / FILE).read_bytes()
        train(collection_of(store, (4, 4)), given[:1])
    assert (tmp_path / FILE).read_bytes() == before
    with damo.EmbeddingStore(tmp_path, read_only=True, memory_budget="64MiB") as store:
        assert store.advise().advised == 64 * MIB


def test_going_back_to_a_checkpoint_keeps_it(tmp_path):
    with opened(tmp_path) as store:
        train(collection_of(store, (4, 4)), batches(80, 1000))
        path = store.checkpoint()
        train(collection_of(store, (4, 4)), batches(60, 1000))
        known = store.cache_profile()
        store.restore(path)
        assert store.cache_profile() == known


def test_a_damaged_file_is_told_of_and_replaced(tmp_path, caplog):
    with opened(tmp_path) as store:
        train(collection_of(store, (4, 4)), batches(2))
    (tmp_path / FILE).write_text("{}")
    with damo.EmbeddingStore(tmp_path, read_only=True) as store, pytest.raises(CorruptionError, match=FILE):
        store.cache_profile()
    with opened(tmp_path) as store:
        assert "begins anew" in caplog.text
        train(collection_of(store, (4, 4)), batches(1))
    assert damo.CacheProfile.read(tmp_path).lookups == [1, 0]


def test_without_a_profile_it_says_how_to_get_one():
    with opened(profile=False) as store:
        assert store.cache_profile() is None
        with pytest.raises(ValueError, match="profile_cache=True"):
            store.advise()
    with opened() as store, pytest.raises(ValueError, match="no lookups in train mode"):
        store.advise()


def test_a_short_profile_is_told_of():
    with opened() as store:
        train(collection_of(store, (4, 4)), batches(2))
        assert store.advise().too_short
        assert "too short: the caches that it simulates have not been filled yet, so" in str(store.advise())


def test_why_a_profile_is_too_short():
    point = CachePoint(64 * MIB, 0.5, 0.0, 1.0)
    found = [advise([point], 64 * MIB, new_ids=0, first_ids=first, warm=warm) for first in (0, 0.2) for warm in (0, 1)]
    assert [advice.too_short for advice in found] == [True, False, True, True]
    assert "not been filled" in found[0].warning
    assert found[1].warning is None
    assert all("20.0 % of the ids came for the first time" in advice.warning for advice in found[2:])


def test_that_of_another_store_is_ignored(tmp_path, caplog):
    for name in ("one", "two"):
        with opened(tmp_path / name) as store:
            train(collection_of(store, (4, 4)), batches(2))
            store.checkpoint()
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    own = damo.CacheProfile.read(tmp_path / "one")
    assert damo.CacheProfile.read(tmp_path / "copy") == own
    assert own.line == Origin.read(tmp_path / "one").line
    assert caplog.text == ""
    shutil.copy(tmp_path / "one" / FILE, tmp_path / "two" / FILE)
    assert damo.CacheProfile.read(tmp_path / "two") is None
    assert f"{tmp_path / 'two' / FILE} is ignored: it is the profile of another store" in caplog.text
    with opened(tmp_path / "two") as store:
        train(collection_of(store, (4, 4)), batches(1))
    assert damo.CacheProfile.read(tmp_path / "two").lookups == [1, 0]
    with opened(tmp_path / "two") as store:
        store.restore(max((tmp_path / "one" / "checkpoints").iterdir()))
        assert store.cache_profile().lookups == [1, 0]


def test_one_that_does_not_say_whose_it_is_is_the_stores(tmp_path):
    with opened(tmp_path) as store:
        train(collection_of(store, (4, 4)), batches(2))
    body = json.loads((tmp_path / FILE).read_text())["cache_profile"]
    del body["line"]
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (tmp_path / FILE).write_text(json.dumps({"format_version": 1, "sha256": digest, "cache_profile": body}))
    assert damo.CacheProfile.read(tmp_path).lookups == [2, 0]


def test_a_profile_that_ended_for_want_of_memory_is_told_of_once(caplog):
    class Engine:
        def cache_profile(self):
            return None

    keeper = ProfileKeeper(Path("store"), 1 << 26, active=True, durable=False)
    assert keeper.profile(Engine()) is None
    assert keeper.profile(Engine()) is None
    assert [record.getMessage() for record in caplog.records] == [
        "the profile of the cache of store has ended: there was no memory for it"
    ]
