"""Small collections and updates, and one larger training run, for tests that compare rows."""

import functools
import hashlib
from collections.abc import Mapping, Sequence

import torch
import torchrec
from torchrec import KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType

import damo_torchrec as damo
from support import config, kjt, payloads, random_kjt

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
Bags = Sequence[Sequence[int]]
Rows = dict[str, dict[int, bytes]]


def collection(
    store: damo.EmbeddingStore,
    *tables: str,
    dim: int = 4,
    optimizer: type = torchrec.optim.SGD,
    initial: float | None = None,
    unseen: str = "zeros",
    unseen_in_train: str = "initial",
    is_weighted: bool = False,
    **hyperparameters: object,
) -> damo.EmbeddingBagCollection:
    """Tables of one dim, each with a feature of its name; all initial weights are `initial`, if given."""
    options = damo.TableOptions(
        initializer=None if initial is None else damo.init.Constant(initial),
        unseen_in_eval=unseen,
        unseen_in_train=unseen_in_train,
    )
    return damo.EmbeddingBagCollection(
        [config(name, dim) for name in tables],
        optimizer,
        {"lr": 1.0, **hyperparameters},
        is_weighted,
        store=store,
        table_options=dict.fromkeys(tables, options),
    )


def look_up(ebc: damo.EmbeddingBagCollection, features: Mapping[str, Bags]) -> torch.Tensor:
    """The pooled output, (batch, ΣD)."""
    return ebc(kjt(dict(features))).values()


def update(ebc: damo.EmbeddingBagCollection, features: Mapping[str, Bags], gradient: float = 1.0) -> None:
    """One forward, and one backward in which every element of the output has this gradient."""
    output = look_up(ebc, features)
    output.backward(torch.full_like(output, gradient))


def rows_of(store: damo.EmbeddingStore) -> Rows:
    """All rows of all open tables, as bytes."""
    return {name: payloads(store, name) for name in store.tables()}


def assert_same_rows(actual: Rows, expected: Rows) -> None:
    """Asserts byte-equal rows; a failure names the first differing ids and not thousands of bytes."""
    assert actual.keys() == expected.keys()
    for table, rows in expected.items():
        now = actual[table]
        assert len(now) == len(rows), f"{table}: {len(now)} rows, expected {len(rows)}"
        different = [i for i in rows if now.get(i) != rows[i]]
        assert not different, f"{table}: {len(different)} of {len(rows)} rows differ, such as {different[:5]}"


class MixedRun:
    """30 steps over three collections with three optimizers.

    Their dims go from 3 to 64; features share a table, and tables a feature; there are weighted means, repeated ids
    and empty bags.

    Which gradient arrives depends on the step and on the output, by operations that torch rounds one by one; a few are
    so small that the optimizer's state becomes subnormal. So the rows are a function of the engine's work alone.
    """

    STEPS = 30

    def __init__(self, store: damo.EmbeddingStore) -> None:
        self.outputs = hashlib.sha256()
        rowwise = [config("user", 16, ["user", "friend"]), config("shop", 7, ["shop"], pooling=PoolingType.MEAN)]
        adam = [config("item", 64, ["item", "seen"]), config("brand", 24, ["item"])]
        adagrad = [config("word", 3, ["word"], pooling=PoolingType.MEAN)]
        self.collections = [
            damo.EmbeddingBagCollection(rowwise, torchrec.optim.RowWiseAdagrad, {"lr": 0.1}, store=store),
            damo.EmbeddingBagCollection(adam, torch.optim.AdamW, {"lr": 0.01}, store=store),
            damo.EmbeddingBagCollection(adagrad, torch.optim.Adagrad, {"lr": 0.1}, is_weighted=True, store=store),
        ]

    def train(self, first: int = 0, last: int = STEPS, reverse_keys: bool = False) -> None:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            batch = random_kjt(generator, ["user", "friend", "shop", "item", "seen", "word"], 64, 3000, weighted=True)
            if reverse_keys:
                batch = permuted(batch, list(reversed(range(len(batch.keys())))))
            for ebc in self.collections:
                output = ebc(batch).values()
                self.outputs.update(output.detach().numpy().tobytes())
                scale = 10.0 ** -torch.randint(0, 20, (len(output), 1), generator=generator)
                noise = torch.randn(output.shape, generator=generator) * scale
                output.backward(output.detach() * 0.5 + noise if step % 2 else noise)


def permuted(batch: KeyedJaggedTensor, order: list[int]) -> KeyedJaggedTensor:
    """The same bags with the keys in another order."""
    parts = batch.to_dict()
    jagged = [parts[batch.keys()[i]] for i in order]
    return KeyedJaggedTensor(
        keys=[batch.keys()[i] for i in order],
        values=torch.cat([j.values() for j in jagged]),
        lengths=torch.cat([j.lengths() for j in jagged]),
        weights=torch.cat([j.weights() for j in jagged]),
    )


class SmallModel(torch.nn.Module):
    """A table under a dense layer, each with its Adam."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ebc = collection(store, "t", dim=4, optimizer=torch.optim.Adam, lr=0.1)
        self.dense = torch.nn.Linear(4, 1)
        self.optimizer = torch.optim.Adam(self.dense.parameters(), lr=0.1)

    def step(self) -> None:
        loss = self.dense(look_up(self.ebc, {"t": [[1, 2], [3]]})).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def state(self) -> list[object]:
        adam = self.optimizer.state_dict()["state"]
        dense = [*self.dense.state_dict().values(), *(v for s in adam.values() for v in s.values())]
        return [rows_of(self.ebc.store), [value.tolist() for value in dense]]


@functools.cache
def rows_after(steps: int) -> Rows:
    """Of a run that nothing disturbed."""
    with damo.EmbeddingStore(options=damo.StoreOptions(backend="memory")) as store:
        MixedRun(store).train(0, steps)
        return rows_of(store)
