"""How directories and files are called, which nothing else knows: a store's, a checkpoint's, its rows', a delta's.

::

    LOCK                   held (flock) by the process that has the store open
    origin.json            the store's line of states
    exported.json          what was exported last to be served; there only if something was
    cache_profile.json     how often budgets of other sizes would have rows; there only with profile_cache
    live/                  the rows of the open store; there only while it is open, or after a crash
    live.new/              rows that are about to become the live ones
    live.unclean-N/        live rows that a crash left behind, set aside
    checkpoints/step_N/    a checkpoint; step_N.1 and so on where one of that step was there already
        manifest.json
        line.json          the store's lineage
        origin.json        whose line of states it is of, and who may remove it
        forgotten.json     there if rows were taken out of it since it was made
        model.pt           the dense part     } what save_model adds
        module.pickle      the model's pickle }
        N.life.bin         of table number N, where its rows have a life: how many live, and which are dead
        rows/              a database of RocksDB: *.sst, table files; *.log, the journal; CURRENT, MANIFEST-N, OPTIONS-N

Of several ranks (damo_torchrec/distributed), around these::

    rank-I-of-N/           the store of rank I, as above, and in it
        rank.json          whose it is
    checkpoints/step_N/    a checkpoint of all ranks
        ranks.json         what it consists of
        rank-I-of-N/       a checkpoint of the store of rank I, as above
        dense/             tensors of the dense part, by torch.distributed.checkpoint
        dense-I.pt         what else there is of it, and the state of the generators of rank I

Whatever is being written, or removed, has a name that begins with a dot: a directory that can be seen is complete.
docs/format.md says what the files hold.
"""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath
from typing import Literal

LOCK_FILE = "LOCK"
LIVE = "live"
PREPARED_LIVE = "live.new"
CHECKPOINTS = "checkpoints"

MANIFEST_FILE = "manifest.json"
LINEAGE_FILE = "line.json"
ORIGIN_FILE = "origin.json"
FORGOTTEN_FILE = "forgotten.json"
EXPORTED_FILE = "exported.json"
CACHE_PROFILE_FILE = "cache_profile.json"
MODEL_FILE = "model.pt"
MODULE_FILE = "module.pickle"
ROWS = "rows"

DELTA_FILE = "delta.json"

RANK_FILE = "rank.json"
RANKS_FILE = "ranks.json"
DENSE_DIRECTORY = "dense"

_STAGED = ".damo-staged"
_REMOVED = ".damo-removed"

_TABLE_FILE = ".sst"
_LOG = ".log"
_BESIDE_ROWS = ("IDENTITY", "LOCK", "LOG", "OPTIONS-")


# ------------------------------------------------------------------ directories


def unclean_live(number: int) -> str:
    """The name of live rows that were set aside, the `number`-th."""
    return f"live.unclean-{number}"


