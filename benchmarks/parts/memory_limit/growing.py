"""A contestant of memory_limit.py, as a process of its own: trains on ids of which a part is new in each step.

Prints the number of ids so far after each step, until there are as many as asked for.
"""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Callable

from common.program import QUIET

os.environ.update(QUIET)  # before torch is imported

import numpy as np
import torch
from torch import nn

import damo_torchrec as damo

LEARNING_RATE = 0.05
Step = Callable[[torch.Tensor], None]


def of_torch(dim: int, most: int) -> Step:
    """`nn.EmbeddingBag`, which is what TorchRec's collection is made of, with SGD, which keeps no state.

    The matrix has a row for every id that there will be, of zeros: the system gives memory for those alone that are
    touched. That is the least that it can do with; initial weights or another optimizer's state would touch all.
    """
    weights = torch.from_numpy(np.zeros((most, dim), np.float32))  # torch.zeros would touch them
    bag = nn.EmbeddingBag.from_pretrained(weights, freeze=False, mode="sum", sparse=True)
    optimizer = torch.optim.SGD(bag.parameters(), lr=LEARNING_RATE)

    def step(ids: torch.Tensor) -> None:
        optimizer.zero_grad()
        bag(ids[:, None]).sum().backward()
        optimizer.step()

    return step


def of_ours(dim: int, store: "damo.EmbeddingStore") -> Step:
    rows = damo.Embedding(dim, optimizer=(torch.optim.SGD, {"lr": LEARNING_RATE}), store=store)

    def step(ids: torch.Tensor) -> None:
        rows(ids).sum().backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=["torch", "ours"])
    for name in ("rows", "new", "dim", "budget"):
        parser.add_argument(name, type=int)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with contextlib.ExitStack() as stack:
        if arguments.contestant == "torch":
            step = of_torch(arguments.dim, arguments.rows)
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="damo-benchmark-"))
            store = damo.EmbeddingStore(f"{directory}/store", memory_budget=arguments.budget, seed=0)
            step = of_ours(arguments.dim, stack.enter_context(store))
        for first in range(0, arguments.rows, arguments.new):
            last = min(first + arguments.new, arguments.rows)
            step(torch.cat([torch.arange(first, last), torch.randint(0, last, (arguments.new,))]))
            print(last, flush=True)


if __name__ == "__main__":
    main()
