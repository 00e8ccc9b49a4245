"""`Session`: an open store, as the modules of this package share it."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from damo_torchrec import _core
from damo_torchrec.checkpoints.atomic_directory import check_target
from damo_torchrec.checkpoints.in_use import InUse
from damo_torchrec.checkpoints.layout import is_table_file
from damo_torchrec.checkpoints.lineage import Lineage
from damo_torchrec.checkpoints.listing import free_name
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.origin import STORE
from damo_torchrec.checkpoints.reading_copy import ReadingCopy
from damo_torchrec.checkpoints.retention import Retention
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.errors import DamoError, StoreClosedError
from damo_torchrec.life import AskedLife
from damo_torchrec.options import StoreOptions
from damo_torchrec.progress import Progress, reporting
from damo_torchrec.store.agreement import Agreement
from damo_torchrec.store.catalog import Catalog, core_tables, empty_manifest
from damo_torchrec.store.checkpoint_writer import CheckpointOptions, CheckpointWriter, NewCheckpoint
from damo_torchrec.store.continued_rows import ContinuedRows
from damo_torchrec.store.dense_part import DensePart
from damo_torchrec.store.disk_limit import DiskLimit
from damo_torchrec.store.flushing import flush
from damo_torchrec.store.hyperparameters import Hyperparameters
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.store.process_end import close_at_end, leave_at_end
from damo_torchrec.store.profile_keeper import ProfileKeeper
from damo_torchrec.store.table_definition import TableDefinition
from damo_torchrec.store.tables_changed import TablesChanged
from damo_torchrec.store.waiting import WaitingGradients

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
_PLAIN = CheckpointOptions()


class _Alone:
    """A call of a session that is `alone`. It ends with its frame, whatever interrupts that."""


class Session:
    """One opening of a store: its engine, and what goes with that.

    `EmbeddingStore` is its face for users, tables and collections hold on to it, and opening.py starts it. It closes
    itself when nothing refers to it any more.

    Attributes:
        path: the store's directory.
        options: how it does its work.
        memory_budget: bytes for everything that it keeps in memory.
        read_only: whether it never writes to the directory.
        temporary: whether the directory is removed when it closes.
        mutex: held by what changes rows, tables or the store's files. Reentrant.
        catalog: the tables.
        waiting: gradients that wait for the end of their backward pass, or for more passes.
        hyperparameters: what has trained which table.
        grad_scale: what arriving gradients are divided by.
        dense_part: the dense parameters whose steps are skipped where the rows' are, and the other way round, or None.
        agreement: those who train other stores by the same steps, or None.
        skipped_backwards: updates that were skipped because of a gradient that was not finite.
        skipped_in_a_row: those since the last one that was not.
        generation: counts the engines that there were. What was worked out for one is of no use to the next.
        changed: whether there is something that the newest checkpoint inside the store does not hold.
        tables_changed: what was done to whole tables since a checkpoint, or None if something else was done, too.
        directory: the store's, locked; None if it is read-only.
        continued_rows: whether rows of an earlier run are trained on without being asked for.
        owns_live: whether the live rows there were started by this session.
        trainers: the threads that have changed rows, by number.
        reading_copy: what a read-only session reads in place of a checkpoint's rows, or None.
        profiles: what was found out of the cache.
        checkpoint_in_use: has the checkpoint that a read-only session reads stay, or None.
    """

    def __init__(
        self, path: Path, options: StoreOptions, memory_budget: int, *, read_only: bool, temporary: bool
    ) -> None:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise ValueError(f"the path of a store must be text that UTF-8 can hold, got {str(path)!r}") from None
        self._core: _core.Store | None = None
        self._process = os.getpid()
        self.path = path
        self.options = options
        self.memory_budget = memory_budget
        self.read_only = read_only
        self.temporary = temporary
        self.mutex = threading.RLock()
        self._alone: weakref.ref[_Alone] | None = None  # the call that is, of the thread that has the mutex
        self._ending = False  # whether close has come to where the engine ends
        self.catalog = Catalog(path, empty_manifest(0))
        self.waiting = WaitingGradients()
        self.hyperparameters = Hyperparameters()
        self.grad_scale = 1.0
        self.dense_part: DensePart | None = None
        self.agreement: Agreement | None = None
        # Which of some ids have their rows here, bool (n,); None for all. Other ranks' stores have the others.
        self.has_rows_of: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.skipped_backwards = 0
        self.skipped_in_a_row = 0
        self.generation = 0
        self.changed = False
        self.tables_changed: TablesChanged | None = None
        self.continued_rows = ContinuedRows(path)
        self.trainers: set[int] = set()
        self.directory: StoreDirectory | None = None
        self.owns_live = False
        self.reading_copy: ReadingCopy | None = None
        self.checkpoint_in_use: InUse | None = None
        self._disk_limit = DiskLimit(path, 0 if read_only else options.disk_limit())
        self.profiles = ProfileKeeper(
            path,
            memory_budget,
            active=options.profile_cache,
            durable=not (read_only or temporary or options.backend == "memory"),
        )
        self._writer = CheckpointWriter(path, self.catalog, Retention(options.keep_checkpoints))

    # ------------------------------------------------------------------ the engine

    @property
    def engine(self) -> _core.Store:
        """What has the rows. Raises StoreClosedError if the store is closed, or another process opened it."""
        if os.getpid() != self._process:
            raise StoreClosedError(
                f"the store {self.path} belongs to process {self._process}, which opened it: "
                f"its child, process {os.getpid()}, cannot use it after a fork"
            )
        if self._core is None:
            raise StoreClosedError(f"the store {self.path} is closed")
        if self._ending:
            raise StoreClosedError(f"close() of the store {self.path} was interrupted: call close() again")
        return self._core

    @property
    def closed(self) -> bool:
        """Whether there is no engine: none yet, or no more."""
        return self._core is None

    @property
    def in_other_process(self) -> bool:
        """Whether this is a forked child of the process that opened the store."""
        return os.getpid() != self._process

    def engine_options(self, read_only: bool = False) -> _core.StoreOptions:
        """How an engine over this store's rows does its work."""
        options = _core.StoreOptions()
        options.memory_budget = self.memory_budget
        options.num_threads = self.options.threads()
        options.direct_io = self.options.direct_io
        options.instruction_set = self.options.instruction_set
        options.cache_bytes = self.options.cache_bytes
        options.read_only = read_only
        options.disk_budget = 0 if read_only else self.options.disk_limit()
        options.directory = str(self.path)
        return options

    def start(
        self,
        manifest: Manifest,
        lineage: Lineage,
        rows: Path,
        *,
        create: bool = False,
        journal: Sequence[Path] = (),
        lives: Mapping[str, bytes] | None = None,
    ) -> None:
        """Starts an engine over `rows`, and the logs `journal` over them, that holds what `manifest` says.

        `manifest` is the end of `lineage`, and `lives` what the engine knew of the lives of its rows. What of the
        journal does not fit into memory is written to `rows`.
        """
        in_memory = self.options.backend == "memory"
        options = self.engine_options(self.read_only)
        self.profiles.set_up(options)
        logs, tables = [str(log) for log in journal], core_tables(manifest) if journal else []
        core = _core.Store("" if in_memory else str(rows), create, in_memory, options, logs, tables)
        try:
            self.catalog.adopt(manifest, lineage, core, lives)
        except BaseException:
            core.close()
            raise
        self._core = core
        self.catalog.lives.watch(core, anew=True)
        self.tables_changed = TablesChanged(manifest.id)
        self.generation += 1

    def note_rows(self, manifest: Manifest) -> None:
        """Says that the live rows are those of `manifest`: their table files have the SHA-256 that it says."""
        entries = {Path(name).name: entry for name, entry in manifest.files.items() if is_table_file(name)}
        self._writer.digests.note(self.writable_directory().live, entries)

    # ------------------------------------------------------------------ tables and changes

    @property
    def step(self) -> int:
        """The largest number of updates that any table has had."""
        return self.catalog.step(self.engine)

    def open_tables(self, definitions: Sequence[TableDefinition]) -> list[OpenTable]:
        """Attaches to tables, making those that do not exist: all of them, or none.

        Raises:
            SchemaMismatchError: one exists with another schema.
        """
        _ = self.engine  # in a forked child nobody may be left to let go of the mutex
        with self.mutex:
            engine = self.engine
            if self.read_only:
                definitions = [self.catalog.to_be_read(definition) for definition in definitions]
            for definition in definitions:
                self.catalog.check(definition, engine)
            tables = [self.catalog.open_table(definition, engine) for definition in definitions]
            self.changed |= self.catalog.lives.differ_from(self.catalog.manifest.tables)
            self.catalog.lives.watch(self.engine)
            self.continued_rows.note_open(max((table.earlier_updates for table in tables), default=0))
            return tables

    def ask_life(self, table: OpenTable, asked: AskedLife) -> None:
        """Has a table's rows live as long as is asked from the next update on, as where a collection asks it.

        Raises:
            ValueError: what is asked contradicts itself, or what collections that live ask.
        """
        with self.waiting_call("change options of"):
            self.catalog.ask_life(table, asked, self.engine)
            self.changed |= self.catalog.lives.differ_from(self.catalog.manifest.tables)
            self.catalog.lives.watch(self.engine)

    def stored_table(self, name: str) -> OpenTable:
        """The table of this name, opened as it is stored if no collection has opened it. Raises KeyError."""
        if name in self.catalog.open:
            return self.catalog.open[name]
        _ = self.engine  # in a forked child nobody may be left to let go of the mutex
        with self.mutex:
            return self.catalog.open_stored(name, self.engine)

    def note_change(self) -> None:
        """Says that the newest checkpoint does not hold everything from now on. REQUIRES: the mutex."""
        self.changed = True
        self.tables_changed = None
        self.catalog.lineage.note_change()
        self.trainers.add(threading.get_ident())

    def note_update(self) -> None:
        """The same of an update. Warns if it is the first of rows that this run has not asked for."""
        if not self.read_only:
            self.continued_rows.note_update()
        self._disk_limit.tell(self.engine)
        self.note_change()

    @contextmanager
    def waiting_call(self, what: str) -> Iterator[None]:
        """Takes the mutex for a call that waits for the checkpoint that is being written. Says `what` in errors.

        Raises:
            DamoError: it comes in the middle of a call that is `alone`, of the same thread: from a signal handler, a
                finalizer or another callback. It would wait for itself.
        """
        if self.in_other_process:
            _ = self.engine  # raises: nobody may be left to let go of the mutex
        self._writer.check_elsewhere()
        with self.mutex:
            if self._alone is not None and self._alone() is not None:
                raise DamoError(
                    f"cannot {what} the store {self.path} in the middle of another call of this thread, where a signal "
                    "handler or a finalizer has called it: do it once that call has returned"
                )
            yield

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """The same for a call that has several steps, and that none of these may come in the middle of."""
        with self.waiting_call(what):
            call = _Alone()
            try:
                self._alone = weakref.ref(call)
                yield
            finally:
                self._alone = None

    @contextmanager
    def changing(self, table: OpenTable) -> Iterator[_core.Store]:
        """Takes the mutex for a change of a table's rows by their ids, and notes that there is one."""
        with self.waiting_call("change"):
            self._disk_limit.tell(self.engine)
            self.note_change()
            table.edited_after = self.catalog.manifest.sequence
            yield self.engine

    # ------------------------------------------------------------------ checkpoints

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints of the store's own line of states inside the store, oldest first."""
        return [checkpoint.path for checkpoint in self.catalog.checkpoints.checkpoints()]

    def newest_if_unchanged(self) -> Path | None:
        """The newest checkpoint inside the store if that holds everything. REQUIRES: the mutex.

        Raises:
            ValueError: gradients wait, which none can hold.
        """
        _ = self.engine
        self.waiting.check_none("checkpoint")
        self.wait_for_checkpoint()
        checkpoints = [] if self.changed else self.checkpoints()
        return checkpoints[-1] if checkpoints else None

    def wait_for_checkpoint(self) -> None:
        """Waits until none is being written. REQUIRES: the mutex."""
        self._writer.wait()

    def checkpoint(self, path: str | os.PathLike[str] | None = None, options: CheckpointOptions = _PLAIN) -> Path:
        """What `EmbeddingStore.checkpoint` makes, changed or not.

        Where there is no `path` the store itself is its keeper.
        """
        with self.alone("checkpoint"):
            self.engine.require_disk()
            return self._checkpoint(path, options)

    def _checkpoint(self, path: str | os.PathLike[str] | None, options: CheckpointOptions) -> Path:
        self.profiles.keep(self.engine)
        made = self._writer.write(self.engine, self._new_checkpoint(path, options))
        self.catalog.lives.tell(self.engine)
        self.tables_changed = TablesChanged(self.catalog.manifest.id)
        self.changed &= made.parent != self.catalog.checkpoints.where
        return made

    def checkpoint_async(
        self, path: str | os.PathLike[str] | None = None, options: CheckpointOptions = _PLAIN
    ) -> Future[Path]:
        """As `checkpoint`, by a thread of its own; what ``options.files`` gives is taken now."""
        with self.alone("checkpoint"):
            self.engine.require_disk()
            new = self._new_checkpoint(path, options)
            self.profiles.keep(self.engine)
            self.catalog.lives.tell(self.engine)
            if not self.changed or new.path.parent != self.catalog.checkpoints.where:
                return self._writer.begin(self.engine, new)
            self.changed = False
            try:
                return self._writer.begin(self.engine, new, failed=self.note_change)
            except BaseException:
                self.changed = True
                raise

    def _new_checkpoint(self, path: str | os.PathLike[str] | None, options: CheckpointOptions) -> NewCheckpoint:
        """One that can be made now: at `path`, or at a new name inside the store, which then keeps it."""
        _ = self.engine
        directory = self.writable_directory()
        self.waiting.check_none("checkpoint")
        self.wait_for_checkpoint()
        if path is None:
            path, options = free_name(directory.checkpoints_path, self.step), replace(options, keeper=STORE)
        target = Path(path).absolute()
        if not (options.keeper and target.exists()):  # else somebody was faster, and it gets another name
            check_target(target, may_replace=options.may_replace)
        return NewCheckpoint(target, options)

    def prune(self, retention: Retention) -> list[Path]:
        """Removes those of the store's checkpoints that it keeps and that do not stay; returns them."""
        with self.alone("prune"):
            _ = self.engine
            self.writable_directory()
            self.wait_for_checkpoint()
            return retention.apply(self.catalog.checkpoints, STORE)

    def writable_directory(self) -> StoreDirectory:
        """The store's directory. Raises ValueError if it can have no new checkpoints."""
        if self.options.backend == "memory":
            raise ValueError(f'the store {self.path} with backend="memory" has no checkpoints')
        if self.directory is None:
            raise ValueError(f"the store {self.path} is read-only: it makes and restores no checkpoints")
        return self.directory

    # ------------------------------------------------------------------ its end

    def close_at_exit(self) -> None:
        """Has a normal end of the interpreter close it."""
        close_at_end(self)

    def close(self) -> None:
        """What `EmbeddingStore.close` does."""
        if self.closed or self.in_other_process:
            return
        began = time.monotonic()
        with self.alone("close"), reporting(self.options.progress) as progress:
            if self._core is None:  # since another thread has closed it
                return
            if not self._ending:
                self._end_rows(progress)
            # A call that is interrupted from here on leaves the rest to the next one, or to the end of the interpreter.
            self._ending = True
            self._core.close()
            try:
                if self.directory is not None:
                    self.directory.remove_live()
            except DamoError:
                self._let_go()
                raise
            self._let_go()
        _log.info("closed the store %s in %.1f s", self.path, time.monotonic() - began)
        self._writer.close()  # without the mutex: what its thread calls at last may wait for that

    def _end_rows(self, progress: Progress) -> None:
        """Sees to it that a checkpoint holds all rows."""
        self.wait_for_checkpoint()
        if self.waiting:
            _log.warning(
                "the store %s closes while gradients wait for accumulate(%d): they are dropped, as apply_accumulated() "
                "was not called",
                self.path,
                self.waiting.passes_per_update,
            )
            self.waiting.clear()
        durable = not (self.read_only or self.temporary or self.options.backend == "memory")
        if durable and self.changed:
            flush(self.engine, self.path, progress)  # a checkpoint without a journal is opened faster
            self._checkpoint(None, _PLAIN)
        else:
            self.profiles.keep(self.engine)

    def _let_go(self) -> None:
        if self.directory is not None:
            self.directory.release()
        if self.reading_copy is not None:
            self.reading_copy.remove()
        if self.checkpoint_in_use is not None:
            self.checkpoint_in_use.end()
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)
        self._core = None
        leave_at_end(self)

    def abandon(self) -> None:
        """Lets go of what an opening that failed has opened."""
        if self._core is not None:
            self._core.close()
            self._core = None
        if self.directory is not None and self.owns_live:
            self.directory.remove_live()
        self._let_go()

    def give_up_rows(self) -> None:
        """Ends a session whose rows are lost, and leaves them to the next one."""
        if self._core is not None:
            self._core.close()
            self._core = None
        leave_at_end(self)
        if self.directory is not None:
            self.directory.release()

    def __del__(self) -> None:
        if getattr(self, "_core", None) is None or self.in_other_process:
            return
        try:
            if not self.temporary:
                warnings.warn(f"the store {self.path} was not closed", ResourceWarning, stacklevel=2)
        finally:
            self.close()
