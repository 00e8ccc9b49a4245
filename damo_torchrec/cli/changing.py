"""Stores as commands open them that change them, and what is asked before something is deleted."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.cli.command import absolute_path
from damo_torchrec.cli.reading import add_memory_budget, opened_to_read
from damo_torchrec.errors import StoreLockedError, UncleanStoreError
from damo_torchrec.options import StoreOptions
from damo_torchrec.store.embedding_store import EmbeddingStore


def add_store(parser: argparse.ArgumentParser) -> None:
    """A store that is changed."""
    parser.add_argument("store", type=absolute_path, metavar="STORE", help="a store, which nobody has open")
    add_memory_budget(parser)


def add_deletion_options(parser: argparse.ArgumentParser) -> None:
    """Those of what deletes something."""
    parser.add_argument("--dry-run", action="store_true", help="say what there is to do, and do nothing")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask first")


def check_is_store(path: Path) -> None:
    """Raises ValueError for what is no store, which an opening would make."""
    if not path.is_dir() or not StoreDirectory.is_store(path):
        raise ValueError(f"{path} is no store")


@contextmanager
def opened_to_change(options: argparse.Namespace, *, create: bool = False) -> Iterator[EmbeddingStore]:
    """A store that is open for this command alone. At the end there is one checkpoint of what has changed.

    If the command fails, or is interrupted, the store is at the checkpoint that it was at. None is removed.

    Raises:
        ValueError: there is no store, somebody has it open, or it was not closed.
    """
    if not create:
        check_is_store(options.store)
    try:
        store = EmbeddingStore(
            options.store,
            memory_budget=options.memory_budget,
            restore=None,
            options=StoreOptions(progress=not options.quiet, keep_checkpoints=None),
        )
    except StoreLockedError as error:
        raise ValueError(str(error)) from None
    except UncleanStoreError as error:
        raise ValueError(f"{error}, and close it; or let its training go on") from None
    try:
        yield store
        store.close()
    except BaseException:
        store.session.abandon()
        raise


@contextmanager
def opened_to_try(options: argparse.Namespace) -> Iterator[EmbeddingStore]:
    """The same for a dry run, which changes nothing."""
    check_is_store(options.store)
    with opened_to_read(options, options.store) as store:
        yield store


def agreed(options: argparse.Namespace, question: str) -> bool:
    """Whether the user wants it, whom a terminal asks.

    Raises:
        ValueError: there is no terminal, and no ``--yes``.
    """
    if options.yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty() or sys.stderr is None:
        raise ValueError(f"{question} There is no terminal to answer on: give --yes, or --dry-run")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing was done", file=sys.stderr)
    return False
