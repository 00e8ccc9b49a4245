"""Where a session's rows come from: the checkpoint that a store is opened with, or goes back to."""

import logging
import os
import time
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.atomic_directory import clear_unfinished
from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.in_use import InUse
from damo_torchrec.checkpoints.layout import MANIFEST_FILE, ORIGIN_FILE, ROWS, journal_bytes, logs
from damo_torchrec.checkpoints.lineage import Lineage
from damo_torchrec.checkpoints.listing import Listed, check_of_one_process, has_checkpoints, is_checkpoint
from damo_torchrec.checkpoints.manifest import Manifest, new_id
from damo_torchrec.checkpoints.origin import Origin
from damo_torchrec.checkpoints.reading_copy import ReadingCopy, has_large_journal
from damo_torchrec.checkpoints.row_counts import check_numbers
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.errors import CorruptionError, DamoError, UncleanStoreError
from damo_torchrec.files import bytes_in, bytes_read, check_space, os_errors, sync_directory
from damo_torchrec.progress import reporting, watching
from damo_torchrec.store.catalog import check_seed, empty_manifest
from damo_torchrec.store.session import Session
from damo_torchrec.store.tables_changed import TablesChanged

_log = logging.getLogger(__name__)

# How often a reader looks for a checkpoint that is not removed before it is opened.
_TRIES = 10


def start(session: Session, seed: int | None, restore: str | int | os.PathLike[str] | None) -> None:
    """Starts a new session as `EmbeddingStore` says of its arguments. It is let go of if that fails."""
    try:
        with os_errors(f"cannot open the store {session.path}"):
            check_of_one_process(session.path)
            if session.read_only:
                _start_reading(session, seed, restore)
            else:
                session.directory = StoreDirectory(session.path)
                _start_live(session, session.directory, seed, restore)
    except BaseException:
        session.abandon()
        raise


def _start_live(
    session: Session, directory: StoreDirectory, seed: int | None, restore: str | int | os.PathLike[str] | None
) -> None:
    clear_unfinished(directory.checkpoints_path)
    latest = restore is None or restore == "latest"
    if not has_checkpoints(session.path):
        if latest:
            _create(session, directory, seed or 0)
            return
        if not is_checkpoint(Path(str(restore))):
            raise ValueError(f"the new store {session.path} has no checkpoint {restore!r}")
    session.catalog.checkpoints = CheckpointLine.of_store(session.path)
    source = session.catalog.checkpoints.find(restore)
    checkpoints = session.checkpoints()
    manifest = Manifest.read(source)
    manifest.check_can_be_followed(source)
    check_seed(session.path, manifest.seed, seed)
    if directory.live.exists():
        if restore is None:
            names = ", ".join(p.name for p in checkpoints)
            raise UncleanStoreError(
                f"the store {session.path} was not closed; its checkpoints are {names}. Open it with "
                'restore="latest", or the name of one of them, to go on from there'
            )
        kept = directory.set_live_aside(session.options.keep_unclean)
        _log.warning(
            "the store %s was not closed: it goes back to %s (step %d), and what came after it is %s",
            session.path,
            source.name,
            manifest.step,
            f"set aside in {kept[-1].name}" if kept else "removed",
        )
    directory.checkpoints_path.mkdir(exist_ok=True)
    _keep_line(session)
    own = source.parent == directory.checkpoints_path
    manifest.check_files(source, tables=False, logs=not own, records=False)  # else while they are loaded
    fresh = _prepare_live(session, directory, source, manifest)
    session.owns_live = True
    directory.start_live(fresh)
    session.note_rows(manifest)
    told = _telling("opened", session, source, manifest)
    with _naming(source, manifest), told, _hashing_logs(source, manifest):
        lives = manifest.read_lives(source)
        session.start(
            manifest, Lineage.read(source, manifest), directory.live, journal=logs(source / ROWS), lives=lives
        )
    if not latest:
        session.continued_rows.ask_for()
    if own:
        session.changed = source not in checkpoints[-1:]
    else:
        # From here on the store has to stand without the place that it came from.
        session.checkpoint()


def _keep_line(session: Session) -> None:
    """Has the store's directory say of which line it is, where an earlier release, or a copy of it, does not."""
    if session.catalog.checkpoints.line is None:
        session.catalog.checkpoints.line = new_id()
    if Origin.read(session.path) is None:
        Origin(session.catalog.checkpoints.line).write(session.path)


def _create(session: Session, directory: StoreDirectory, seed: int) -> None:
    if directory.live.exists():
        # A crash before the first checkpoint, where no row was ever there; or somebody has removed the checkpoints, and
        # these are the only rows.
        (*_, aside) = directory.set_live_aside(max(session.options.keep_unclean, 1))
        _log.warning("the store %s has no checkpoint: it begins anew, and %s holds what was there", session.path, aside)
    directory.checkpoints_path.mkdir(exist_ok=True)
    session.catalog.checkpoints.line = new_id()
    Origin(session.catalog.checkpoints.line).write(session.path)
    sync_directory(session.path)
    sync_directory(session.path.parent)
    session.owns_live = True
    session.start(empty_manifest(seed), Lineage(), directory.live, create=True)
    _log.info("made the store %s, in %d bytes of memory", session.path, session.memory_budget)
    if session.options.backend == "rocksdb":
        session.checkpoint()


