"""Opening a store: what becomes of its path, seed and options, who may, and what is refused."""

from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from mixed_run import collection, look_up, update
from support import small_store
from wrong_batches import trained


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "store"


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_a_new_store_begins_with_an_empty_checkpoint(path):
    with damo.EmbeddingStore(path) as store:
        assert names(store.checkpoints()) == ["step_0"]
        assert (store.step, store.seed, store.tables(), store.path) == (0, 0, {}, path)
    with damo.EmbeddingStore(path, read_only=True) as store:
        assert (store.step, store.tables()) == (0, {})


def test_the_directory_is_made_with_its_parents(tmp_path):
    with damo.EmbeddingStore(str(tmp_path / "some" / "where")) as store:
        assert store.path == tmp_path / "some" / "where"


def test_a_relative_path_stays_the_same_when_the_working_directory_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with damo.EmbeddingStore("store") as store:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        update(collection(store, "t"), {"t": [[1]]})
        assert store.checkpoint() == tmp_path / "store" / "checkpoints" / "step_1"


def test_what_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "file").write_text("mine")
    for name, message in (("file", "is a file"), ("directory", "neither empty nor a store")):
        with pytest.raises(ValueError, match=message):
            damo.EmbeddingStore(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in (tmp_path / "directory").iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    damo.EmbeddingStore(tmp_path / "empty").close()


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_reading_what_is_no_store_makes_none(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, damo.DamoError), match=r"is not a directory|has no complete checkpoint"):
        damo.EmbeddingStore(tmp_path / name, read_only=True)
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]
    assert not list((tmp_path / "empty").iterdir())


def test_an_opening_that_fails_lets_go_of_the_store(path):
    for wrong in ({"memory_budget": 1}, {"restore": "step_9"}, {"options": damo.StoreOptions(instruction_set="x")}):
        with pytest.raises(ValueError, match=r"at least|no checkpoint|instruction_set"):
            damo.EmbeddingStore(path, **wrong)
        damo.EmbeddingStore(path).close()
        with pytest.raises(ValueError, match=r"at least|no checkpoint|instruction_set"):
            damo.EmbeddingStore(path, **wrong)
    with damo.EmbeddingStore(path, restore=None) as store:  # and nothing counts as a crash
        assert store.step == 0


def test_a_seed_is_kept_and_another_refused(path):
    with damo.EmbeddingStore(path, seed=11) as store:
        assert store.seed == 11
    for read_only in (False, True):
        with damo.EmbeddingStore(path, read_only=read_only) as store:
            assert store.seed == 11
        with pytest.raises(damo.SchemaMismatchError, match="has the seed 11, got seed=0"):
            damo.EmbeddingStore(path, seed=0, read_only=read_only)
    with damo.EmbeddingStore(path, seed=11) as store:
        assert store.seed == 11


@pytest.mark.parametrize("seed", [-1, 2**63 - 1, 2**127 - 1, -(2**127)])
def test_any_number_of_128_bits_is_a_seed(path, seed):
    with damo.EmbeddingStore(path, seed=seed) as store:
        first = look_up(collection(store, "t"), {"t": [[1]]})
    with damo.EmbeddingStore(path) as store:
        assert store.seed == seed
        assert torch.equal(look_up(collection(store, "t"), {"t": [[1]]}), first)


# ------------------------------------------------------------------ what is refused

SIZES = ["", "MiB", "64 XB", "-64MiB", "64mib", "1e3MiB", "nan", "1,5GiB", "64MiB 1"]


@pytest.mark.parametrize("size", SIZES)
def test_a_budget_that_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match=f"a size must be a number with a unit of B, KB.*, got '{size}'"):
        damo.EmbeddingStore(memory_budget=size)


@pytest.mark.parametrize("size", [None, 1.5, True, ["64MiB"]])
def test_a_budget_of_another_type_is_refused(size):
    with pytest.raises(TypeError, match="a size must be an int or a str like '512MiB', got"):
        damo.EmbeddingStore(memory_budget=size)


@pytest.mark.parametrize("size", [-1, 0, 64 * 2**20 - 1, "63.9MiB", "64MB"])
def test_a_budget_below_the_least_is_refused_with_the_least(tmp_path, size):
    with pytest.raises(ValueError, match=r'memory_budget must be at least 67108864 bytes \("64MiB"\), got -?\d+'):
        damo.EmbeddingStore(tmp_path / "store", memory_budget=size)
    small_store(tmp_path / "store").close()


@pytest.mark.parametrize("size", [2**44 + 1, 2**63, 2**64, "17TiB"])
def test_a_budget_above_the_most_is_refused_with_the_most(tmp_path, size):
    with pytest.raises(ValueError, match=r'memory_budget must be at most 17592186044416 bytes \("16TiB"\), got \d+'):
        damo.EmbeddingStore(tmp_path / "store", memory_budget=size)


def test_a_path_that_is_a_file_is_refused_and_the_file_is_left_alone(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match=f"a store is a directory, but {file} is a file"):
        small_store(file)
    assert file.read_text() == "mine"


def test_another_seed_is_refused_with_both_and_the_right_one_opens(tmp_path):
    with small_store(tmp_path / "store", seed=3) as store:
        trained(store)
    with pytest.raises(damo.SchemaMismatchError, match="has the seed 3, got seed=4"):
        small_store(tmp_path / "store", seed=4)
    with small_store(tmp_path / "store", seed=3) as store:
        assert store.step == 1


@pytest.mark.parametrize(
    ("seed", "error"), [("a", TypeError), (1.5, TypeError), (2**127, ValueError), (-(2**127) - 1, ValueError)]
)
def test_a_seed_that_is_none_is_refused_at_once(tmp_path, seed, error):
    with pytest.raises(error, match="seed"):
        small_store(tmp_path / "store", seed=seed).close()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"num_threads": 0}, ValueError, "num_threads must be in 1..1024 or None, got 0"),
        ({"num_threads": 1.5}, TypeError, "num_threads"),
        ({"on_nonfinite": "ignore"}, ValueError, "on_nonfinite must be 'raise' or 'skip', got 'ignore'"),
        ({"backend": "leveldb"}, ValueError, "backend must be 'rocksdb' or 'memory', got 'leveldb'"),
        ({"cache_bytes": -1}, ValueError, r"cache_bytes must be in 0..\d+, got -1"),
        ({"instruction_set": "sse"}, ValueError, "instruction_set must be one of .*plain.* got .*sse"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        small_store(**options)
