"""A store whose rows are spread over several files of RocksDB, and ways to damage each of them."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchrec

import damo_torchrec as damo
from raw_records import decode_key, opened
from support import config, small_store

Records = dict[tuple[int, int], bytes]

ROWS = 4000
FOOTER_BYTES = 53


class Model(torch.nn.Module):
    """Two tables of float32 and one of float16, beside a dense layer."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(2, 1)
        self.ebc = damo.EmbeddingBagCollection(
            [config("a", 8), config("b", 4), config("half", 5)],
            torchrec.optim.RowWiseAdagrad,
            {"lr": 0.1},
            store=store,
            table_options={"half": damo.TableOptions(row_dtype=torch.float16)},
        )


@dataclass(frozen=True)
class Sample:
    """A closed store, and the records of its newest checkpoint by (table number, id)."""

    store: Path
    checkpoint: Path
    records: Records

    def copy(self, target: Path) -> Path:
        """A copy of the checkpoint, for damaging."""
        shutil.copytree(self.checkpoint, target)
        return target

    def files(self) -> list[str]:
        """The checkpoint's table files, by their names in it."""
        return sorted(f"rows/{file.name}" for file in (self.checkpoint / "rows").glob("*.sst"))

    def logs(self) -> list[str]:
        """The files of its journal, oldest first."""
        return sorted(f"rows/{file.name}" for file in (self.checkpoint / "rows").glob("*.log"))

    def other_files(self) -> list[str]:
        """All other files that the manifest names."""
        files = [file for file in self.checkpoint.rglob("*") if file.is_file() and file.suffix != ".sst"]
        return sorted(str(file.relative_to(self.checkpoint)) for file in files if file.name != "manifest.json")


def make_sample(path: Path, journal: bool = False) -> Sample:
    """Writes the same ids again and again, so that most rows have older versions in other files; and deletes some.

    With `journal`, the newest rows are in logs alone.
    """
    generator = torch.Generator().manual_seed(0)
    with small_store(path / "store", keep_checkpoints=None) as store:
        model = Model(store)
        for step in range(7):
            for name, table in store.tables().items():
                n = ROWS // 3 if step else ROWS
                ids = torch.randperm(ROWS, generator=generator)[:n] - ROWS // 2
                if name == "b":  # all over int64
                    ids = ids * 0x9E3779B97F4A7C15
                table.set(ids, torch.rand(n, table.dim, generator=generator))
                table.delete(ids[:50])
            if not journal or step < 4:
                store.flush()
            checkpoint = damo.save_model(model)
    return Sample(path / "store", checkpoint, records_of(checkpoint, path / "read"))


def records_of(checkpoint: Path, scratch: Path) -> Records:
    """What rocksdict reads there."""
    scratch.mkdir()
    with opened(checkpoint, scratch) as rows:
        records = {decode_key(key): bytes(value) for key, value in rows.items()}
    shutil.rmtree(scratch)
    return records


# ------------------------------------------------------------------ places in a table file, and what happens to them


def _index_offset(contents: bytes) -> int:
    """Where the topmost block of the index begins: the third number of the footer, behind a byte."""
    numbers, position = [], len(contents) - FOOTER_BYTES + 1
    while len(numbers) < 3:
        number = shift = 0
        while (byte := contents[position]) >= 128:
            number, shift, position = number | (byte & 127) << shift, shift + 7, position + 1
        numbers.append(number | byte << shift)
        position += 1
    return numbers[2]


def _data(contents: bytes) -> int:
    return len(contents) // 2 // 4096 * 4096 + 100  # blocks begin at multiples of 4096


PLACES: dict[str, Callable[[bytes], int]] = {
    "first block": lambda contents: 100,
    "block in the middle": _data,
    "part of the index": lambda contents: _index_offset(contents) - 50,
    "top of the index": lambda contents: _index_offset(contents) + 3,
    "checksum type": lambda contents: len(contents) - FOOTER_BYTES,
    "place of the index": lambda contents: len(contents) - FOOTER_BYTES + 1,
    "format version": lambda contents: len(contents) - 12,
    "magic number": lambda contents: len(contents) - 1,
}


def flip(file: Path, place: int | Callable[[bytes], int], bit: int = 2) -> None:
    """Changes one bit."""
    contents = bytearray(file.read_bytes())
    contents[place(bytes(contents)) if callable(place) else place] ^= 1 << bit
    file.write_bytes(contents)


def truncate(file: Path) -> None:
    """Keeps all but the last tenth."""
    contents = file.read_bytes()
    file.write_bytes(contents[: -(len(contents) // 10 + 1)])


def append(file: Path) -> None:
    """Adds a byte."""
    file.write_bytes(file.read_bytes() + b"\n")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": lambda file: flip(file, file.stat().st_size // 2),
    "truncated": truncate,
    "longer": append,
    "emptied": lambda file: file.write_bytes(b""),
    "deleted": Path.unlink,
}
TABLE_FILE_DAMAGES: dict[str, Callable[[Path], None]] = {
    **{name: (lambda file, place=place: flip(file, place)) for name, place in PLACES.items()},
    **{name: damage for name, damage in DAMAGES.items() if name != "flipped"},
}