def _start_reading(session: Session, seed: int | None, restore: str | int | os.PathLike[str] | None) -> None:
    path = session.path
    if not path.is_dir():
        raise ValueError(f"{path} is not a directory")
    for _ in range(_TRIES):
        source = path if is_checkpoint(path) else CheckpointLine.of_store(path).find(restore)
        try:
            Manifest.read(source)
            session.checkpoint_in_use = InUse(source / MANIFEST_FILE)  # who has the store does not remove it any more
            manifest = Manifest.read(source)  # which may have been written anew
            if session.checkpoint_in_use.is_at(source / MANIFEST_FILE):
                break
            session.checkpoint_in_use.end()
            _log.info("the checkpoint %s has been written anew meanwhile", source)
        except (OSError, CorruptionError):
            if source.exists():
                raise
            if source == path:
                raise ValueError(f"the checkpoint {path} has been removed") from None
            _log.info("the checkpoint %s has been removed meanwhile", source)
    else:
        raise ValueError(f"{source} has been removed: there are newer checkpoints")
    if source == path:
        origin = Listed.read(path).origin
        session.catalog.checkpoints.line = origin.line if origin else None
    else:
        session.catalog.checkpoints = CheckpointLine.of_store(path)
    check_seed(path, manifest.seed, seed)
    large = has_large_journal(source)
    manifest.check_files(source, tables=False, logs=not large)
    if source == path and not large:
        with _naming(source, manifest):
            check_numbers(source / ROWS, manifest, journal=True)
    with _naming(source, manifest), _telling("opened, to read alone,", session, source, manifest):
        lineage = Lineage.read(source, manifest)
        if large and _start_on_copy(session, source, manifest, lineage):
            return
        if large:
            manifest.check_files(source, tables=False)  # RocksDB takes some damage of a log for its end
        session.start(manifest, lineage, source / ROWS, lives=manifest.read_lives(source))


def _start_on_copy(session: Session, source: Path, manifest: Manifest, lineage: Lineage) -> bool:
    """Starts a read-only session on a copy, which takes what of the journal does not fit into memory.

    Returns whether there is a place for it.
    """
    try:
        session.reading_copy = ReadingCopy(source, manifest.files)
        with _hashing_logs(source, manifest):
            journal, lives = logs(source / ROWS), manifest.read_lives(source)
            session.start(manifest, lineage, session.reading_copy.path, journal=journal, lives=lives)
        return True
    except CorruptionError:
        raise
    except (DamoError, OSError) as error:
        _log.warning("the journal of %s is held in memory, beyond memory_budget: %s", source, error)
        if session.reading_copy is not None:
            session.reading_copy.remove()
            session.reading_copy = None
        return False


@contextmanager
def _hashing_logs(source: Path, manifest: Manifest) -> Iterator[None]:
    """Has a thread hash the logs while they are loaded, by the checksums of their records; raises in the end.

    Raises:
        CorruptionError: one is not as it was written.
    """
    with ThreadPoolExecutor(1, "damo-hashing") as pool:
        hashed = pool.submit(manifest.check_logs, source)
        yield
        hashed.result()


def restore(session: Session, which: str | int | os.PathLike[str]) -> None:
    """What `EmbeddingStore.restore` does."""
    with session.alone("restore"):
        engine = session.engine
        directory = session.writable_directory()
        session.wait_for_checkpoint()
        source = session.catalog.checkpoints.find(which)
        manifest = Manifest.read(source)
        manifest.check_can_be_followed(source)
        session.catalog.check_restorable(manifest, source)
        manifest.check_files(source, tables=False)
        lives = manifest.read_lives(source)
        fresh = _prepare_live(session, directory, source, manifest)
        # What cannot be opened is found before the rows of now are given up.
        try:
            with _naming(source, manifest):
                _core.Store(str(fresh), False, False, session.engine_options()).close()
            # What of the journal does not fit into memory is written there.
            check_space(fresh / "probe", journal_bytes(source / ROWS))
        except BaseException:
            with suppress(OSError):
                directory.remove_prepared()
            raise
        try:
            session.profiles.keep(engine)
            engine.close()
            session.waiting.clear()
            directory.start_live(fresh)
            session.note_rows(manifest)
            with _telling("restored", session, source, manifest):
                session.start(
                    manifest, Lineage.read(source, manifest), directory.live, journal=logs(source / ROWS), lives=lives
                )
        except BaseException:
            # The rows of before are gone, the others not in use: the next opening goes to a checkpoint.
            session.give_up_rows()
            raise
        session.changed = source not in session.checkpoints()[-1:] or session.catalog.lives.differ_from(manifest.tables)
        session.continued_rows.ask_for()


