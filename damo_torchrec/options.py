"""Options of stores and tables, and how sizes in bytes are written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from damo_torchrec import _core
from damo_torchrec.ids import check_salt
from damo_torchrec.init import Initializer
from damo_torchrec.life import Admit, AskedLife, Idle
from damo_torchrec.progress import Progress
from damo_torchrec.torch_at_use import torch

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)},
}


def parse_bytes(size: int | str) -> int:
    """Returns a number of bytes from an int or a text like ``"512MiB"``, ``"1.5GiB"`` or ``"2GB"``.

    Raises:
        ValueError: the text is not a number with a unit of B, KB, KiB, MB, MiB, GB, GiB, TB or TiB.
        TypeError: `size` is neither int nor str.
    """
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise TypeError(f"a size must be an int or a str like '512MiB', got {size!r}")
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", size)
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"a size must be a number with a unit of {', '.join(u for u in _UNITS if u)}, got {size!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_budget(budget: int | str) -> int:
    """`parse_bytes` of a memory budget. Raises ValueError below the least and above the most there can be."""
    size = parse_bytes(budget)
    least, most = _core.LEAST_MEMORY_BUDGET, _core.MOST_MEMORY_BUDGET
    if size < least:
        raise ValueError(f'memory_budget must be at least {least} bytes ("{least >> 20}MiB"), got {size}')
    if size > most:
        raise ValueError(f'memory_budget must be at most {most} bytes ("{most >> 40}TiB"), got {size}')
    return size


def check_progress(progress: object) -> None:
    """Raises TypeError for what can neither be told how far an operation is, nor says who is."""
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress must be a function of (what, done, total), True or False, got {progress!r}")


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """How a store does its work. None of these changes what is stored.

    Args:
        num_threads: threads that look up and update rows; None for as many as this process may use.
        direct_io: read and write past the operating system's page cache. Use it when other programs need that memory,
            or to have `memory_budget` mean all the memory that the store's data takes.
        on_nonfinite: what a NaN or infinite gradient does: ``"raise"`` NonFiniteGradientError, or ``"skip"`` the update
            of all rows of the store and count it in ``stats().skipped_backwards``. No table is updated either way.
        max_skipped_in_a_row: when so many updates in a row are skipped, the last of them raises
            NonFiniteGradientError all the same: a model whose dense weights are NaN learns nothing any more. Fewer are
            warned of. None for no limit.
        backend: ``"rocksdb"``, or ``"memory"`` for rows that are gone with the store.
        instruction_set: ``"auto"`` for the widest of ``"avx512"``, ``"avx2"`` and ``"plain"`` that the machine has.
            All of them compute the same bits.
        keep_unclean: how many of the rows that crashes left behind, which an opening sets aside as ``live.unclean-N``,
            to keep: the newest ones. The others are removed.
        keep_checkpoints: how many of the checkpoints that `checkpoint`, `save_model` and `close` make inside the store,
            where they are given no path, to keep: the newest ones, and the newest of `save_model`. The others are
            removed when there is a new one. None for all of them.
        disk_budget: bytes, or a text like ``"200GiB"``, that the files in the store's directory may take: live rows and
            their journal, checkpoints, and what crashes left behind; hard links count once. At 90 % of it a warning
            says so. Once it is reached, what would make new rows raises OutOfSpaceError before anything has changed,
            and so does a checkpoint, but that of `close`; reads, updates of rows that are there and deletions go on.
            None for no limit.
        copy_restored: whether the files of a checkpoint elsewhere that the store goes back to are copied, even where
            hard links could share them. Those of another user, or that others may write, always are.
        profile_cache: find out how often memory budgets of other sizes would have the rows that are asked for, by
            simulating some for a sample of the ids: `EmbeddingStore.cache_profile` and ``damo-torchrec advise`` tell.
            Neither rows nor what is computed change. The directory keeps what was found out, as ``cache_profile.json``.
            It takes some megabytes of memory beside the budget, and some percent of a step.
        progress: told how far operations of some seconds are (opening with a journal, restoring, closing, exporting):
            called with what is being done, how much of it is done, and how much there is, sometimes from another
            thread. What it raises is logged and ends nothing. True: a bar on stderr, if that is a terminal, once an
            operation takes more than a second. False: nothing.
        cache_bytes: for tests: keep no more than so many bytes of rows in memory between calls; 0 for the budget's
            share.
    """

    num_threads: int | None = None
    direct_io: bool = False
    on_nonfinite: Literal["raise", "skip"] = "raise"
    max_skipped_in_a_row: int | None = 100
    backend: Literal["rocksdb", "memory"] = "rocksdb"
    instruction_set: str = "auto"
    keep_unclean: int = 1
    keep_checkpoints: int | None = 7
    disk_budget: int | str | None = None
    copy_restored: bool = False
    profile_cache: bool = False
    progress: Progress | bool = True
    cache_bytes: int = 0

    def __post_init__(self) -> None:
        if self.num_threads is not None and not isinstance(self.num_threads, int):
            raise TypeError(f"num_threads must be an int or None, got {self.num_threads!r}")
        if self.num_threads is not None and not 1 <= self.num_threads <= 1024:
            raise ValueError(f"num_threads must be in 1..1024 or None, got {self.num_threads}")
        if isinstance(self.keep_unclean, bool) or self.keep_unclean < 0:
            raise ValueError(f"keep_unclean must be an int from 0 on, got {self.keep_unclean}")
        if self.keep_checkpoints is not None and not isinstance(self.keep_checkpoints, int):
            raise TypeError(f"keep_checkpoints must be an int or None, got {self.keep_checkpoints!r}")
        if self.keep_checkpoints is not None and (isinstance(self.keep_checkpoints, bool) or self.keep_checkpoints < 1):
            raise ValueError(f"keep_checkpoints must be an int from 1 on, or None, got {self.keep_checkpoints}")
        if self.on_nonfinite not in ("raise", "skip"):
            raise ValueError(f"on_nonfinite must be 'raise' or 'skip', got {self.on_nonfinite!r}")
        limit: object = self.max_skipped_in_a_row
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ValueError(f"max_skipped_in_a_row must be an int from 1 on, or None, got {limit!r}")
        if self.backend not in ("rocksdb", "memory"):
            raise ValueError(f"backend must be 'rocksdb' or 'memory', got {self.backend!r}")
        if self.disk_budget is not None and not 1 <= parse_bytes(self.disk_budget) < 2**63:
            raise ValueError(f"disk_budget must be in 1..{2**63 - 1} bytes or None, got {self.disk_budget!r}")
        if self.disk_budget is not None and self.backend == "memory":
            raise ValueError('backend="memory" keeps nothing on disk: it takes no disk_budget')
        if not isinstance(self.copy_restored, bool):
            raise TypeError(f"copy_restored must be a bool, got {self.copy_restored!r}")
        if not isinstance(self.profile_cache, bool):
            raise TypeError(f"profile_cache must be a bool, got {self.profile_cache!r}")
        check_progress(self.progress)
        if not 0 <= self.cache_bytes <= _core.MOST_MEMORY_BUDGET:
            raise ValueError(f"cache_bytes must be in 0..{_core.MOST_MEMORY_BUDGET}, got {self.cache_bytes}")

    def disk_limit(self) -> int:
        """`disk_budget` in bytes; 0 for None."""
        return 0 if self.disk_budget is None else parse_bytes(self.disk_budget)

    def threads(self) -> int:
        """The number of threads to use."""
        if self.num_threads is not None:
            return self.num_threads
        return max(
            1,
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        )


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """What a table has beyond its TorchRec config.

    How long rows live may change whenever a table is opened, and is kept with it: None is for what the table has, which
    for a new one is no rule. Two collections that live and ask differently are refused. Rows that have gone stay gone.
    docs/tables.md tells more.

    Args:
        optimizer: ``(optimizer_type, optimizer_kwargs)`` of this table; None takes the collection's.
        clip_grad_value: the largest absolute value of a row's gradient, as with `torch.nn.utils.clip_grad_value_`.
        clip_grad_norm: the largest L2 norm of a row's gradient, as with `torch.nn.utils.clip_grad_norm_` of that row
            alone. It comes after `clip_grad_value`.
        initializer: the distribution of initial weights; None takes the config's ``init_fn`` or its
            ``weight_init_min`` and ``weight_init_max``.
        row_dtype: what the row's weights are stored as: torch.float32, or torch.float16 or torch.bfloat16, which halve
            memory and disk. None takes the config's ``data_type``. Updates compute in float32, with float32 state, and
            round at random, by a hash of table, id and iteration: the mean of what is lost is 0, and runs are
            reproducible. Outputs are float32.
        unseen_in_eval: what ids without a row read as in eval mode, by `Table.get` and where the model is served:
            ``"zeros"``, their ``"initial"`` value, or the ``"mean"`` of the table's rows; zeros while there are none.
            The mean is taken over all rows at the first lookup in eval mode after any has changed, which reads the
            table once, at some 2 to 4 million rows a second, and is logged; a checkpoint that is being written is
            waited for. Until rows change again it stays.
        unseen_in_train: what they read as in train mode: their ``"initial"`` value, or ``"zeros"``. A row begins with
            its initial value either way, which its first update changes by the gradient of what was read.
        trainable: whether this collection trains the table. Rows of one that it does not train stay as they are, ids
            without one get none, and train mode reads it as eval mode does.
        string_salt: the table's ids are `damo_torchrec.ids.hash_strings` of strings, with this salt; None: they are
            not. Nothing changes in training; exported models say so of the features, for which a `Predictor` then
            takes strings.
        admit: which ids get a row: by how often they were seen. ``Admit(sightings=1)``: all.
        expire: when rows go: a list of `Idle`, each of which is enough. ``[]``: never.
        min_rows: `expire` leaves so many rows.
        max_rows: an update that leaves more rows cuts them to `keep_rows`: those stay that were updated last. The rows
            of that update stay in any case. ``float("inf")``: any number of rows.
        keep_rows: at most `max_rows`; where that is given without it, 15/16 of it.
        credit: with `max_rows`, how many updates of the table each doubling of a row's count makes up for: 0 keeps the
            rows updated last, a large one those updated most frequently.
    """

    optimizer: tuple[type[torch.optim.Optimizer], Mapping[str, Any]] | None = None
    clip_grad_value: float | None = None
    clip_grad_norm: float | None = None
    initializer: Initializer | None = None
    row_dtype: torch.dtype | None = None
    unseen_in_eval: Literal["zeros", "initial", "mean"] = "zeros"
    unseen_in_train: Literal["initial", "zeros"] = "initial"
    trainable: bool = True
    string_salt: int | None = None
    admit: Admit | None = None
    expire: Sequence[Idle] | None = None
    min_rows: int | None = None
    max_rows: int | float | None = None
    keep_rows: int | None = None
    credit: int | None = None

    def __post_init__(self) -> None:
        optimizer: object = self.optimizer
        if optimizer is not None and not (isinstance(optimizer, tuple) and len(optimizer) == 2):
            raise TypeError(f"optimizer must be (optimizer_type, optimizer_kwargs), got {self.optimizer!r}")
        for name in ("clip_grad_value", "clip_grad_norm"):
            limit = getattr(self, name)
            if limit is not None and not isinstance(limit, int | float):
                raise TypeError(f"{name} must be a number, got {limit!r}")
            if limit is not None and not 0 < limit < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {limit}")
        if self.row_dtype is not None and self.row_dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"row_dtype must be torch.float32, float16 or bfloat16, got {self.row_dtype}")
        if self.initializer is not None and not isinstance(self.initializer, Initializer):
            raise TypeError(f"initializer must be one of damo.init's, got {self.initializer!r}")
        if self.unseen_in_eval not in ("zeros", "initial", "mean"):
            raise ValueError(f"unseen_in_eval must be 'zeros', 'initial' or 'mean', got {self.unseen_in_eval!r}")
        if self.unseen_in_train not in ("initial", "zeros"):
            raise ValueError(f"unseen_in_train must be 'initial' or 'zeros', got {self.unseen_in_train!r}")
        if not isinstance(self.trainable, bool):
            raise TypeError(f"trainable must be True or False, got {self.trainable!r}")
        if self.string_salt is not None:
            check_salt(self.string_salt)
        _ = self.life  # raises for what is wrong with it

    @property
    def life(self) -> AskedLife:
        """What they ask of how long rows live."""
        return AskedLife(
            admit=self.admit,
            expire=self.expire,
            min_rows=self.min_rows,
            max_rows=self.max_rows,
            keep_rows=self.keep_rows,
            credit=self.credit,
        )
