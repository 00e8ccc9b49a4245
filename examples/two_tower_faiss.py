#!/usr/bin/env python3
"""Retrieval: two towers are trained on clicks, and the vectors of all items go into a FAISS index.

A user's vector is made of the items clicked before, an item's of the item. In training the other items of a batch are
the negatives, which so are drawn by popularity:

  logQ        the logarithm of an item's probability to be in a batch is taken from its logits, so that popular items
              do not lose for being drawn often (Yi et al., "Sampling-bias-corrected neural modeling for large corpus
              item recommendations", RecSys 2019)
  accidental  an item that comes twice in a batch is no negative of itself: its logit is masked

FAISS finds the places of vectors, and an array beside the index has the ids: -1, which FAISS returns for "nothing", is
an id like any other here. Without faiss-cpu NumPy searches the same, exactly. The measure is recall@k: whether the item
that a user clicks last, held out from training, is among the k that are found; beside it that of the most popular.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchrec
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

import damo_torchrec as damo
from dlrm_data.zipf import scatter

try:
    import faiss
except ImportError:
    faiss = None

DIM, BATCH, TEMPERATURE = 32, 256, 0.1
CLICKS = 10  # of each user


@dataclass(frozen=True)
class Clicks:
    """What each user clicked, in order, the last of which is held out: int64 ids, (users, CLICKS); and all items."""

    items: np.ndarray
    catalogue: np.ndarray


def make_clicks(users: int, items: int, groups: int, seed: int) -> Clicks:
    """Users click the items of one group, popular ones most; ids are all over int64."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, items)
    popularity = 1 / (1 + np.arange(items)) ** 0.7
    places = np.empty((users, CLICKS), np.int64)
    for user, likes in enumerate(rng.integers(0, groups, users)):
        chance = popularity * np.where(group == likes, 1.0, 0.02)
        places[user] = rng.choice(items, CLICKS, replace=False, p=chance / chance.sum())
    ids = scatter(np.arange(items), 1)
    return Clicks(ids[places], ids)


class Towers(nn.Module):
    """Unit vectors of users and of items, (B, DIM), over one table of items."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.history, self.item = (
            damo.EmbeddingBagCollection(
                [
                    EmbeddingBagConfig(
                        name="item",
                        embedding_dim=DIM,
                        num_embeddings=10_000,
                        feature_names=[feature],
                        pooling=PoolingType.MEAN,
                    )
                ],
                torchrec.optim.RowWiseAdagrad,
                {"lr": 0.1},
                store=store,
            )
            for feature in ("history", "item")
        )
        self.query_layers = nn.Sequential(nn.Linear(DIM, 64), nn.ReLU(), nn.Linear(64, DIM))
        self.item_layer = nn.Linear(DIM, DIM)

    def queries(self, histories: KeyedJaggedTensor) -> torch.Tensor:
        return normalize(self.query_layers(self.history(histories).values()), dim=1)

    def items(self, items: KeyedJaggedTensor) -> torch.Tensor:
        return normalize(self.item_layer(self.item(items).values()), dim=1)


def features(key: str, bags: Sequence[np.ndarray]) -> KeyedJaggedTensor:
    lengths = torch.tensor([len(bag) for bag in bags])
    return KeyedJaggedTensor([key], torch.from_numpy(np.concatenate(bags)), lengths=lengths)


def in_batch_loss(queries: torch.Tensor, items: torch.Tensor, ids: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Softmax cross entropy of each query's own item among all items of the batch.

    Args:
        queries: float32 ``(B, D)``.
        items: float32 ``(B, D)``, of which row i is what query i clicked.
        ids: of the items, int64 ``(B,)``.
        log_q: the logarithm of each item's probability to be in a batch, float32 ``(B,)``.
    """
    logits = queries @ items.T / TEMPERATURE - log_q
    accidental = (ids[:, None] == ids) & ~torch.eye(len(ids), dtype=torch.bool)
    return cross_entropy(logits.masked_fill(accidental, -torch.inf), torch.arange(len(ids)))


