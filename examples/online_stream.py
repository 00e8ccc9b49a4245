"""The click stream of online_training.py: users and items that come, change and go."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dlrm_data.zipf import scatter

TASTES = 4  # latent dimensions
MOST_WEIGHT = 300.0  # of the most active, beside the least active


@dataclass(frozen=True)
class StreamOptions:
    """What a stream is like.

    Args:
        users, items: how many there are on any one day.
        impressions: of one day; each is a user, an item that was shown, and whether there was a click.
        renewal: the share of users, and of items, that have left by the next day; as many new ones have come.
            So lives are 1/renewal days long on average, and most are shorter.
        drift: by how much a user's taste turns from day to day: 0 not at all, 1 to another one.
        tail: the exponent of the Pareto distribution of activity and popularity; the less, the heavier the tail.
    """

    users: int = 20_000
    items: int = 5_000
    impressions: int = 120_000
    renewal: float = 0.05
    drift: float = 0.15
    tail: float = 1.2


@dataclass(frozen=True)
class Day:
    """The impressions of a day in the order of time: int64 ids of users and items, float32 labels, each (n,)."""

    number: int
    users: np.ndarray
    items: np.ndarray
    clicks: np.ndarray


class Population:
    """Users or items: each has an id, a taste, a bias of its own, and a weight by which it appears.

    Ids are all over int64, as those of a hash are, and none is given twice.
    """

    def __init__(self, size: int, tail: float, kind: int, rng: np.random.Generator) -> None:
        self._rng = rng
        self._tail = tail
        self._kind = kind
        self._given = 0
        self._ids = np.empty(size, dtype=np.int64)
        self.tastes = np.empty((size, TASTES))
        self.biases = np.empty(size)
        self._weights = np.empty(size)
        self._bring(np.arange(size))

    @property
    def ids(self) -> np.ndarray:
        return scatter(self._ids, self._kind)

    def renew(self, share: float) -> None:
        """Some leave, each with the same probability, and as many come."""
        self._bring(np.flatnonzero(self._rng.random(len(self._ids)) < share))

    def turn_tastes(self, drift: float) -> None:
        """Towards new ones; how far they are from the mean stays as it is."""
        fresh = self._rng.standard_normal(self.tastes.shape)
        self.tastes = np.sqrt(1 - drift**2) * self.tastes + drift * fresh

    def draw(self, size: int) -> np.ndarray:
        """Places of `size` members, by their weights."""
        return self._rng.choice(len(self._ids), size, p=self._weights / self._weights.sum())

    def _bring(self, places: np.ndarray) -> None:
        self._ids[places] = self._given + np.arange(len(places))
        self._given += len(places)
        self.tastes[places] = self._rng.standard_normal((len(places), TASTES))
        self.biases[places] = self._rng.standard_normal(len(places))
        self._weights[places] = np.minimum(1 + self._rng.pareto(self._tail, len(places)), MOST_WEIGHT)


def stream(options: StreamOptions, days: int, seed: int) -> Iterator[Day]:
    """The days from 1 on. The same seed has the same ones, however many there are."""
    rng = np.random.default_rng(seed)
    users = Population(options.users, options.tail, kind=0, rng=rng)
    items = Population(options.items, options.tail, kind=1, rng=rng)
    for number in range(1, days + 1):
        who, what = users.draw(options.impressions), items.draw(options.impressions)
        liking = (users.tastes[who] * items.tastes[what]).sum(axis=1) / np.sqrt(TASTES)
        logits = -1 + users.biases[who] + items.biases[what] + liking
        clicks = rng.random(options.impressions) < 1 / (1 + np.exp(-logits))
        yield Day(number, users.ids[who], items.ids[what], clicks.astype(np.float32))
        users.renew(options.renewal)
        items.renew(options.renewal)
        users.turn_tastes(options.drift)
