"""A process that gets no more memory from the system: calls raise MemoryError, and the store goes on."""

import itertools
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from processes import run_program
from support import config
from wrong_batches import collection

MIB = 2**20


def without_memory(call: Callable[[], object], spare: int) -> str:
    """The name of what `call` raises where the process may take `spare` more bytes, or "" if it does not."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + spare, limits[1]))
    try:
        call()
    except (MemoryError, damo.DamoError) as error:
        return type(error).__name__
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    return ""


def restores(directory: Path) -> None:
    options = damo.StoreOptions(num_threads=2)
    with damo.EmbeddingStore(directory / "store", memory_budget="64MiB", options=options) as store:
        collection(store, config("t"))
        table = store.table("t")
        ids = torch.arange(1000)
        table.set(ids, torch.ones(1000, table.dim))
        store.checkpoint()
        failed = 0
        # From where nothing can be begun to where RocksDB has the threads that it wants, whose stacks are of 8 MiB.
        for spare in itertools.chain(range(0, 16 * MIB, 4 * MIB), range(16 * MIB, 512 * MIB, 24 * MIB)):
            raised = without_memory(lambda: store.restore("latest"), spare)
            if not raised:
                break
            failed += 1
            assert torch.equal(store.table("t").get(ids), torch.ones(1000, table.dim))
        assert failed > 0
        assert not raised, "restore takes more than half a gigabyte"
        assert len(store.table("t")) == 1000
        store.table("t").set(ids, torch.zeros(1000, table.dim))
        store.checkpoint()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_a_restore_without_memory_raises_and_the_rows_stay(tmp_path):
    run_program(restores, tmp_path)


def checkpoints_in_the_background(directory: Path) -> None:
    options = damo.StoreOptions(num_threads=1)
    with damo.EmbeddingStore(directory / "store", memory_budget="64MiB", options=options) as store:
        collection(store, config("t"))
        table = store.table("t")
        for spare in (0, MIB, 4 * MIB, 16 * MIB):
            table.set([1], torch.full((1, table.dim), float(spare)))
            futures = []
            raised = without_memory(lambda: futures.append(store.checkpoint_async()), spare)  # noqa: B023
            assert raised or isinstance(futures[0].exception(), MemoryError | damo.DamoError | None)
            store.checkpoint()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_a_checkpoint_in_the_background_without_memory_ends(tmp_path):
    """Without memory for its first frame, a thread of Python's ends without a word."""
    run_program(checkpoints_in_the_background, tmp_path)
