"""Stores as commands open them that only read rows: at a checkpoint, beside whoever has the store open."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from damo_torchrec.checkpoints.in_use import processes_with
from damo_torchrec.checkpoints.layout import LIVE, LOCK_FILE
from damo_torchrec.cli.command import absolute_path
from damo_torchrec.cli.output import note
from damo_torchrec.options import StoreOptions
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.store.open_table import OpenTable


def add_store_and_table(parser: argparse.ArgumentParser) -> None:
    """A store and one of its tables."""
    _add_store(parser)
    parser.add_argument("table", metavar="TABLE", help="the table's name")


def add_reading_options(parser: argparse.ArgumentParser, *, table: bool) -> None:
    """A store or a checkpoint, a table if there is to be one, and which of the store's checkpoints."""
    if table:
        add_store_and_table(parser)
    else:
        _add_store(parser)
    parser.add_argument(
        "--checkpoint", default="latest", metavar="CHECKPOINT", help="its step, name or path; by default the newest"
    )
    add_memory_budget(parser)


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "store", type=absolute_path, metavar="STORE", help="a store, which may be open elsewhere, or a checkpoint"
    )


def add_memory_budget(parser: argparse.ArgumentParser) -> None:
    """How much memory a store may take."""
    parser.add_argument(
        "--memory-budget", default="64MiB", metavar="BYTES", help="as of EmbeddingStore; by default the least, 64MiB"
    )


@contextmanager
def opened_to_read(options: argparse.Namespace, path: Path, checkpoint: str = "latest") -> Iterator[EmbeddingStore]:
    """A store at a checkpoint, which nothing is written to. Says so where the store may be ahead of it."""
    store = EmbeddingStore(
        path,
        memory_budget=options.memory_budget,
        restore=checkpoint,
        options=StoreOptions(progress=not options.quiet),
        read_only=True,
    )
    with store:
        if checkpoint == "latest" and (why := why_ahead(path)):
            note(options, f"the store {path} {why}: this is its newest checkpoint, of step {store.step}")
        yield store


def why_ahead(store: Path) -> str | None:
    """Why a store may have rows that no checkpoint has; None if it has none."""
    if not (store / LIVE).is_dir():
        return None
    if holders := processes_with(store / LOCK_FILE):
        return f"is open in process {', '.join(map(str, holders))}"
    return "is open elsewhere, or was not closed"


def table_of(store: EmbeddingStore, name: str) -> OpenTable:
    """A table of a store. Raises ValueError if there is none of this name."""
    try:
        return store.table(name).opened
    except KeyError as error:
        raise ValueError(error.args[0]) from None