def log_probabilities(clicked: np.ndarray) -> dict[int, float]:
    """Of each item, by how often it is clicked. A stream would estimate them as it goes, as the paper does."""
    ids, counts = np.unique(clicked, return_counts=True)
    return dict(zip(ids.tolist(), np.log(counts / counts.sum()).tolist(), strict=True))


def train(model: Towers, clicks: Clicks, epochs: int, seed: int) -> Iterator[float]:
    """Each click but the first and the last is to be found from those before it. The mean loss of each epoch."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam([*model.query_layers.parameters(), *model.item_layer.parameters()], lr=0.003)
    users, places = (grid.ravel() for grid in np.indices((len(clicks.items), CLICKS - 2)))
    log_q = log_probabilities(clicks.items[:, 1:-1])
    for _ in range(epochs):
        losses = []
        for samples in np.array_split(rng.permutation(len(users)), -(-len(users) // BATCH)):
            rows, place = clicks.items[users[samples]], places[samples] + 1
            clicked = rows[np.arange(len(rows)), place]
            queries = model.queries(features("history", [row[:end] for row, end in zip(rows, place, strict=True)]))
            items = model.items(features("item", clicked[:, None]))
            of_batch = torch.tensor([log_q[item] for item in clicked.tolist()])
            loss = in_batch_loss(queries, items, torch.from_numpy(clicked), of_batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        yield float(np.mean(losses))


class Index:
    """Finds ids of the vectors of largest inner product."""

    def __init__(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        self._ids, self._vectors = ids, np.ascontiguousarray(vectors, np.float32)
        self._faiss = None
        if faiss is not None:
            self._faiss = faiss.IndexFlatIP(vectors.shape[1])  # exact; of many millions, IndexHNSWFlat or IndexIVFPQ
            self._faiss.add(self._vectors)

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Ids, (n, k), the nearest first."""
        if self._faiss is not None:
            _, places = self._faiss.search(queries, k)
        else:
            places = np.argsort(-(queries @ self._vectors.T), axis=1, kind="stable")[:, :k]
        return self._ids[places]


@torch.no_grad()
def retrieved(model: Towers, clicks: Clicks, count: int) -> np.ndarray:
    """Ids of the items nearest to each user, (users, count)."""
    model.eval()
    index = Index(clicks.catalogue, model.items(features("item", clicks.catalogue[:, None])).numpy())
    queries = model.queries(features("history", clicks.items[:, :-1])).numpy()
    model.train()
    return index.search(queries, count)


def most_popular(clicks: Clicks, count: int) -> np.ndarray:
    """The same for each user, (users, count)."""
    ids, counts = np.unique(clicks.items[:, :-1], return_counts=True)
    return np.tile(ids[np.argsort(-counts, kind="stable")][:count], (len(clicks.items), 1))


def recall(found: np.ndarray, clicks: Clicks, k: int) -> float:
    """The share of users whose last click is among the first k that they had not clicked before."""
    rows = zip(found, clicks.items, strict=True)
    return float(np.mean([row[-1] in items[~np.isin(items, row[:-1])][:k] for items, row in rows]))


def main(users: int, items: int, epochs: int, k: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # batches are small
    clicks = make_clicks(users, items, groups=max(4, items // 100), seed=0)
    count = k + CLICKS - 1  # some of which were clicked before
    searcher = "FAISS" if faiss is not None else "faiss-cpu is not installed: NumPy"
    print(f"{users:,} users, {items:,} items; {searcher} searches")
    print(f"recall@{k} of the most popular {recall(most_popular(clicks, count), clicks, k):.3f}")
    with tempfile.TemporaryDirectory() as directory, damo.EmbeddingStore(Path(directory) / "store") as store:
        model = Towers(store)
        for epoch, loss in enumerate(train(model, clicks, epochs, seed=0), start=1):
            score = recall(retrieved(model, clicks, count), clicks, k)
            print(f"epoch {epoch}: loss {loss:.3f}, recall@{k} {score:.3f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few users and items")
    parser.add_argument("-k", type=int, default=20, help="how many items to find (default: %(default)s)")
    arguments = parser.parse_args()
    main(*((600, 300, 3) if arguments.quick else (10_000, 2000, 5)), k=arguments.k)