def unclean_lives(where: Path) -> list[Path]:
    """All live rows that were set aside in the store `where`, oldest first."""
    numbered = [(re.fullmatch(r"live\.unclean-(\d+)", path.name), path) for path in where.iterdir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


def checkpoint_name(step: int | str, suffix: int = 0) -> str:
    """The name of a checkpoint at `step`, with a suffix where those below it are taken."""
    return f"step_{step}.{suffix}" if suffix else f"step_{step}"


def step_in(name: str) -> str | None:
    """The step in the name of a checkpoint; None if it is no such name."""
    match = re.fullmatch(r"step_(.+?)(?:\.\d+)?", name)
    return match[1] if match else None


def checkpoint_suffix(name: str, step: int | str) -> int | None:
    """The suffix in the name of a checkpoint at `step`; None if it is of another, or none."""
    match = re.fullmatch(rf"step_{re.escape(str(step))}(?:\.(\d+))?", name)
    return int(match[1] or 0) if match else None


def staged_name(name: str, number: int = 0) -> str:
    """What is around a directory that will be `name`, while this process fills it and has `number` others to fill."""
    return f".{name}.{os.getpid()}.{number}{_STAGED}"


def removed_name(name: str, number: int = 0) -> str:
    """What is around the directory `name` while it is removed, and `number` such names are somebody else's."""
    return f".{name}.{number}{_REMOVED}"


def unfinished_entries(where: Path) -> Iterator[Path]:
    """What in `where` has the name of what is around a directory that is half filled, or half removed."""
    for path in where.glob(".*"):
        if path.name.endswith((_STAGED, _REMOVED)):
            yield path


def staged_entries(target: Path) -> Iterator[Path]:
    """What beside `target` has a name of `staged_name`, whichever process filled it."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.\d+\.\d+{re.escape(_STAGED)}")
    for path in target.parent.glob(".*"):
        if pattern.fullmatch(path.name):
            yield path


def rank_name(rank: int, world_size: int) -> str:
    """The name of the directory of a rank's store, and of its checkpoint in one of all ranks."""
    return f"rank-{rank}-of-{world_size}"


def world_sizes(where: Path) -> list[int]:
    """The numbers of ranks of which there are directories in `where`, in ascending order."""
    matches = [re.fullmatch(r"rank-\d+-of-(\d+)", path.name) for path in complete_entries(where)]
    return sorted({int(match[1]) for match in matches if match})


def dense_file(rank: int | Literal["*"]) -> str:
    """The file of what a checkpoint of all ranks has of the dense part beside its tensors, as of this rank, or any."""
    return f"dense-{rank}.pt"


def is_checkpoint_name(name: str) -> bool:
    """Whether it is a name that checkpoints get: ``step_N`` or ``step_N.M``."""
    return re.fullmatch(r"step_\d+(\.\d+)?", name) is not None


def complete_entries(where: Path) -> Iterator[Path]:
    """What there is in the directory `where`, but for what is being written or removed."""
    return where.glob("[!.]*")


# ------------------------------------------------------------------ rows


def is_table_file(file: str | PurePath) -> bool:
    """Whether it is a table file of RocksDB: sorted rows, never changed once written, with a checksum a block."""
    return PurePath(file).suffix == _TABLE_FILE


def is_log(file: str | PurePath) -> bool:
    """Whether it is a log of RocksDB, a part of the journal: never changed once written, with a checksum a record."""
    return PurePath(file).suffix == _LOG


def holds_rows(file: str | PurePath) -> bool:
    """Whether it is one of the files that rows are in, which checkpoints share: a table file or a log."""
    return is_table_file(file) or is_log(file)


def selects_rows(file: str | PurePath) -> bool:
    """Whether it decides which rows RocksDB opens: a log, which it applies, or what names the table files."""
    return is_log(file) or PurePath(file).name.startswith(("CURRENT", "MANIFEST-"))


def is_rows(names: Collection[str]) -> bool:
    """Whether a directory with entries of these names may be one of rows: whole, or half made or removed."""
    return not names or any(read_by_rocksdb(name) or name.startswith(_BESIDE_ROWS) for name in names)


def read_by_rocksdb(file: str | PurePath) -> bool:
    """Whether RocksDB may read a file of that name in a directory of rows, other suffixes of table files included."""
    return holds_rows(file) or selects_rows(file) or PurePath(file).suffix in (".ldb", ".blob")


def table_files(rows: Path) -> Iterator[Path]:
    """The table files in the directory `rows`."""
    return rows.glob(f"*{_TABLE_FILE}")


def logs(rows: Path) -> list[Path]:
    """The logs in the directory `rows`, in the order of their numbers, in which RocksDB applies them."""
    return sorted(rows.glob(f"*{_LOG}"), key=lambda log: int(log.stem) if log.stem.isdecimal() else -1)


def journal_bytes(rows: Path) -> int:
    """The size of the logs in the directory `rows`."""
    return sum(log.stat().st_size for log in logs(rows))


def table_file_in(message: str) -> str | None:
    """The name of the table file that a message of RocksDB is about, if it names one."""
    # RocksDB looks for a missing .sst under the suffix that LevelDB gave it as well, and names that.
    match = re.search(r"(\d+)\.(?:sst|ldb)", message)
    return f"{match[1]}{_TABLE_FILE}" if match else None


# ------------------------------------------------------------------ lives of rows


def life_file(number: int) -> str:
    """The file of what the engine knows of the life of the rows of table `number`."""
    return f"{number}.life.bin"


# ------------------------------------------------------------------ deltas


def array_files(number: int) -> tuple[str, str, str]:
    """A delta's files of the ids, weights and deleted ids of the table `number`."""
    return f"{number}.ids.npy", f"{number}.weights.npy", f"{number}.deleted.npy"


def header_file(number: int) -> str:
    """A delta's file of the headers of the rows of the table `number`, if its rows die."""
    return f"{number}.headers.npy"
