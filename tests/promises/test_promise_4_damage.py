"""Promise 4, for every file of a store: damage is an error that names the file, or changes nothing that is read.

Everything happens in processes of their own: a damaged file may not crash the program either.
"""

import logging
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import damo_torchrec as damo
from mixed_run import SmallModel, collection, look_up, rows_of, update
from processes import run
from support import A_HANDFUL_OF_ROWS, directory_in_memory, payloads

FLIPS = settings.default.max_examples // 5  # of bits, in each file
ROWS = 300  # set after each step
IDS = torch.arange(-5, 3 * ROWS + 5)
NEWEST = Path("checkpoints/step_3")
FILES = [
    "line.json",
    "manifest.json",
    "model.pt",
    "module.pickle",
    "origin.json",
    "rows/000008.sst",  # the oldest, which the other checkpoints have, too
    "rows/000010.log",
    "rows/000011.log",
    "rows/CURRENT",
    "rows/MANIFEST-000005",
    "rows/OPTIONS-000007",
]


def open_store(path: Path, *, read_only: bool = False, cache_bytes: int = 0) -> damo.EmbeddingStore:
    options = damo.StoreOptions(num_threads=1, cache_bytes=cache_bytes)
    return damo.EmbeddingStore(path, memory_budget="64MiB", options=options, read_only=read_only)


@pytest.fixture(scope="module")
def store() -> Iterator[Path]:
    """A closed store of four checkpoints, with 300 rows more in each."""
    with directory_in_memory() as directory:
        path = directory / "store"
        with open_store(path) as store:
            model = SmallModel(store)
            for first in range(0, 3 * ROWS, ROWS):
                model.step()
                store.table("t").set(range(first, first + ROWS), torch.rand(ROWS, 4))
                if first == 0:
                    store.flush()  # later rows are in the journal alone
                assert damo.save_model(model, optimizer=model.optimizer).parent == path / "checkpoints"
        before = contents(path)
        yield path
        assert contents(path) == before, "a test has left damage behind"


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "LOCK"}


def test_no_kind_of_file_is_left_out(store):
    kinds = {Path(name).name.rstrip("0123456789") for name in FILES if not name.endswith((".sst", ".log"))}
    found = [file.relative_to(store / NEWEST) for file in contents(store / NEWEST)]
    assert {file.name.rstrip("0123456789") for file in found if file.suffix not in (".sst", ".log")} == kinds
    assert {Path(name) for name in FILES} <= set(found)
    assert not (store / "live").exists()


# ------------------------------------------------------------------ what is done to a file, and what is read then


