"""`EmbeddingStore`: one directory, many tables, one memory budget."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import threading
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from damo_torchrec import _core
from damo_torchrec.checkpoints.atomic_directory import check_target, clear_unfinished
from damo_torchrec.checkpoints.layout import CHECKPOINTS, ROWS
from damo_torchrec.checkpoints.lineage import Lineage
from damo_torchrec.checkpoints.listing import (
    checkpoints_in,
    find_checkpoint,
    free_name,
    has_checkpoints,
    is_checkpoint,
    newest_checkpoint,
)
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.replayed_journal import ReplayedJournal, has_large_journal
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.errors import CorruptionError, DamoError, StoreClosedError, UncleanStoreError
from damo_torchrec.files import on_tmpfs, os_errors, sync_directory
from damo_torchrec.options import StoreOptions, parse_budget
from damo_torchrec.stats import StoreStats, TableStats
from damo_torchrec.store.catalog import Catalog, check_is_seed, check_seed, empty_manifest
from damo_torchrec.store.checkpoint_writer import CheckpointWriter, Files
from damo_torchrec.store.delta_writer import write_delta
from damo_torchrec.store.table import Table, TableDefinition

_log = logging.getLogger(__name__)


# What a normal end of the interpreter closes, so that forgetting close() costs nothing.
_open_stores: weakref.WeakSet[EmbeddingStore] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for store in list(_open_stores):
        try:
            store.close()
        except Exception:
            _log.exception("could not close the store %s: it goes back to its last checkpoint", store.path)


class EmbeddingStore:
    """Embedding tables on disk, with the rows in use in memory.

    Opening a directory that holds a store goes on from its newest checkpoint. `close` makes one first, so that nothing
    is lost between two runs; after a crash, what came after the last checkpoint is. Usable as a context manager. Calls
    from several threads run one after the other.

    Args:
        path: the store's directory, made if it does not exist. None: a temporary one, removed at `close`.
        memory_budget: bytes, or a text like ``"512MiB"``, for everything the store keeps in memory.
        seed: what initial weights are drawn from; None takes that of the store, 0 for a new one.
        restore: the checkpoint to begin with: ``"latest"``, a step, or a checkpoint's name or path. None begins with
            the latest too, but refuses a store that was not closed.
        options: how the store does its work.
        read_only: open the newest checkpoint (or the checkpoint `path`) without ever writing to it. The rows of a
            journal are written among temporary files, where there is a disk for them.

    Raises:
        ValueError: the budget is below the least, which the message tells; `path` is a file or another directory.
        StoreLockedError: the store is open already.
        SchemaMismatchError: the store has another seed.
        UncleanStoreError: the store was not closed and ``restore=None``; lists its checkpoints.
        CorruptionError: the checkpoint is damaged.
        OutOfSpaceError, DamoError: the disk is full or refuses.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        memory_budget: int | str = "1GiB",
        seed: int | None = None,
        restore: str | int | os.PathLike[str] | None = "latest",
        options: StoreOptions | None = None,
        read_only: bool = False,
    ) -> None:
        self._core: _core.Store | None = None
        self._process = os.getpid()
        self._options = options or StoreOptions()
        check_is_seed(seed)
        self._memory_budget = parse_budget(memory_budget)
        self._read_only = read_only
        self._generation = 0
        self._changed = False
        self._live_is_ours = False  # the live rows were started by this object
        self._skipped_backwards = 0
        self._grad_scale = 1.0
        self._accumulate = 1
        # Gradients that wait for `accumulate`, by collection; autograd.py fills and empties it.
        self._pending: dict[int, list[Any]] = {}
        self._mutex = threading.RLock()
        self._temporary = path is None
        if path is not None and self._options.backend == "memory":
            raise ValueError('backend="memory" keeps nothing on disk: it takes no path')
        if path is None:
            if read_only:
                raise ValueError("read_only=True needs the path of a store or a checkpoint")
            path = tempfile.mkdtemp(prefix="damo_torchrec-")
            if on_tmpfs(path):
                _log.warning(
                    "the temporary store %s is on tmpfs, that is, in memory beyond memory_budget: set TMPDIR to a disk",
                    path,
                )
        self._path = Path(path).absolute()
        self._catalog = Catalog(self._path, empty_manifest(0))
        self._writer = CheckpointWriter(self._path, self._catalog)
        self._directory: StoreDirectory | None = None
        self._replayed_journal: ReplayedJournal | None = None  # of a read-only store
        try:
            with os_errors(f"cannot open the store {self._path}"):
                if read_only:
                    self._open_read_only(seed, restore)
                else:
                    self._directory = StoreDirectory(self._path)
                    self._open(seed, restore)
        except BaseException:
            self._abandon()
            if self._temporary:
                shutil.rmtree(self._path, ignore_errors=True)
            raise
        _open_stores.add(self)

    # ------------------------------------------------------------------ opening

    def _open(self, seed: int | None, restore: str | int | os.PathLike[str] | None) -> None:
        assert self._directory is not None
        directory = self._directory
        clear_unfinished(directory.checkpoints_path)
        latest = restore is None or restore == "latest"
        if not has_checkpoints(self._path):
            if latest:
                self._create(seed or 0)
                return
            if not is_checkpoint(Path(str(restore))):
                raise ValueError(f"the new store {self._path} has no checkpoint {restore!r}")
        source = newest_checkpoint(self._path) if latest else find_checkpoint(self._path, restore)
        checkpoints = self.checkpoints()
        newest = checkpoints[-1] if checkpoints else None
        manifest = Manifest.read(source)
        check_seed(self._path, manifest.seed, seed)
        if directory.live.exists():
            names = ", ".join(p.name for p in checkpoints)
            if restore is None:
                raise UncleanStoreError(
                    f"the store {self._path} was not closed; its checkpoints are {names}. Open it with "
                    'restore="latest", or the name of one of them, to go on from there'
                )
            aside = directory.set_live_aside()
            _log.warning(
                "the store %s was not closed: it goes back to %s (step %d), and what came after it is set aside in %s",
                self._path,
                source.name,
                manifest.step,
                aside.name,
            )
        directory.checkpoints_path.mkdir(exist_ok=True)
        manifest.check_files(source)
        fresh = directory.prepare_live(source)
        self._live_is_ours = True
        directory.start_live(fresh)
        with _naming(source):
            self._start(manifest, Lineage.read(source, manifest), directory.live)
        if source.parent == directory.checkpoints_path:
            self._changed = source != newest
        else:
            # From here on the store has to stand without the place that it came from.
            self._checkpoint(None)

    def _create(self, seed: int) -> None:
        assert self._directory is not None
        if self._directory.live.exists():  # a crash before the first checkpoint: no row was ever there
            self._directory.set_live_aside()
        self._directory.checkpoints_path.mkdir(exist_ok=True)
        sync_directory(self._path)
        sync_directory(self._path.parent)
        self._live_is_ours = True
        self._start(empty_manifest(seed), Lineage(), self._directory.live, create=True)
        if self._options.backend == "rocksdb":
            self._checkpoint(None)

    def _open_read_only(self, seed: int | None, restore: str | int | os.PathLike[str] | None) -> None:
        if not self._path.is_dir():
            raise ValueError(f"{self._path} is not a directory")
        if is_checkpoint(self._path):
            source = self._path
        elif restore in (None, "latest"):
            source = newest_checkpoint(self._path)
        else:
            source = find_checkpoint(self._path, restore)
        manifest = Manifest.read(source)
        check_seed(self._path, manifest.seed, seed)
        manifest.check_files(source)
        with _naming(source):
            rows = self._replayed(source) if has_large_journal(source) else source / ROWS
            self._start(manifest, Lineage.read(source, manifest), rows)

    def _replayed(self, source: Path) -> Path:
        """The rows of a checkpoint with its journal replayed, if there is a place for them."""
        try:
            self._replayed_journal = ReplayedJournal(source, self._engine_options(read_only=False))
            return self._replayed_journal.path
        except CorruptionError:
            raise
        except (DamoError, OSError) as error:
            _log.warning("the journal of %s is held in memory, beyond memory_budget: %s", source, error)
            return source / ROWS

    def _start(self, manifest: Manifest, lineage: Lineage, rows: Path, create: bool = False) -> None:
        """Starts an engine over `rows` that holds what `manifest`, the end of `lineage`, says."""
        in_memory = self._options.backend == "memory"
        options = self._engine_options(self._read_only)
        core = _core.Store("" if in_memory else str(rows), create, in_memory, options)
        try:
            self._catalog.adopt(manifest, lineage, core)
        except BaseException:
            core.close()
            raise
        self._core = core
        self._generation += 1

    def _engine_options(self, read_only: bool = False) -> _core.StoreOptions:
        options = _core.StoreOptions()
        options.memory_budget = self._memory_budget
        options.num_threads = self._options.threads()
        options.direct_io = self._options.direct_io
        options.instruction_set = self._options.instruction_set
        options.cache_bytes = self._options.cache_bytes
        options.read_only = read_only
        return options

    def _abandon(self) -> None:
        """Lets go of what a failed opening has opened."""
        if self._core is not None:
            self._core.close()
            self._core = None
        if self._directory is not None:
            if self._live_is_ours:
                self._directory.remove_live()
            self._directory.release()
        if self._replayed_journal is not None:
            self._replayed_journal.remove()

    # ------------------------------------------------------------------ tables

    def table(self, name: str) -> Table:
        """The table `name`. Raises KeyError if no collection of this session has opened it."""
        try:
            return self._catalog.open[name]
        except KeyError:
            raise KeyError(
                f"no table {name!r} is open in the store {self._path}; open are {sorted(self._catalog.open)}"
            ) from None

    def tables(self) -> dict[str, Table]:
        """The tables that collections of this session have opened, by name."""
        return dict(self._catalog.open)

    def _open_tables(self, definitions: list[TableDefinition]) -> list[Table]:
        """Attaches to tables, making those that do not exist: all of them, or none.

        Raises:
            SchemaMismatchError: one exists with another schema.
        """
        with self._mutex:
            _ = self._engine
            for definition in definitions:
                self._catalog.check(definition, self._engine)
            opened = []
            for definition in definitions:
                if definition.name not in self._catalog.open:
                    self._catalog.add(Table(self, definition), self._engine)
                opened.append(self._catalog.open[definition.name])
            return opened

    # ------------------------------------------------------------------ state

    @property
    def path(self) -> Path:
        """The store's directory."""
        return self._path

    @property
    def seed(self) -> int:
        """What initial weights are drawn from."""
        return self._catalog.manifest.seed

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._core is None

    @property
    def step(self) -> int:
        """The largest number of updates that any table has had."""
        _ = self._engine
        return self._catalog.step()

    @property
    def grad_scale(self) -> float:
        """What arriving gradients are divided by: a `torch.amp.GradScaler`'s scale."""
        return self._grad_scale

    @grad_scale.setter
    def grad_scale(self, scale: float) -> None:
        if not (0 < float(scale) < float("inf")):
            raise ValueError(f"grad_scale must be positive and finite, got {scale}")
        self._grad_scale = float(scale)

    def accumulate(self, n: int) -> None:
        """From now on, every `n` backward calls of a collection make one update with the sum of their gradients.

        The gradients of calls that wait are kept in torch's memory. Raises ValueError while some do.
        """
        _ = self._engine
        if n < 1:
            raise ValueError(f"accumulate needs n >= 1, got {n}")
        self._check_nothing_pending("change accumulate")
        self._accumulate = n

    def stats(self) -> StoreStats:
        """Figures since the store was opened."""
        engine = self._engine
        rows, counts = engine.row_store_stats(), engine.row_counts()
        tables = {}
        for name, table in self.tables().items():
            stats = engine.table_stats(table._index)
            tables[name] = TableStats(len(table), stats.cached_rows, stats.hits, stats.misses)
        return StoreStats(
            memory_bytes=engine.cache_memory_bytes() + rows.memory_bytes,
            memory_budget=self._memory_budget,
            disk_bytes=rows.disk_bytes,
            bytes_written=rows.bytes_written,
            rows_read=counts.read,
            rows_written=counts.written,
            skipped_backwards=self._skipped_backwards,
            tables=tables,
        )

    # ------------------------------------------------------------------ durability

    def flush(self) -> None:
        """Hands all changed rows to RocksDB. No durability by itself: that is what `checkpoint` is for.

        The next checkpoint then has no journal, and is opened at once. Where no row has changed since the last one,
        that stays the newest, with the journal that it has.
        """
        self._engine.flush()

    def checkpoint(self, path: str | os.PathLike[str] | None = None, *, link: bool = True) -> Path:
        """Makes a checkpoint of all tables and returns its directory.

        Args:
            path: a new directory. None: ``checkpoints/step_N`` inside the store, or the last one if nothing changed
                since.
            link: share unchanged files with other checkpoints by hard links where the file system allows it; else
                copy them.

        Raises:
            ValueError: `path` exists, or gradients of `accumulate` wait.
            OutOfSpaceError, DamoError: the disk is full or refuses; the store goes on as it was.
        """
        with self._mutex:
            return self._newest_if_unchanged(path) or self._checkpoint(path, link=link)

    def checkpoint_async(self, path: str | os.PathLike[str] | None = None, *, link: bool = True) -> Future[Path]:
        """As `checkpoint`, of the rows as they are now, but written by a thread of its own while training goes on.

        Rows that are updated meanwhile are copied first, within the memory budget. What the thread has not come to by
        then waits for it: another checkpoint, `close`, `Table.set`, and an update that needs to write rows to make
        room.

        Returns:
            Future: of the checkpoint's directory. Its ``result()`` waits, and raises what `checkpoint` would. It
                cannot be cancelled.

        Raises:
            ValueError: `path` exists, or gradients of `accumulate` wait.
        """
        with self._mutex:
            newest = self._newest_if_unchanged(path)
            if newest is None:
                return self._checkpoint_async(path, link=link)
            done: Future[Path] = Future()
            done.set_result(newest)
            return done

    def export_delta(self, path: str | os.PathLike[str], *, since: int | str | os.PathLike[str]) -> Path:
        """Writes what changed since an earlier state of this store, for what serves from that. Returns the directory.

        `Delta.read` reads it. It costs what changed, and not what the tables hold. Checkpoints made before and after it
        are other states, that a later delta may begin from, as may this one.

        Args:
            path: a new directory.
            since: the step of a checkpoint or of an earlier delta, or its path.

        Raises:
            ValueError: `path` exists; the store has no such state in its past; not all of its tables are open.
            OutOfSpaceError, DamoError: the disk is full or refuses; nothing is left behind.
        """
        with self._mutex:
            return write_delta(self, Path(path).absolute(), since, {})

    def _newest_if_unchanged(self, path: str | os.PathLike[str] | None) -> Path | None:
        _ = self._engine
        self._writer.wait()
        checkpoints = self.checkpoints() if path is None and not self._changed else []
        return checkpoints[-1] if checkpoints else None

    def _checkpoint(
        self, path: str | os.PathLike[str] | None, files: Files | None = None, *, link: bool = True
    ) -> Path:
        """A checkpoint with more files: `files` gives their contents."""
        with self._mutex:
            target = self._new_checkpoint(path)
            self._writer.write(self._engine, target, files, link)
            self._changed &= target.parent != self.path / CHECKPOINTS
            return target

    def _checkpoint_async(
        self, path: str | os.PathLike[str] | None, files: Files | None = None, *, link: bool = True
    ) -> Future[Path]:
        """As `_checkpoint`; what `files` gives is taken now."""
        with self._mutex:
            target = self._new_checkpoint(path)
            if not self._changed or target.parent != self.path / CHECKPOINTS:
                return self._writer.begin(self._engine, target, files, link)
            self._changed = False
            try:
                return self._writer.begin(self._engine, target, files, link, failed=self._note_change)
            except BaseException:
                self._changed = True
                raise

    def _new_checkpoint(self, path: str | os.PathLike[str] | None) -> Path:
        """Where one can be made now: at `path`, or at a new name inside the store."""
        _ = self._engine
        directory = self._writable_directory()
        self._check_nothing_pending("checkpoint")
        self._writer.wait()
        target = Path(path).absolute() if path is not None else free_name(directory.checkpoints_path, self.step)
        check_target(target)
        return target

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints inside the store, oldest first."""
        return checkpoints_in(self._path)

    def restore(self, which: str | int | os.PathLike[str] = "latest") -> None:
        """Goes back to a checkpoint; what came after it is given up, where no other checkpoint holds it.

        Args:
            which: ``"latest"``, a step, or a checkpoint's name or path.

        Raises:
            ValueError: there is no such checkpoint.
            SchemaMismatchError: an open table has another schema in the checkpoint; nothing was changed.
        """
        with self._mutex:
            engine = self._engine
            directory = self._writable_directory()
            self._writer.wait()
            source = find_checkpoint(self._path, which)
            manifest = Manifest.read(source)
            self._catalog.check_restorable(manifest, source)
            manifest.check_files(source)
            fresh = directory.prepare_live(source)
            # What cannot be opened is found before the rows of now are given up.
            try:
                with _naming(source):
                    _core.Store(str(fresh), False, False, self._engine_options()).close()
            except BaseException:
                with suppress(OSError):
                    directory.remove_prepared()
                raise
            try:
                engine.close()
                self._pending.clear()
                directory.start_live(fresh)
                self._start(manifest, Lineage.read(source, manifest), directory.live)
            except BaseException:
                # The rows of before are gone, the others not in use: the next opening goes to a checkpoint.
                self._core = None
                _open_stores.discard(self)
                directory.release()
                raise
            self._changed = source != self.checkpoints()[-1]

    def _restore_unless_at(self, path: Path, checkpoint_id: str) -> None:
        """Goes to the checkpoint `path`, whose id is given, unless the rows are exactly it already."""
        with self._mutex:
            self._writer.wait()
            if self._changed or self._pending or self._catalog.manifest.id != checkpoint_id:
                self.restore(path)

    def close(self) -> None:
        """Makes a checkpoint if anything changed since the last one, and releases files and memory. Idempotent.

        If the checkpoint fails, the store stays open.
        """
        if self.closed or os.getpid() != self._process:
            return
        with self._mutex:
            if self._core is None:  # since another thread has closed it
                return
            self._writer.wait()
            if self._pending:
                _log.warning(
                    "the store %s closes while gradients wait for accumulate(%d): they are dropped",
                    self._path,
                    self._accumulate,
                )
                self._pending.clear()
            durable = not (self._read_only or self._temporary or self._options.backend == "memory")
            if durable and self._changed:
                self._engine.flush()  # a checkpoint without a journal is opened faster
                self._checkpoint(None)
            self._writer.close()
            self._engine.close()
            # A call that is interrupted from here on leaves the rest to the next one, or to the end of the interpreter.
            try:
                if self._directory is not None:
                    self._directory.remove_live()
            except DamoError:
                self._let_go()
                raise
            self._let_go()

    def _let_go(self) -> None:
        if self._directory is not None:
            self._directory.release()
        if self._replayed_journal is not None:
            self._replayed_journal.remove()
        if self._temporary:
            shutil.rmtree(self._path, ignore_errors=True)
        self._core = None
        _open_stores.discard(self)

    def __enter__(self) -> EmbeddingStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_core", None) is None or os.getpid() != self._process:
            return
        try:
            if not self._temporary:
                warnings.warn(f"the store {self._path} was not closed", ResourceWarning, stacklevel=2)
        finally:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed or os.getpid() != self._process else f"step={self.step}"
        return f"EmbeddingStore({str(self._path)!r}, {state}, tables={sorted(self._catalog.open)})"

    def __reduce__(self) -> Any:
        raise TypeError("an EmbeddingStore cannot be copied or pickled: use save_model and load_model")

    # ------------------------------------------------------------------ for collections

    def _writable_directory(self) -> StoreDirectory:
        if self._options.backend == "memory":
            raise ValueError(f'the store {self._path} with backend="memory" has no checkpoints')
        if self._directory is None:
            raise ValueError(f"the store {self._path} is read-only: it makes and restores no checkpoints")
        return self._directory

    @property
    def _engine(self) -> _core.Store:
        if os.getpid() != self._process:
            raise StoreClosedError(
                f"the store {self._path} belongs to process {self._process}, which opened it: "
                f"its child, process {os.getpid()}, cannot use it after a fork"
            )
        if self._core is None:
            raise StoreClosedError(f"the store {self._path} is closed")
        return self._core

    def _check_nothing_pending(self, what: str) -> None:
        if self._pending:
            raise ValueError(
                f"cannot {what} in the middle of accumulate({self._accumulate}): "
                "gradients of earlier backward calls wait"
            )

    def _note_change(self) -> None:
        self._changed = True


@contextmanager
def _naming(checkpoint: Path) -> Iterator[None]:
    """Has errors of opening name the checkpoint: RocksDB blames its MANIFEST for what is wrong with a row file."""
    try:
        yield
    except CorruptionError as error:
        raise CorruptionError(
            f"a file of {checkpoint / ROWS}, maybe not the one named here, is damaged: {error}"
        ) from error
