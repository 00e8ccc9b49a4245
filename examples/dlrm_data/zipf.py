"""A bounded Zipf distribution, for popular and unpopular ids as a recommender sees them."""

from typing import Any

import numpy as np


class Zipf:
    """Ranks 1 to `n`, rank k with probability proportional to k^-`exponent`.

    Any exponent ≥ 0 (0 is uniform) and any n; memory and time do not depend on n.

    W. Hörmann and G. Derflinger, "Rejection-inversion to generate variates from monotone discrete
    distributions", ACM TOMACS 6(3), 1996: a point u is drawn uniformly from the range of H, the
    integral of h(x) = x^-exponent, and inverted to x. The nearest rank k is accepted if u lies in
    the last h(k) of k's share, H(k - 1/2) to H(k + 1/2), which is that wide since h is convex.
    """

    def __init__(self, n: int, exponent: float) -> None:
        if n < 1 or not 0 <= exponent < np.inf:
            raise ValueError(f"Zipf needs n >= 1 and a finite exponent >= 0, got n={n}, exponent={exponent}")
        self.n = n
        self.exponent = exponent
        # Rank 1 gets a share of exactly h(1) = 1, so that it is never rejected.
        self._lowest = self._integral(1.5) - 1.0
        self._highest = self._integral(n + 0.5)

    def sample(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """`size` independent ranks, int64, a function of the generator's state alone."""
        ranks = np.empty(size, dtype=np.int64)
        missing = np.arange(size)
        while len(missing):
            u = self._lowest + rng.random(len(missing)) * (self._highest - self._lowest)
            k = np.clip(np.rint(self._inverse(u)), 1, self.n)
            accepted = u >= self._integral(k + 0.5) - k**-self.exponent
            ranks[missing[accepted]] = k[accepted]
            missing = missing[~accepted]
        return ranks

    def _integral(self, x: Any) -> Any:
        """H(x), the integral from 1 to x; by expm1, so that exponents near 1 lose no digits."""
        log = np.log(x)
        slope = 1.0 - self.exponent
        return log if slope == 0 else np.expm1(slope * log) / slope

    def _inverse(self, u: Any) -> Any:
        slope = 1.0 - self.exponent
        if slope == 0:
            return np.exp(u)
        # Rounding may carry the last u of a steep distribution onto the pole; n is meant.
        return np.exp(np.log1p(np.maximum(slope * u, -1 + 2.0**-53)) / slope)


def scatter(ranks: np.ndarray, table: int) -> np.ndarray:
    """Maps a table's ranks (int64, below 2^40) one to one onto ids all over int64.

    By the finalizer of SplitMix64 (S. Vigna, https://prng.di.unimi.it/splitmix64.c), which is a
    bijection of 64 bits, so that popular ids are not neighbours.
    """
    x = ranks.astype(np.uint64) + (np.uint64(table) << np.uint64(40))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).view(np.int64)
