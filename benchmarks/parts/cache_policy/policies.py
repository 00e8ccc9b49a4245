"""Misses of our cache and of other ways to decide on the rows in memory, over the same ids."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
import torchrec
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from common.program import RefusedError
from common.workload import scatter
from parts.cache_policy.case import HINDSIGHT, KNOWN, LRU, OURS, Case, Outcome


def measure(case: Case, on_step: Callable[[], object] = lambda: None) -> Outcome:
    ours, cached_rows = train(case, on_step)
    misses = {OURS: ours, **static_misses(case, cached_rows)}
    if misses[HINDSIGHT] == 0:
        raise RefusedError(f"{cached_rows:,} rows were in memory, as many as were asked for: take more --steps")
    misses[LRU] = lru_misses(case, cached_rows, on_step)
    return Outcome(case.ids, cached_rows, misses)


def train(case: Case, on_step: Callable[[], object]) -> tuple[int, int]:
    """Our misses in the steps counted, and the rows that the cache held."""
    keys = [f"feature_{number}" for number in range(case.tables)]
    lengths = torch.ones(case.tables * case.batch_size, dtype=torch.int64)
    gradient = torch.full((case.batch_size, case.tables * case.dim), 1 / case.batch_size)
    options = damo.StoreOptions(backend=case.backend)
    with damo.EmbeddingStore(memory_budget=case.budget(), options=options) as store:
        collection = damo.EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(name=key, embedding_dim=case.dim, num_embeddings=case.rows, feature_names=[key])
                for key in keys
            ],
            optimizer_type=torchrec.optim.RowWiseAdagrad,
            optimizer_kwargs={"lr": 0.01},
            store=store,
        )
        counted = [0, 0]
        for step, ranks in enumerate(case.batches(), start=1):
            ids = np.concatenate([scatter(of_table, number) for number, of_table in enumerate(ranks)])
            output = collection(KeyedJaggedTensor(keys=keys, values=torch.from_numpy(ids), lengths=lengths))
            torch.autograd.backward(output.values(), gradient)
            if step in (case.first_counted, case.steps):
                tables = store.stats().tables.values()
                counted = [counted[1], sum(stats.misses for stats in tables)]
            on_step()
        return counted[1] - counted[0], sum(stats.cached_rows for stats in tables)


def static_misses(case: Case, cached_rows: int) -> dict[str, int]:
    """With the rows in memory that are asked for most often in the steps counted, or are most popular."""
    counts = np.zeros(case.all_rows, dtype=np.int64)
    for step, ranks in enumerate(case.batches()):
        if step >= case.first_counted:
            counts += np.bincount(case.numbers(ranks), minlength=case.all_rows)
    by_popularity = counts.reshape(case.tables, case.rows).T.ravel()  # the first ranks of all tables, then the second
    return {
        HINDSIGHT: int(np.sort(counts)[::-1][cached_rows:].sum()),
        KNOWN: int(by_popularity[cached_rows:].sum()),
    }


def lru_misses(case: Case, cached_rows: int, on_step: Callable[[], object]) -> int:
    """With the rows in memory that were used last."""
    misses = 0
    cached: OrderedDict[int, None] = OrderedDict()
    for step, ranks in enumerate(case.batches()):
        for number in case.numbers(ranks).tolist():
            if number in cached:
                cached.move_to_end(number)
                continue
            misses += step >= case.first_counted
            cached[number] = None
            if len(cached) > cached_rows:
                cached.popitem(last=False)
        on_step()
    return misses
