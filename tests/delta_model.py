"""A model whose tables have iterations of their own, and what a delta makes of rows."""

import torch
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec import Delta

Rows = dict[str, dict[int, bytes]]


class Model:
    """Two tables, each of a collection of its own: their iterations differ."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        self.store = store
        self.ebcs = {name: self._collection(name) for name in ("a", "b")}

    def _collection(self, name: str) -> damo.EmbeddingBagCollection:
        config = EmbeddingBagConfig(name=name, embedding_dim=3, num_embeddings=100, feature_names=["f"])
        return damo.EmbeddingBagCollection([config], torch.optim.SGD, {"lr": 0.5}, store=self.store)

    def train(self, name: str, ids: list[int]) -> None:
        lengths = torch.ones(len(ids), dtype=torch.int64)
        features = KeyedJaggedTensor(keys=["f"], values=torch.tensor(ids, dtype=torch.int64), lengths=lengths)
        self.ebcs[name](features).values().sum().backward()

    def table(self, name: str) -> damo.Table:
        return self.store.table(name)

    def rows(self) -> Rows:
        found: Rows = {}
        for name, table in self.store.tables().items():
            ids, weights = table.to_torch()
            found[name] = {int(i): w.numpy().tobytes() for i, w in zip(ids, weights, strict=True)}
        return found


def applied(rows: Rows, delta: Delta) -> Rows:
    after = {name: dict(table) for name, table in rows.items()}
    for name, table in delta.tables.items():
        of_table = after.setdefault(name, {})
        for i in table.deleted.tolist():
            of_table.pop(i, None)
        of_table.update({int(i): w.tobytes() for i, w in zip(table.ids, table.weights, strict=True)})
    return after