def tables_changed_since(session: Session, checkpoint_id: str) -> TablesChanged | None:
    """What was done to whole tables since a checkpoint, where whoever loads it means the rows as they are now.

    None if something else was done as well, or a table that was dropped was made anew: the checkpoint has its rows.
    """
    changes = session.tables_changed
    if changes is None or changes.since != checkpoint_id or session.waiting:
        return None
    return None if changes.dropped & {*session.catalog.names()} else changes


def restore_unless_at(session: Session, checkpoint: Path, tables: Set[str] | None) -> None:
    """Goes back to a checkpoint unless the rows are it already, but for tables dropped, renamed or converted since.

    Args:
        session: which.
        checkpoint: its path.
        tables: names of those that may be replaced; None for all. Others may only be added.

    Raises:
        ValueError: others would be replaced. Nothing was changed.
    """
    with session.mutex:
        session.wait_for_checkpoint()
        manifest = Manifest.read(checkpoint)
        if not (session.changed or session.waiting or session.catalog.manifest.id != manifest.id):
            session.continued_rows.ask_for()
            return
        if tables_changed_since(session, manifest.id) is not None:
            _log.info("the rows of %s are those of %s, and stay as tables were changed since", session.path, checkpoint)
            session.continued_rows.ask_for()
            return
        if tables is not None:
            differ = session.catalog.tables_that_differ(manifest, session.engine)
            if others := sorted(differ - tables):
                raise ValueError(
                    f"{checkpoint} holds the whole store {session.path}: loading it would replace the rows of other "
                    f"tables than the model's, {others}, by those that they had when it was made, or remove them. "
                    "Give whole_store=True to have that"
                )
        restore(session, checkpoint)


def restore_if_saved(session: Session, checkpoint: Path) -> None:
    """Goes back to a checkpoint unless the rows are it already, where that undoes nothing that no checkpoint has.

    Raises:
        ValueError: it would. Nothing was changed.
    """
    with session.mutex:
        session.wait_for_checkpoint()
        changes = session.tables_changed
        if session.waiting or (session.changed and (changes is None or changes.some)):
            raise ValueError(
                f"the store {session.path} is open and has changes that no checkpoint has: going back to {checkpoint} "
                "would undo them. Save them first, or close() the store"
            )
        if session.catalog.manifest.id == Manifest.read(checkpoint).id:
            session.continued_rows.ask_for()
        else:
            restore(session, checkpoint)


def _prepare_live(session: Session, directory: StoreDirectory, source: Path, manifest: Manifest) -> Path:
    """`StoreDirectory.prepare_live`, told of where files are copied, and checked where another store made them."""
    total = bytes_in(source / ROWS) - journal_bytes(source / ROWS)
    with (
        reporting(session.options.progress) as progress,
        watching(progress, f"bytes of {source}", total, lambda: bytes_in(directory.prepared)),
    ):
        fresh = directory.prepare_live(source, manifest.files, copy=session.options.copy_restored)
    if not _is_own(session, directory, source, manifest):
        # What was copied, as whoever owns the other files may change them.
        try:
            manifest.check_rows(fresh)
            journal = not has_large_journal(source)  # else it takes more memory than there is
            check_numbers(source / ROWS if journal else fresh, manifest, journal=journal)
        except BaseException:
            with suppress(OSError):
                directory.remove_prepared()
            raise
    return fresh


def _is_own(session: Session, directory: StoreDirectory, source: Path, manifest: Manifest) -> bool:
    """Whether the store made the checkpoint itself: its table files are not read from end to end, then."""
    if source.parent == directory.checkpoints_path:
        return True
    if ORIGIN_FILE not in manifest.files:
        return False
    origin = Origin.parse(manifest.read_file(source, ORIGIN_FILE), source / ORIGIN_FILE)
    return origin.line == session.catalog.checkpoints.line


@contextmanager
def _telling(what: str, session: Session, source: Path, manifest: Manifest) -> Iterator[None]:
    """Says how far an engine that starts from `source` is, and that it has been started.

    The engine does not say how much of a journal it has loaded. All that is read meanwhile is counted instead.
    """
    began = time.monotonic()
    if has_large_journal(source):
        total, before = journal_bytes(source / ROWS), bytes_read()
        with (
            reporting(session.options.progress) as progress,
            watching(progress, f"bytes of the journal of {source}", total, lambda: bytes_read() - before),
        ):
            yield
    else:
        yield
    _log.info(
        "%s the store %s at %s: step %d, %d tables, %d rows, %d bytes, in %.1f s",
        what,
        session.path,
        source,
        manifest.step,
        len(manifest.tables),
        sum(table.rows for table in manifest.tables.values()),
        sum(file.size for file in manifest.files.values()),
        time.monotonic() - began,
    )


@contextmanager
def _naming(checkpoint: Path, manifest: Manifest) -> Iterator[None]:
    """Has errors of opening name the checkpoint: RocksDB blames its MANIFEST for what is wrong with a row file."""
    try:
        yield
    except CorruptionError as error:
        manifest.check_files(checkpoint)  # a damaged log is named
        raise CorruptionError(
            f"a file of {checkpoint / ROWS}, maybe not the one named here, is damaged: {error}"
        ) from error
