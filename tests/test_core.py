"""The binding of the engine: whatever a call waits for, it does not keep Python's other threads waiting."""

import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

import numpy as np
import pytest

from damo_torchrec import _core
from damo_torchrec.errors import DamoError
from processes import started

HANGS_AFTER = 120  # seconds

IDS = np.arange(64, dtype=np.int64)
LENGTHS = np.ones(64, dtype=np.int64)
VALUES = np.ones((64, 4), dtype=np.float32)
FOUND = np.zeros(64, dtype=np.uint8)
WEIGHTS = np.ones(64, dtype=np.float32)
OUT = np.zeros((64, 4), dtype=np.float32)
NEW_IDS = IDS + 1000
HEADERS = np.zeros((64, 2), dtype=np.uint32)


def schema(name: str) -> _core.TableSchema:
    table = _core.TableSchema()
    table.name, table.number, table.dim = name, 1 + (name != "t"), 4
    table.initializer, table.optimizer = _core.Initializer(), _core.OptimizerConfig("SGD")
    return table


def lookup() -> _core.Lookup:
    feature = _core.Feature(
        table=0,
        pooling=_core.Pooling.SUM,
        unseen=_core.UnseenRows.INITIAL,
        key=0,
        column=0,
        use=_core.LookupUse.TRAINING,
    )
    return _core.Lookup(
        features=[feature],
        ids=IDS.ctypes.data,
        num_ids=64,
        lengths=LENGTHS.ctypes.data,
        keys=1,
        batch=64,
        bags=0,
        weights=WEIGHTS.ctypes.data,
    )


def engine_with_rows() -> _core.Store:
    options = _core.StoreOptions()
    options.memory_budget, options.num_threads = 64 << 20, 2
    engine = _core.Store("", True, True, options)
    engine.open_table(schema("t"))
    engine.set(0, IDS.ctypes.data, 64, VALUES.ctypes.data, 0)
    return engine


