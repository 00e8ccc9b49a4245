"""Trains and serves at once: a predictor follows a training by its deltas, every half a second.

A new user appears in the middle of the training, who clicks all that others do not. The predictor
knows nothing of that at first, and learns it while it goes on answering.
"""

import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torchrec
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec.serving import DeltaPublisher, Predictor, export
from dlrm_train import build_model, dense_optimizer

USERS, ITEMS, BATCH = 2000, 200, 256
NEW_USER = -(2**63)  # any int64 is an id
STEPS = 1000  # with the new user


def features(users: np.ndarray, items: np.ndarray) -> tuple[torch.Tensor, KeyedJaggedTensor]:
    """What the model takes: one user and one item a sample, and a number that says nothing."""
    ids = np.concatenate([users, items])
    lengths = torch.ones(len(ids), dtype=torch.int64)
    kjt = KeyedJaggedTensor(["user", "item"], torch.from_numpy(ids), lengths=lengths)
    return torch.ones(len(users), 1), kjt


def clicks(users: np.ndarray, items: np.ndarray) -> torch.Tensor:
    """Users click odd items; the new one clicks even items."""
    return torch.from_numpy(((items % 2 == 1) != (users == NEW_USER)).astype(np.float32))


def samples(rng: np.random.Generator, with_new_user: bool) -> tuple[np.ndarray, np.ndarray]:
    users = rng.integers(0, USERS, BATCH)
    if with_new_user:
        users[: BATCH // 16] = NEW_USER
    return users, rng.integers(0, ITEMS, BATCH)


def ask(predictor: Predictor) -> np.ndarray:
    """The new user's probabilities of clicking item 0 and item 1."""
    dense, sparse = features(np.full(2, NEW_USER), np.arange(2))
    logits = predictor.predict({"dense_features": dense, "sparse_features": sparse})["output"]
    return 1 / (1 + np.exp(-logits.ravel()))


def wait_for(predictor: Predictor, delta: Path) -> None:
    """Until the predictor serves what the delta brings."""
    while predictor.history[-1] != damo.Delta.read(delta).id:
        time.sleep(0.01)


class Client(threading.Thread):
    """Asks all the time."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self._predictor = predictor
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.002):
            ask(self._predictor)

    def stop(self) -> None:
        self._ended.set()
        self.join()


def main(where: Path) -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # one processor trains, the other serves
    options = damo.StoreOptions(num_threads=1)
    with damo.EmbeddingStore(where / "store", memory_budget="64MiB", options=options) as store:
        tables = [
            EmbeddingBagConfig(name=f"t_{name}", embedding_dim=16, num_embeddings=size, feature_names=[name])
            for name, size in (("user", USERS), ("item", ITEMS))
        ]
        collection = damo.EmbeddingBagCollection(tables, torchrec.optim.RowWiseAdagrad, {"lr": 0.05}, store=store)
        model = build_model(collection, dense_in_features=1)
        optimizer = dense_optimizer(model, lr=0.001)

        def step(with_new_user: bool) -> None:
            users, items = samples(rng, with_new_user)
            optimizer.zero_grad()
            logits = model(*features(users, items)).squeeze(-1)
            binary_cross_entropy_with_logits(logits, clicks(users, items)).backward()
            optimizer.step()

        for _ in range(300):
            step(with_new_user=False)
        args = features(*samples(rng, with_new_user=False))
        served = export(model, args, where / "served")
        publisher = DeltaPublisher(
            store, where / "deltas", since=served, model=model, args=args, every_seconds=0.5, keep=20
        )
        with Predictor(served, memory_budget="64MiB", num_threads=1) as predictor:
            predictor.watch(where / "deltas", poll_seconds=0.05)
            client = Client(predictor)
            client.start()
            print(f"Serving step {predictor.step}. The new user clicks even items, and only those.\n")
            print("   step served   item 0 (even)   item 1 (odd)   deltas   p99 of a request")
            shown = -1
            for number in range(1, STEPS + 1):
                step(with_new_user=True)
                if number < STEPS:
                    publisher.step()
                elif (last := publisher.publish()) is not None:
                    wait_for(predictor, last)
                if predictor.step != shown:
                    even, odd = ask(predictor)
                    stats = predictor.stats()
                    shown = stats.step
                    print(f"{shown:14,}{even:16.3f}{odd:15.3f}{stats.deltas_applied:9}{1000 * stats.p99:16.1f} ms")
            client.stop()
            stats = predictor.stats()
            print(f"\n{stats.requests:,} requests were answered meanwhile, none of them by a mixture of two states.")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="train_and_serve-") as directory:
        main(Path(directory))
