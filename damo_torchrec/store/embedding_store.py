"""`EmbeddingStore`: one directory, many tables, one memory budget."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from damo_torchrec.advice import Advice
from damo_torchrec.arrays import as_ids
from damo_torchrec.checkpoints.cache_profile import CacheProfile, no_profile
from damo_torchrec.checkpoints.rank_identity import parts_of
from damo_torchrec.checkpoints.retention import Retention
from damo_torchrec.erasing.places import Kept, Paths, Places, paths_of
from damo_torchrec.erasing.report import ForgetReport
from damo_torchrec.files import make_temporary_directory, on_tmpfs
from damo_torchrec.html_table import html_table
from damo_torchrec.options import StoreOptions, parse_budget
from damo_torchrec.progress import reporting
from damo_torchrec.stats import StoreStats
from damo_torchrec.store import opening
from damo_torchrec.store.catalog import check_is_seed
from damo_torchrec.store.checkpoint_writer import CheckpointOptions
from damo_torchrec.store.conversion import Wanted, convert_table
from damo_torchrec.store.delta_writer import write_delta
from damo_torchrec.store.expiring import Condition, Where, expire
from damo_torchrec.store.flushing import flush
from damo_torchrec.store.forgetting import forget
from damo_torchrec.store.session import Session
from damo_torchrec.store.table import IdsLike, Table
from damo_torchrec.store.table_changes import drop_table, rename_table
from damo_torchrec.store.updates import apply_waiting
from damo_torchrec.torch_at_use import torch

_log = logging.getLogger(__name__)


class EmbeddingStore:
    """Embedding tables on disk, with the rows in use in memory.

    Opening a directory that holds a store goes on from its newest checkpoint. `close` makes one first, so that nothing
    is lost between two runs; after a crash, what came after the last checkpoint is. Usable as a context manager. Calls
    from several threads run one after the other.

    Args:
        path: the store's directory, made if it does not exist. None: a temporary one, removed at `close`.
        memory_budget: bytes, or a text like ``"512MiB"``, for everything the store keeps in memory.
        seed: what initial weights are drawn from, of at most 128 bits with its sign; None takes that of the store, 0
            for a new one.
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
        options = options or StoreOptions()
        check_is_seed(seed)
        budget = parse_budget(memory_budget)
        temporary = path is None
        if path is not None and options.backend == "memory":
            raise ValueError('backend="memory" keeps nothing on disk: it takes no path')
        if path is None:
            if read_only:
                raise ValueError("read_only=True needs the path of a store or a checkpoint")
            path = str(make_temporary_directory("damo_torchrec-"))
            if on_tmpfs(path):
                _log.warning(
                    "the temporary store %s is on tmpfs, that is, in memory beyond memory_budget: set TMPDIR to a disk",
                    path,
                )
        self._session = Session(Path(path).absolute(), options, budget, read_only=read_only, temporary=temporary)
        opening.start(self._session, seed, restore)
        self._session.close_at_exit()

    @property
    def session(self) -> Session:
        """For the modules of this package: the store that is open. No part of the interface."""
        return self._session

    # ------------------------------------------------------------------ tables

    def table(self, name: str) -> Table:
        """The table `name`, as it is stored where no collection has opened it. Raises KeyError if there is none."""
        try:
            return Table(self._session, self._session.stored_table(name))
        except KeyError:
            names = self._session.catalog.names()
            raise KeyError(f"the store {self.path} has no table {name!r}; its tables are {names}") from None

    def tables(self) -> dict[str, Table]:
        """All tables of the store, by name."""
        return {name: self.table(name) for name in self._session.catalog.names()}

    def drop_table(self, name: str) -> None:
        """Removes a table with all of its rows: one of a feature that the model does not have any more.

        It is a change like any other: the next checkpoint is without the table, those made before keep it, and a crash
        before it brings it back. `step` is the largest of the tables that are left. Deltas begin anew. Space that older
        checkpoints share is given back as these go, the rest at once, which takes as long as reading the table does.

        Args:
            name: the table's. Whoever holds it as a `Table` gets DamoError from then on.

        Raises:
            KeyError: there is no such table.
            ValueError: a collection has the table open, gradients of `accumulate` wait, or the store is read-only.
            OutOfSpaceError, DamoError: the disk is full or refuses; the table is as it was.
        """
        drop_table(self._session, name)

    def rename_table(self, old: str, new: str) -> None:
        """Gives a table another name. Its rows, and the initial values of rows to come, stay as they are.

        It is a change like any other, and deltas begin anew. Earlier releases cannot read checkpoints with a renamed
        table. A new table named `old` would draw the same initial values.

        Args:
            old: its name. Whoever holds it as a `Table` goes on with it.
            new: a name that no table has.

        Raises:
            KeyError: there is no table `old`.
            ValueError: there is a table `new`; a collection has the table open, gradients of `accumulate` wait, or the
                store is read-only.
        """
        rename_table(self._session, old, new)

    def convert_table(
        self,
        name: str,
        *,
        optimizer: type[torch.optim.Optimizer] | str | None = None,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        row_dtype: torch.dtype | str | None = None,
        dim: int | None = None,
    ) -> None:
        """Has a table go on with another optimizer, dim or dtype of rows. What is not given stays.

        Rows keep their weights and counts (`Table.metadata`), the table its `iter`, and rows live as long as they would
        have, and ids that were seen and have no row yet (`Admit`) go on from there. State that both optimizers have is
        taken over, the rest begins as that of new rows. They have in common: `exp_avg` and `exp_avg_sq` among Adam,
        AdamW, SparseAdam, AMSGrad, LAMB and their PartialRowWise kin; `sum` of Adagrad and RowWiseAdagrad. Where the
        new one has one number for a row, that is the mean over the columns, which is what it would have come to; the
        other way round it begins anew. Between Adam, AdamW and SparseAdam there is nothing to convert. FTRL computes
        weights from its state, which begins at zero, as that of new rows does: they hold until a row's next update.

        A larger `dim` appends columns with the weights that new rows have there; a smaller one keeps the first columns.
        Weights of 16 bits are the nearest; what is beyond float16's range becomes its largest number.

        Rows take as much disk again meanwhile. It is a change like any other: a crash before the next checkpoint leaves
        the table as it was. Deltas begin anew.

        Args:
            name: the table's. Whoever holds it as a `Table` goes on with it.
            optimizer: a class as collections take them, or an update rule's name, as "ADAM".
            optimizer_kwargs: of the class: ``amsgrad``, ``momentum``, ``initial_accumulator_value``, ``corrected_max``
                have an effect; a name takes the last two.
            row_dtype: torch.float32, float16 or bfloat16, or its name.
            dim: weights in a row.

        Raises:
            KeyError: there is no such table.
            ValueError: there is no such optimizer, dtype or dim, or its rows are too large for the memory budget; a
                collection has the table open, gradients of `accumulate` wait, or the store is read-only.
            OutOfSpaceError, DamoError: the disk is full or refuses; the table is as it was.
        """
        convert_table(self._session, name, Wanted(optimizer, optimizer_kwargs, row_dtype, dim))

    def table_from_arrow(
        self,
        name: str,
        data: object,
        *,
        optimizer: type[torch.optim.Optimizer] | str | None = None,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        row_dtype: torch.dtype | str | None = None,
        dim: int | None = None,
        num_embeddings: int | None = None,
        state: bool = True,
        counts: bool = True,
    ) -> Table:
        """Makes a table of columns as those of `Table.to_arrow`, whole or not at all. Deltas begin anew.

        What the table is, the schema's metadata say if `to_arrow` made it, the arguments where they are given. With
        state and counts it goes on as the one that was exported would have, to the bit; new rows begin alike if the
        seeds are.

        Args:
            name: a name that no table has.
            data: as of `Table.from_arrow`.
            optimizer: as of `convert_table`; needed where there are no metadata.
            optimizer_kwargs: likewise.
            row_dtype: likewise; float32 where nobody says.
            dim: weights in a row, where `weight` is of lists whose type has no size.
            num_embeddings: how many ids are expected: new rows are drawn from ±1/√num_embeddings. Needed where there
                are no metadata.
            state: as of `Table.from_arrow`.
            counts: likewise.

        Raises:
            ValueError: there is a table `name`; nothing says what it is; gradients of `accumulate` wait; or as
                `Table.from_arrow`. Nothing was changed.
            ImportError: pyarrow is missing.
            OutOfSpaceError, DamoError: the disk is full or refuses.
        """
        from damo_torchrec.store.arrow_tables import make_table

        wanted = Wanted(optimizer, optimizer_kwargs, row_dtype, dim)
        make_table(self._session, name, data, wanted, num_embeddings, state=state, counts=counts)
        return self.table(name)

    def expire(
        self,
        tables: str | Iterable[str] | None = None,
        *,
        below_norm: float | None = None,
        idle_steps: int = 1,
        where: Where | None = None,
    ) -> dict[str, int]:
        """Deletes rows by what is in them: those with small weights, or that a function chooses.

        Reads every row, some at a time, and deletes as `Table.delete` does: some million rows a second. Training in
        other threads waits until it returns, so that no row goes that an update has come to meanwhile. What
        `TableOptions` say of how long rows live needs no call: this is for what only weights tell.

        Args:
            tables: names of those whose rows may go; None for all.
            below_norm: the L2 norm of a row's weights that it needs to stay. Exactly one of this and `where` is given.
            idle_steps: with `below_norm`, rows stay that were updated within the table's last so many updates: a new
                row's weights are small.
            where: called with ids int64 ``(n,)``, weights float32 ``(n, dim)``, last_steps int64 ``(n,)`` and counts
                int64 ``(n,)`` (as `Table.metadata` has them) of some rows; returns which of them go, a bool tensor or
                array ``(n,)``. It may read the store and must not change it.

        Returns:
            dict: how many rows went, by table. If an error comes in the middle, those before it have gone.

        Raises:
            KeyError: there is no such table.
            ValueError: none or both of `below_norm` and `where` are given, a number is out of its range, what `where`
                returns does not fit, or the store is read-only.
            OutOfSpaceError, DamoError: the disk is full or refuses.
        """
        names = [tables] if isinstance(tables, str) else tables
        return expire(self._session, names, Condition(below_norm, idle_steps, where))

    def forget(
        self,
        ids: Mapping[str, IdsLike],
        *,
        checkpoints: Kept = "rewrite",
        exports: Paths = (),
        deltas: Paths = (),
        working_copies: Paths = (),
        dry_run: bool = False,
    ) -> ForgetReport:
        """Deletes rows so that no byte of their weights and state is left: the request of a person to be forgotten.

        Not in the live rows, not in any checkpoint inside the store, whoever made it, and in nothing that is shown. Of
        several ranks each calls it, and looks through its own part of the checkpoints of all of them as well.
        Servers hear of it by the next delta. What remains is the id, in the record that says that it was deleted. It is
        a call between two steps of training, and takes as long as copying the files that held the rows. One that was
        interrupted is completed by calling again, and a crash brings nothing back.

        Args:
            ids: by table, also one that is dropped, and that checkpoints have still. Ids without a row are passed over.
            checkpoints: of the store that have such rows: ``"rewrite"`` writes them anew without, as of the same step
                and state. ``"remove"`` removes them, but the newest, the newest of `save_model` and the last export.
            exports: of `damo_torchrec.onnx.export` and `damo_torchrec.serving.export`, by what these were given, and
                checkpoints elsewhere, or directories of them.
            deltas: of `export_delta`, or a `DeltaPublisher`'s directory.
            working_copies: of servers. Those that no server uses are removed; others, closed by their server, are gone.
            dry_run: find out what there is to do, and do nothing.

        Returns:
            ForgetReport: what had rows of them, and in `remaining` what has still, and why: what somebody reads, what
            the system refuses, files that have other names elsewhere.

        Raises:
            KeyError: there is no such table, nor was one in a checkpoint.
            ValueError: the store is read-only or in memory, gradients of `accumulate` wait, or a path is not there.
            OutOfSpaceError, DamoError: live rows cannot be rewritten.
        """
        elsewhere = [*paths_of(exports), *parts_of(self.path)]
        places = Places(checkpoints, elsewhere, paths_of(deltas), paths_of(working_copies))
        return forget(self._session, {name: as_ids(some) for name, some in ids.items()}, places, dry_run=dry_run)

    # ------------------------------------------------------------------ state

    @property
    def path(self) -> Path:
        """The store's directory."""
        return self._session.path

    @property
    def seed(self) -> int:
        """What initial weights are drawn from."""
        return self._session.catalog.manifest.seed

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._session.closed

    @property
    def step(self) -> int:
        """The largest number of updates that any table has had."""
        return self._session.step

    @property
    def grad_scale(self) -> float:
        """What arriving gradients are divided by: a `torch.amp.GradScaler`'s scale."""
        return self._session.grad_scale

    @grad_scale.setter
    def grad_scale(self, scale: float) -> None:
        if not (0 < float(scale) < float("inf")):
            raise ValueError(f"grad_scale must be positive and finite, got {scale}")
        self._session.grad_scale = float(scale)

    @property
    def clock(self) -> Callable[[], float]:
        """What tells the time that rules like ``Idle(days=30)`` go by, in seconds from any origin: `time.time`.

        It is read once for each update, by the thread that makes it. With the time of a stream's events, a run can be
        repeated: set it before the first collection is made. The time is the latest that it has said. Where it leaps
        ahead between two updates of the store, each rule counts half of its own time at most, and `ClockWarning` tells.
        """
        return self._session.catalog.lives.clock.function

    @clock.setter
    def clock(self, function: Callable[[], float]) -> None:
        if not callable(function):
            raise TypeError(f"clock must be a function that returns seconds, got {function!r}")
        self._session.catalog.lives.clock.function = function

    def accumulate(self, n: int) -> None:
        """From now on, every `n` backward passes make one update with the sum of their gradients.

        The gradients of passes that wait are kept in torch's memory. A pass that brings no gradient to rows of this
        store does not count. Raises ValueError while some wait: `apply_accumulated` applies them.
        """
        _ = self._session.engine
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"accumulate needs an int, got {n!r}")
        if n < 1:
            raise ValueError(f"accumulate needs n >= 1, got {n}")
        with self._session.mutex:
            self._session.waiting.check_none("change accumulate")
            self._session.waiting.passes_per_update = n

    def apply_accumulated(self) -> bool:
        """Updates rows with what waits for more passes, as at the end of an epoch that n does not divide.

        Returns:
            Whether an update was made: False if nothing waited, or it was skipped.

        Raises:
            NonFiniteGradientError: as ``backward()``. Nothing waits any more, and no table was updated.
        """
        _ = self._session.engine
        return apply_waiting(self._session)

    def stats(self) -> StoreStats:
        """Figures since the store was opened."""
        engine = self._session.engine
        rows, counts = engine.row_store_stats(), engine.row_counts()
        return StoreStats(
            memory_bytes=engine.cache_memory_bytes() + engine.work_memory_bytes() + rows.memory_bytes,
            memory_budget=self._session.memory_budget,
            disk_bytes=rows.disk_bytes,
            disk_used=engine.disk_used,
            disk_budget=self._session.options.disk_limit() or None,
            dead_bytes=rows.dead_bytes,
            reclaimed_records=rows.reclaimed_records,
            reclaimed_bytes=rows.reclaimed_bytes,
            reclaim_lacks_space=rows.reclaim_lacks_space,
            bytes_written=rows.bytes_written,
            rows_read=counts.read,
            rows_written=counts.written,
            skipped_backwards=self._session.skipped_backwards,
            tables={name: table.stats() for name, table in self.tables().items()},
        )

    def reset_stats(self) -> None:
        """Begins to count anew what is looked up: `LookupStats` of all tables are 0. Other figures stay."""
        self._session.engine.reset_lookup_stats()

    def cache_profile(self) -> CacheProfile | None:
        """How often memory budgets of other sizes would have the rows that are asked for, as far as is known.

        Returns:
            CacheProfile: of the latter half of this session's lookups and more, and of earlier sessions; of those alone
                without `StoreOptions.profile_cache`, and None if there was never one with it.

        Raises:
            CorruptionError: what the directory has of earlier sessions is damaged, and this one keeps no profile.
        """
        return self._session.profiles.profile(self._session.engine)

    def advise(self) -> Advice:
        """How large `memory_budget` should be, by `cache_profile`. ``str()`` of it says so in words.

        Raises:
            ValueError: there is no profile, or training has not looked anything up yet.
        """
        profile = self.cache_profile()
        if profile is None:
            raise ValueError(no_profile(self.path))
        return profile.advise()

    # ------------------------------------------------------------------ durability

    def flush(self) -> None:
        """Hands all changed rows to RocksDB. No durability by itself: that is what `checkpoint` is for.

        The next checkpoint then has no journal, and is opened at once. Where no row has changed since the last one,
        that stays the newest, with the journal that it has.
        """
        session = self._session
        with session.waiting_call("flush"), reporting(session.options.progress) as progress:
            flush(session.engine, session.path, progress)

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
        session = self._session
        with session.waiting_call("checkpoint"):
            newest = session.newest_if_unchanged() if path is None else None
            return newest or session.checkpoint(path, CheckpointOptions(link=link))

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
            OutOfSpaceError: `StoreOptions.disk_budget` is used up.
        """
        session = self._session
        with session.waiting_call("checkpoint"):
            newest = session.newest_if_unchanged() if path is None else None
            if newest is None:
                return session.checkpoint_async(path, CheckpointOptions(link=link))
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
        with self._session.alone("export a delta of"):
            return write_delta(self._session, Path(path).absolute(), since)

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints inside the store, oldest first."""
        return self._session.checkpoints()

    def prune(self, keep: int) -> list[Path]:
        """Removes older checkpoints inside the store, and returns them.

        Of those that `checkpoint`, `save_model` and `close` made without a path. What was made at a path of the caller
        stays, and so does what a `CheckpointManager` or another store made, and what a read-only store is open over.
        `StoreOptions.keep_checkpoints` has the same done whenever there is a new one.

        Args:
            keep: how many of them stay: the newest, and the newest of `save_model`.

        Raises:
            ValueError: `keep` is not positive, or the store is read-only or in memory.
            DamoError: the system refuses.
        """
        return self._session.prune(Retention(keep))

    def restore(self, which: str | int | os.PathLike[str] = "latest") -> None:
        """Goes back to a checkpoint; what came after it is given up, where no other checkpoint holds it.

        Args:
            which: ``"latest"``, a step, or a checkpoint's name or path.

        Raises:
            ValueError: there is no such checkpoint.
            SchemaMismatchError: an open table has another schema in the checkpoint; nothing was changed.
        """
        opening.restore(self._session, which)

    def close(self) -> None:
        """Makes a checkpoint if anything changed since the last one, and releases files and memory. Idempotent.

        If the checkpoint fails, the store stays open. If an interrupt comes after it, the store takes no calls any more
        but another `close`, which ends what is left.

        A normal end of the interpreter closes the stores that are open, after what other modules registered with
        `atexit` since this package was imported; threads that are still at work get StoreClosedError. A signal that
        kills, and ``os._exit``, leave a store as a crash does: the next opening goes back to its last checkpoint.

        Raises:
            DamoError: the disk refuses; or it is called in the middle of another call of this thread, by a signal
                handler or a finalizer.
        """
        self._session.close()

    def __enter__(self) -> EmbeddingStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        session = self._session
        state = "closed" if session.closed or session.in_other_process else f"step={self.step}"
        return f"EmbeddingStore({str(self.path)!r}, {state}, tables={sorted(session.catalog.open)})"

    def _repr_html_(self) -> str:
        if self.closed or self._session.in_other_process:
            return html_table([(repr(self),)])
        rows = [(name, table.dim, len(table)) for name, table in self.tables().items()]
        return html_table(rows, ("table", "dim", "rows"), caption=f"{self.path}, step {self.step}")

    def __reduce__(self) -> Any:
        raise TypeError("an EmbeddingStore cannot be copied or pickled: use save_model and load_model")
