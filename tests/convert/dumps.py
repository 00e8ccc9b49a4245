"""Dumps as Damo-Embedding's documentation lays them out, and one that its 1.1.12 has written."""

import struct
from pathlib import Path

Rows = dict[int, dict[int, list[float]]]  # weights by group, then key

# What data/damo_1_1_12.dump holds, and how it was made: SGD with a rate of 1 over zeros goes where it is pushed.
FILE = Path(__file__).parent / "data" / "damo_1_1_12.dump"
ROWS: Rows = {
    0: {1: [0.5, -1.0, 2.0], -5: [1.0, 0.0, -0.25], 2**62: [3.0, 4.0, 5.0], -(2**63): [-1.0, -2.0, -3.0]},
    1: {7: [0.125], 300: [-8.0]},
    2: {1: [0.75, 0.5]},
}
EMBEDDINGS = [
    {"dim": dim, "group": group, "initializer": {"name": "zeros"}, "optimizer": {"name": "sgd", "gamma": 1.0}}
    for group, dim in ((0, 3), (1, 1), (2, 2))
]
PUSHES = [[group, list(rows), [[-w for w in weights] for weights in rows.values()]] for group, rows in ROWS.items()]


def records(rows: Rows) -> list[bytes]:
    return [
        struct.pack(f"<qi{len(weights)}f", key, group, *weights)
        for group, of_group in rows.items()
        for key, weights in of_group.items()
    ]


def head(rows: Rows, **said: list[int]) -> bytes:
    """That of a list of groups; `said` is what it says instead of ``groups``, ``dims`` and ``keys``."""
    dims = [len(next(iter(of_group.values()))) for of_group in rows.values()]
    parts = {"groups": list(rows), "dims": dims, "keys": [len(of_group) for of_group in rows.values()], **said}
    n = len(rows)
    return struct.pack(f"<i{n}i{n}i{n}q", n, *parts["groups"], *parts["dims"], *parts["keys"])


def head_of_256(rows: Rows) -> bytes:
    of = [rows.get(group, {}) for group in range(256)]
    dims = [len(next(iter(of_group.values()), [])) for of_group in of]
    return struct.pack("<256i256Q", *dims, *map(len, of))
