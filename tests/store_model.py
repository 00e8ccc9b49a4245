"""What a store should hold, told by plain dicts and torch's own optimizers on dense parameters."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

DIM = 16
INITIAL = -1.0
Bags = Sequence[Sequence[int]]


@dataclass
class Row:
    """Weights, and a stateful optimizer's sum of squares. Replaced, never changed in place."""

    weights: torch.Tensor = field(default_factory=lambda: torch.full((DIM,), INITIAL))
    squares: torch.Tensor = field(default_factory=lambda: torch.zeros(DIM))


@dataclass
class TableModel:
    """A table of SGD or Adagrad.

    Args:
        optimizer: torch's class.
        lr: its learning rate.
    """

    optimizer: type[torch.optim.Optimizer]
    lr: float
    rows: dict[int, Row] = field(default_factory=dict)
    iter: int = 0

    def __deepcopy__(self, _: object) -> "TableModel":
        return TableModel(self.optimizer, self.lr, dict(self.rows), self.iter)

    def read(self, ids: Sequence[int], unseen: float) -> torch.Tensor:
        """Weights ``(n, DIM)``; those of ids without a row are `unseen`."""
        rows = [self.rows[i].weights if i in self.rows else torch.full((DIM,), unseen) for i in ids]
        return torch.stack(rows) if rows else torch.empty(0, DIM)

    def pool(self, bags: Bags, unseen: float) -> torch.Tensor:
        """Sums of bags, ``(bags, DIM)``."""
        sums = [self.read(bag, unseen).sum(dim=0) for bag in bags]
        return torch.stack(sums) if sums else torch.empty(0, DIM)

    def update(self, gradients: Mapping[int, torch.Tensor]) -> None:
        """One step of torch's optimizer on the rows that have a gradient."""
        self.iter += 1
        if not gradients:
            return
        before = [self.rows.get(i, Row()) for i in gradients]
        parameter = torch.nn.Parameter(torch.stack([row.weights for row in before]))
        parameter.grad = torch.stack(list(gradients.values()))
        optimizer = self.optimizer([parameter], lr=self.lr)
        squares = optimizer.state[parameter].setdefault("sum", torch.zeros(parameter.shape))
        squares.copy_(torch.stack([row.squares for row in before]))
        optimizer.step()
        after = zip(gradients, parameter.detach(), squares, strict=True)
        self.rows.update((i, Row(weights.clone(), square.clone())) for i, weights, square in after)

    def set(self, ids: Sequence[int], weights: torch.Tensor) -> None:
        """Rows with new optimizer state; the last of equal ids wins."""
        self.rows.update((i, Row(row)) for i, row in zip(ids, weights, strict=True))

    def delete(self, ids: Sequence[int]) -> None:
        for i in ids:
            self.rows.pop(i, None)


Tables = dict[str, TableModel]


@dataclass
class Gradient:
    """What one backward call brings.

    Args:
        bags: by table, one after the other for each of its features.
        of_bags: ``(bags, DIM)`` of the same.
    """

    bags: Mapping[str, Bags]
    of_bags: Mapping[str, torch.Tensor]


class GradientsModel:
    """Gradients of a store that wait for `EmbeddingStore.accumulate`."""

    def __init__(self) -> None:
        self.waiting: list[Gradient] = []

    def backward(self, tables: Tables, gradient: Gradient, calls: int) -> bool:
        """Updates all tables once `calls` gradients are there, or none and returns False if they are not finite."""
        self.waiting.append(gradient)
        return len(self.waiting) < calls or self.apply(tables)

    def apply(self, tables: Tables) -> bool:
        """Updates with what waits, or returns False if that is not finite."""
        names = list(dict.fromkeys(name for gradient in self.waiting for name in gradient.bags))
        sums = {name: self._sums(name) for name in names}
        self.waiting = []
        if not all(row.isfinite().all() for of_rows in sums.values() for row in of_rows.values()):
            return False
        for name, of_rows in sums.items():
            tables[name].update(of_rows)
        return True

    def _sums(self, table: str) -> dict[int, torch.Tensor]:
        sums: dict[int, torch.Tensor] = {}
        for gradient in self.waiting:
            for bag, of_bag in zip(gradient.bags.get(table, []), gradient.of_bags.get(table, []), strict=True):
                for i in bag:
                    sums[i] = sums.get(i, torch.zeros(DIM)) + of_bag
        return sums


def copy_of(tables: Tables) -> Tables:
    """What a checkpoint keeps."""
    return copy.deepcopy(tables)
