"""Oracles of update rules: torch's own optimizers, and papers' formulas, made to update the rows of a batch only."""

import numpy as np
import torch
import torchrec

import damo_torchrec as damo
from support import config, random_kjt

IDS = 40
DIM = 8
STEPS = 10


class Oracle:
    """A table in float64 and torch's own optimizer over it, of which a step changes the rows of the batch only."""

    def __init__(self, weight, optimizer_type, kwargs, decoupled=0.0):
        self.weight = torch.nn.Parameter(weight.double())
        self.sparse = optimizer_type is torch.optim.SparseAdam
        self.optimizer = optimizer_type([self.weight], **kwargs)
        self.decoupled = decoupled

    def step(self, grad, touched):
        rows = [self.weight.detach(), *self._state()]
        before = [tensor.clone() for tensor in rows]
        self.weight.grad = rows_of(grad, touched) if self.sparse else grad
        with torch.no_grad():
            self.weight.mul_(1 - self.optimizer.param_groups[0]["lr"] * self.decoupled)
        self.optimizer.step()
        fresh = [torch.zeros_like(tensor) for tensor in self._state()]  # of a state that the first step made
        for tensor, old in zip([self.weight.detach(), *self._state()], before + fresh[len(before) - 1 :], strict=True):
            tensor[~touched] = old[~touched]

    def _state(self):
        return [t for t in self.optimizer.state[self.weight].values() if torch.is_tensor(t) and len(t.shape) == 2]


def rows_of(grad, touched):
    """Rows of a dense gradient as a sparse one, with those that are zero."""
    ids = touched.nonzero().squeeze(1)
    return torch.sparse_coo_tensor(ids[None], grad[ids], grad.shape, check_invariants=True)


def train(ebc, oracle, dim, steps):
    """Gives both the same random gradients, with ids that occur several times, and ids without gradient."""
    generator = torch.Generator().manual_seed(7)
    for step in range(steps):
        batch = random_kjt(generator, ["t"], batch=12, ids=IDS)
        # Of few digits, so that the sums over an id's occurrences are exact: the update rule is what is compared.
        gradient = torch.randint(-64, 65, (12, dim), generator=generator) / 64
        gradient[0] = 0
        ebc(batch).values().backward(gradient)
        bags = torch.repeat_interleave(torch.arange(12), batch.lengths())
        rows = torch.zeros(IDS, dim, dtype=torch.float64).index_add_(0, batch.values(), gradient[bags].double())
        oracle.step(rows, torch.bincount(batch.values(), minlength=IDS) > 0)
        assert_equal(ebc, oracle, f"after step {step + 1}")


def assert_equal(ebc, oracle, when):
    everything = torch.arange(IDS)
    with torch.no_grad():
        ours = ebc(torchrec.KeyedJaggedTensor(["t"], everything, lengths=torch.ones(IDS, dtype=torch.int64))).values()
    torch.testing.assert_close(
        ours.double(), oracle.weight.detach(), rtol=1e-5, atol=1e-7, msg=lambda text: f"{when}: {text}"
    )


class Formula:
    """A table in float64 whose touched rows are updated one by one, by a function of numpy arrays.

    Args:
        weight: ``(n, dim)``.
        rule: called with a row's weights, its state (a dict that starts empty), its gradient, and how many updates it
            and the table have had, this one included. Returns the new weights.
    """

    def __init__(self, weight, rule):
        self.weight = weight.double().clone()
        self.rule = rule
        self.states = [{} for _ in weight]
        self.counts = [0 for _ in weight]
        self.iter = 0

    def step(self, grad, touched):
        self.iter += 1
        for row in touched.nonzero().squeeze(1).tolist():
            self.counts[row] += 1
            weights = self.weight[row].numpy().copy()
            new = self.rule(weights, self.states[row], grad[row].numpy(), self.counts[row], self.iter)
            self.weight[row] = torch.from_numpy(np.asarray(new))


def compare(
    store, optimizer_type, kwargs, oracle_type, oracle_kwargs, dim=DIM, decoupled=0.0, *, steps=STEPS, options=None
):
    """Trains a table of ours and torch's `oracle_type`, or a `Formula` of the function `oracle_type`, side by side."""
    ebc = damo.EmbeddingBagCollection(
        [config("t", dim)], optimizer_type, kwargs, store=store, table_options={"t": options or damo.TableOptions()}
    )
    # Half of the rows are there; the others begin with their initial values.
    weights = torch.randn(IDS // 2, dim, generator=torch.Generator().manual_seed(1))
    store.table("t").set(range(0, IDS, 2), weights)
    with torch.no_grad():
        start = ebc(torchrec.KeyedJaggedTensor(["t"], torch.arange(IDS), lengths=torch.ones(IDS).long())).values()
    if isinstance(oracle_type, type):
        oracle = Oracle(start, oracle_type, oracle_kwargs, decoupled)
    else:
        oracle = Formula(start, oracle_type)
    train(ebc, oracle, dim, steps)
