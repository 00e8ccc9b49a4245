"""`convert_damo_dump`: a store of the rows that Damo-Embedding has dumped."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from damo_torchrec.checkpoints.atomic_directory import build_directory
from damo_torchrec.convert.damo_dump import DamoDump, DumpedGroup
from damo_torchrec.errors import CorruptionError
from damo_torchrec.init import Initializer
from damo_torchrec.modules import damo_dicts, damo_groups
from damo_torchrec.optim.rules import optimizer_spec
from damo_torchrec.options import StoreOptions
from damo_torchrec.progress import Progress, counting, reporting
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.store.table import Table, open_tables
from damo_torchrec.store.table_definition import TableDefinition

_log = logging.getLogger(__name__)

_SET_AT_ONCE = 4 << 20  # bytes of rows


@dataclass(frozen=True)
class GroupDicts:
    """What a group's module is made with, of which a dump says nothing: Damo-Embedding's dicts.

    Args:
        optimizer: whose state new rows have; ``adam`` does for ``adamw``, too.
        initializer: of rows that are not in the dump.
    """

    optimizer: Mapping[str, Any] = field(default_factory=lambda: {"name": "adam"})
    initializer: Mapping[str, Any] | Initializer | None = None

    def definition(self, group: DumpedGroup) -> TableDefinition:
        """Of the group's table. Raises ValueError for dicts that name nothing."""
        return TableDefinition(
            name=damo_groups.table_name(group.group, group.dim),
            dim=group.dim,
            num_embeddings=1,
            optimizer=optimizer_spec(*damo_dicts.optimizer(self.optimizer)),
            initializer=damo_dicts.initializer(self.initializer, group.dim),
        )


def convert_damo_dump(
    dump: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    groups: Mapping[int, GroupDicts] | None = None,
    others: GroupDicts | None = None,
    memory_budget: int | str = "1GiB",
    seed: int | None = None,
    progress: Progress | bool = True,
) -> dict[str, int]:
    """Makes a store of a dump's rows, whole or not at all. Returns how many each of its tables has.

    Tables are those of `Embedding`, ``group_G_dim_D``. A dump holds weights alone: optimizer state and counts of
    updates begin anew.

    Args:
        dump: a file that Damo-Embedding's ``dump`` wrote.
        store: a new directory.
        groups: by group, what its module is made with.
        others: the same for groups that are not there.
        memory_budget: as of `EmbeddingStore`.
        seed: as of `EmbeddingStore`.
        progress: as of `StoreOptions`.

    Raises:
        ValueError: `store` exists; `groups` has one that the dump has not; or dicts name no optimizer or initializer.
        CorruptionError: the dump is damaged: says where.
        OutOfSpaceError, DamoError, OSError: the disk is full or refuses. As after any error, there is no `store`.
    """
    source = DamoDump(Path(dump).absolute())
    dicts = dict(groups or {})
    if unknown := sorted(dicts.keys() - {group.group for group in source.groups}):
        raise ValueError(f"{source.path} has no groups {unknown}; it has {[group.group for group in source.groups]}")
    definitions = [dicts.get(group.group, others or GroupDicts()).definition(group) for group in source.groups]
    rows: dict[str, int] = {}

    def fill(staged: Path) -> None:
        options = StoreOptions(progress=progress)
        with EmbeddingStore(staged, memory_budget=memory_budget, seed=seed, options=options) as opened:
            tables = open_tables(opened.session, definitions)
            with reporting(progress) as tell:
                _fill_tables(source, tables, tell)
            rows.update({table.name: len(table) for table in tables})

    target = build_directory(Path(store).absolute(), "store", fill)
    _log.info("made the store %s of %d rows of %s", target, sum(rows.values()), source.path)
    return rows


def _fill_tables(dump: DamoDump, tables: list[Table], progress: Progress) -> None:
    advance = counting(progress, f"rows of {dump.path}", sum(group.keys for group in dump.groups))
    by_group = {group.group: table for group, table in zip(dump.groups, tables, strict=True)}
    waiting: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    size = 0
    for number, keys, weights in dump.read():
        waiting.setdefault(number, []).append((keys, weights))
        size += keys.nbytes + weights.nbytes
        if size >= _SET_AT_ONCE:
            _set_rows(by_group, waiting)
            waiting, size = {}, 0
        advance(len(keys))
    _set_rows(by_group, waiting)
    for group, table in zip(dump.groups, tables, strict=True):
        if len(table) != group.keys:
            raise CorruptionError(
                f"{dump.path} is damaged: its {group.keys} records of group {group.group} have {len(table)} keys, "
                "some of them more than once"
            )


def _set_rows(tables: Mapping[int, Table], rows: Mapping[int, list[tuple[np.ndarray, np.ndarray]]]) -> None:
    for number, parts in rows.items():
        keys, weights = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
        tables[number].set(keys, weights)


def read_configure(file: Path) -> dict[int, GroupDicts]:
    """What groups are made with, of the JSON of Damo-Embedding's ``get_damo_embedding_configure``.

    Raises:
        ValueError: the file is no such JSON.
        OSError: it cannot be read.
    """
    try:
        document = json.loads(file.read_text())
        return {
            _group(entry): GroupDicts(entry.get("optimizer") or {"name": "adam"}, entry.get("initializer"))
            for entry in document["embeddings"]
        }
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(
            f'{file} is not what get_damo_embedding_configure gives, {{"embeddings": [{{"group": 0, "optimizer": ..., '
            f'"initializer": ...}}, ...]}}: {type(error).__name__}: {error}'
        ) from error


def _group(entry: Mapping[str, Any]) -> int:
    group = damo_groups.check_group(entry["group"])
    if group is None:
        raise ValueError(f"group is {entry['group']}")
    return group