def damages_of(name: str, size: int) -> dict[str, Callable[[bytes], bytes | None]]:
    """Functions from a file's bytes to those in their place, or None for no file."""

    def flip(bit: int) -> Callable[[bytes], bytes]:
        return lambda b: b[: bit // 8] + bytes([b[bit // 8] ^ 1 << bit % 8]) + b[bit // 8 + 1 :]

    damages: dict[str, Callable[[bytes], bytes | None]] = {"deleted": lambda _: None}
    for length in (0, 1, size // 2, size - 5):
        damages[f"cut to {length}"] = lambda b, length=length: b[:length]
    numbers = random.Random(name)
    bits = [numbers.randrange(8 * size) for _ in range(FLIPS)]
    if name.endswith(".sst"):  # most is rows: as many in what is behind them, and in the footer
        bits += [8 * size - 1 - numbers.randrange(8 * min(size, n)) for n in (2000, 53) for _ in range(FLIPS)]
    if name.endswith(".log"):  # what RocksDB takes for the end of a log, or passes over
        damages["other type"] = lambda b: b[:6] + bytes([b[6] ^ 4]) + b[7:]
        damages["no header"] = lambda b: bytes(7) + b[7:]
        damages["zeros"] = lambda b: bytes(len(b))
    return damages | {f"bit {bit} flipped": flip(bit) for bit in bits}


def everything_in(store: damo.EmbeddingStore) -> list[object]:
    model = SmallModel(store)
    return everything_of(model, store)


def everything_of(model: SmallModel, store: damo.EmbeddingStore) -> list[object]:
    table = store.table("t")
    model.ebc.eval()
    output = look_up(model.ebc, {"t": [[int(i)] for i in IDS]})
    return [
        store.step,
        len(table),
        table.contains(IDS).tolist(),
        table.get(IDS).tolist(),
        sorted(payloads(store, "t").items()),
        output.tolist(),
    ]


def opened_read_only(path: Path) -> list[object]:
    with open_store(path, read_only=True) as store:
        return everything_in(store)


def opened(path: Path) -> list[object]:
    with open_store(path) as store:
        return everything_in(store)


def the_checkpoint_opened(path: Path) -> list[object]:
    return opened_read_only(path / NEWEST)


def load_model(path: Path) -> list[object]:
    with directory_in_memory() as empty, open_store(empty / "store") as store:
        model = SmallModel(store)
        try:
            damo.load_model(path / NEWEST, model, optimizer=model.optimizer)
        except damo.DamoError:
            assert rows_of(store) == {"t": {}}, "loading has failed, and changed rows"
            raise
        assert damo.checkpoint_info(path / NEWEST).step == 3
        return [*everything_of(model, store), model.state()]


def what_comes_of_it(read: Callable[[Path], list[object]], store: Path, name: str) -> list[tuple[str, str]]:
    """What reading says after each damage to the file: ``"equal"``, a name, or what it should not."""
    logging.disable(logging.CRITICAL)  # what was passed over
    expected = read(store)
    file = store / NEWEST / name
    whole = file.read_bytes()
    said = []
    for what, damage in damages_of(name, len(whole)).items():
        damaged = damage(whole)
        if damaged is None:
            file.unlink()
        else:
            file.write_bytes(damaged)
        try:
            said.append((what, "equal" if read(store) == expected else "other values"))
        except damo.CorruptionError as error:
            names = {file.name: "its name", f"{file.parent}, maybe": "its checkpoint's name"}
            said.append((what, next((said for name, said in names.items() if name in str(error)), str(error))))
        except Exception as error:
            said.append((what, repr(error)))
        finally:
            file.write_bytes(whole)
    return said


@pytest.mark.slow
@pytest.mark.parametrize(
    "read", [opened_read_only, opened, the_checkpoint_opened, load_model], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("name", FILES)
def test_promise_4_whatever_is_damaged(store, name, read):
    said = run(what_comes_of_it, read, store, name)
    # RocksDB does not tell which row file it is that cannot be opened.
    right = {"equal", "its name", *(["its checkpoint's name"] if name.endswith(".sst") else [])}
    assert [s for s in said if s[1] not in right] == []
    assert [what for what, outcome in said if outcome == "equal" and "flipped" not in what] == []
    noticed = [what for what, outcome in said if outcome != "equal" and "flipped" in what]
    assert len(noticed) > FLIPS // 2


def test_promise_4_a_log_of_another_checkpoint_is_found(tmp_path):
    """RocksDB would take it, or end the process."""
    logs = []
    for name in ("one", "other"):
        with open_store(tmp_path / name) as store:
            update(collection(store, "t"), {"t": [[1, 2, 3 + len(logs)]]})
            (log,) = (store.checkpoint(tmp_path / f"{name}-checkpoint") / "rows").glob("*.log")
            logs.append(log)
    assert logs[0].stat().st_size == logs[1].stat().st_size
    shutil.copyfile(logs[1], logs[0])
    with pytest.raises(damo.CorruptionError, match=rf"{logs[0]} is damaged, or belongs to another checkpoint"):
        damo.EmbeddingStore(tmp_path / "one-checkpoint", read_only=True)


# ------------------------------------------------------------------ checkpoints that have lost their manifest


@pytest.mark.parametrize("which", ["step_0", "step_2", "step_3"])
def test_promise_4_a_checkpoint_without_a_manifest_is_not_passed_over(store, tmp_path, which):
    """It may have been the newest, or all there is: what others hold is not given out for it."""
    path = shutil.copytree(store, tmp_path / "store")
    (path / "checkpoints" / which / "manifest.json").unlink()
    for read_only in (True, False):
        with pytest.raises(damo.CorruptionError, match=rf"checkpoints/{which} .*no manifest\.json.*name another one"):
            open_store(path, read_only=read_only)
    with pytest.raises(damo.CorruptionError, match=r"no manifest\.json"):
        damo.EmbeddingStore(path, restore=which)
    with pytest.raises(damo.CorruptionError, match=r"no manifest\.json"):
        damo.checkpoint_info(path / "checkpoints" / which)
    with damo.EmbeddingStore(path, restore="step_1") as store:
        assert store.step == 1


# ------------------------------------------------------------------ damage while the store is open


def what_comes_of_damage_to_an_open_store(path: Path) -> list[str]:
    """Flips bits of the live rows, and reads past all caches of ours."""
    said = []
    with directory_in_memory() as directory:
        path = shutil.copytree(path, directory / "store")
        with open_store(path, read_only=True) as store:
            expected = everything_in(store)
        for file in sorted((path / NEWEST / "rows").glob("*.sst")):
            whole = file.read_bytes()
            for what, damage in damages_of(file.name, len(whole)).items():
                if "flipped" not in what:
                    continue
                with open_store(path, cache_bytes=A_HANDFUL_OF_ROWS) as store:
                    file.write_bytes(damage(whole) or b"")  # in place: the live rows are hard links to it
                    try:
                        said.append("equal" if everything_in(store) == expected else f"{file.name}: {what}")
                    except damo.CorruptionError as error:
                        said.append("its name" if file.name in str(error) else str(error))
                    finally:
                        file.write_bytes(whole)
                    # What could not be read is read once it is whole again.
                    assert everything_in(store) == expected
    return said


@pytest.mark.slow
def test_promise_4_rows_damaged_under_an_open_store(store):
    said = run(what_comes_of_damage_to_an_open_store, store)
    assert set(said) == {"equal", "its name"}