# Every call of a store, and every object that is made over one, by what a test calls it.
CALLS: dict[str, Callable[[_core.Store], object]] = {
    "check_table": lambda s: s.check_table(schema("u")),
    "open_table": lambda s: s.open_table(schema("u")),
    "drop_table": lambda s: s.drop_table(1),
    "reclaim_table": lambda s: s.reclaim_table(1),
    "set_reclaimable_deletions": lambda s: s.set_reclaimable_deletions(1, 5),
    "rename_table": lambda s: s.rename_table(0, "v"),
    "set_optimizer": lambda s: s.set_optimizer(0, _core.OptimizerConfig("SGD")),
    "iter": lambda s: s.iter(0),
    "rows": lambda s: s.rows(0),
    "payload_size": lambda s: s.payload_size(0),
    "state_size": lambda s: s.state_size(0),
    "forward": lambda s: s.forward(lookup(), OUT.ctypes.data, 4),
    "prefetch": lambda s: s.prefetch(lookup()),
    "backward": lambda s: s.backward([(lookup(), VALUES.ctypes.data, 4)], grad_scale=1, skip_nonfinite=False),
    "find_fault": lambda s: s.find_fault([(lookup(), VALUES.ctypes.data, 4)], grad_scale=1),
    "weight_gradient": lambda s: s.weight_gradient(lookup(), VALUES.ctypes.data, 4, OUT.ctypes.data),
    "get": lambda s: s.get(0, IDS.ctypes.data, 64, _core.UnseenRows.ZEROS, OUT.ctypes.data),
    "mean": lambda s: s.mean(0),
    "known_mean": lambda s: s.known_mean(0),
    "set": lambda s: s.set(0, IDS.ctypes.data, 64, VALUES.ctypes.data, 0),
    "set_life": lambda s: s.set_life(0, _core.LifeOptions(), 0.0),
    "life_stats": lambda s: s.life_stats(0),
    "life_bytes": lambda s: s.life_bytes(0),
    "life_census": lambda s: s.life_census(0, [(lookup(), VALUES.ctypes.data, 4)]),
    "may_exchange": lambda s: s.may_exchange([(0, s.life_census(0, []))], 0.0),
    "life_digest": lambda s: s.life_digest(0),
    "align_life": lambda s: s.align_life(0, [s.life_bytes(0)]),
    "preview_life": lambda s: s.preview_life(0, _core.LifeOptions()),
    "follow": lambda s: s.follow(0, [1] * 34, 0),
    "set_copies": lambda s: s.set_copies(0, IDS.ctypes.data, 64, VALUES.ctypes.data, HEADERS.ctypes.data),
    "set_state": lambda s: s.set_state(0, IDS.ctypes.data, 64, VALUES.ctypes.data),
    "describe": lambda s: s.describe(0, IDS.ctypes.data, 64, OUT.ctypes.data, 0, FOUND.ctypes.data),
    "initial_weights": lambda s: s.initial_weights(0, IDS.ctypes.data, 64, OUT.ctypes.data),
    "add_sightings": lambda s: s.add_sightings(0, NEW_IDS.ctypes.data, 64, HEADERS.ctypes.data),
    "add_rows": lambda s: s.add_rows(
        0, NEW_IDS.ctypes.data, 64, VALUES.ctypes.data, VALUES.ctypes.data, HEADERS.ctypes.data
    ),
    "delete": lambda s: s.delete(0, IDS.ctypes.data, 64),
    "erase": lambda s: s.erase(0, NEW_IDS.ctypes.data, 64),
    "contains": lambda s: s.contains(0, IDS.ctypes.data, 64, FOUND.ctypes.data),
    "flush": lambda s: s.flush(),
    "flush_part": lambda s: s.flush_part(0),
    "checkpoint": lambda s: s.checkpoint("/nowhere/at/all", False),
    "begin_checkpoint": lambda s: s.begin_checkpoint(),
    "close": lambda s: s.close(),
    "table_stats": lambda s: s.table_stats(0),
    "reset_lookup_stats": lambda s: s.reset_lookup_stats(),
    "cache_profile": lambda s: s.cache_profile(),
    "row_store_stats": lambda s: s.row_store_stats(),
    "row_counts": lambda s: s.row_counts(),
    "cache_memory_bytes": lambda s: s.cache_memory_bytes(),
    "work_memory_bytes": lambda s: s.work_memory_bytes(),
    "require_disk": lambda s: s.require_disk(),
    "disk_used": lambda s: s.disk_used,
    "instruction_set": lambda s: s.instruction_set,
    "Scan": lambda s: _core.Scan(s, 0),
    "SightingScan": lambda s: _core.SightingScan(s, 0),
    "RowSnapshot": lambda s: _core.RowSnapshot(s, [0]),
    "OutputBuffer": lambda s: _core.OutputBuffer(s, 1000),
}
# What a checkpoint that is being written ends with: the test itself does that.
ENDS = {"write_checkpoint", "abandon_checkpoint"}


def test_every_call_of_a_store_is_tried():
    public = {name for name in vars(_core.Store) if not name.startswith("_")}
    assert public == {name for name in CALLS if name[0].islower()} | ENDS


def call_while_the_engine_waits(connection: Connection, name: str) -> None:
    """Ends only if other threads run while this call waits, if it does, for one that waits for a checkpoint."""
    engine = engine_with_rows()
    engine.begin_checkpoint()
    waiting = threading.Thread(target=engine.flush)
    waiting.start()
    while True:
        probe = threading.Thread(target=engine.row_counts)
        probe.start()
        probe.join(0.05)
        if probe.is_alive():
            break

    def call() -> None:
        with suppress(DamoError):  # of a checkpoint that has no place to go to
            CALLS[name](engine)

    called = threading.Thread(target=call)
    called.start()
    called.join(0.05)  # comes back only with Python's lock
    engine.abandon_checkpoint()
    for thread in (waiting, probe, called):
        thread.join()
    engine.abandon_checkpoint()
    connection.send("ended")


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_waits_lets_other_threads_run(name):
    with started(call_while_the_engine_waits, name) as (_, connection):
        assert connection.poll(HANGS_AFTER), "it keeps Python's lock while it waits"
        assert connection.recv() == "ended"


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.rows(1),
        lambda s: s.get(1, IDS.ctypes.data, 64, _core.UnseenRows.ZEROS, OUT.ctypes.data),
        lambda s: s.delete(1, IDS.ctypes.data, 64),
        lambda s: s.erase(1, IDS.ctypes.data, 64),
    ],
)
def test_a_table_that_is_not_there_is_refused(call):
    with pytest.raises(ValueError, match="there are 1 tables, got number 1"):
        call(engine_with_rows())
