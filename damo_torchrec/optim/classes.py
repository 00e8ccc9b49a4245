"""Classes that name update rules which neither torch nor TorchRec has."""

from typing import Any, ClassVar, NoReturn

import torch

from damo_torchrec.optim.spec import Rule


class RowOptimizer(torch.optim.Optimizer):
    """A name for an update rule of rows, as torchrec.optim's classes are: it cannot step a dense parameter."""

    rule: ClassVar[Rule]

    def __init__(self, params: Any, **defaults: float | bool | tuple[float, float]) -> None:
        super().__init__(params, defaults)

    def step(self, closure: Any = None) -> NoReturn:
        """Raises NotImplementedError: rows are updated in backward."""
        raise NotImplementedError(
            f"damo.optim.{type(self).__name__} updates rows, in backward: pass the class as optimizer_type"
        )


class FTRL(RowOptimizer):
    """FTRL-proximal, which makes weights exactly zero where `lambda1` is positive.

    McMahan et al., "Ad Click Prediction: a View from the Trenches" (KDD 2013), algorithm 1. For each weight w with
    gradient g, and z = n = 0 at first::

        z += g - (sqrt(n + g²) - sqrt(n)) / lr · w
        n += g²
        w  = 0 if |z| <= lambda1 else -(z - sign(z)·lambda1) / ((beta + sqrt(n)) / lr + lambda2)

    The first update thus replaces a row's initial weights.

    Args:
        params: not used.
        lr: the paper's alpha.
        beta: the larger it is, the smaller are the first steps.
        lambda1: L1 regularization.
        lambda2: L2 regularization.
        maximize: go up the gradient.
    """

    rule = Rule("FTRL", frozenset({"lr", "beta", "lambda1", "lambda2", "maximize"}), None, divides_by_lr=True)

    def __init__(
        self,
        params: Any,
        lr: float = 0.005,
        beta: float = 1.0,
        lambda1: float = 0.0,
        lambda2: float = 0.0,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, beta=beta, lambda1=lambda1, lambda2=lambda2, maximize=maximize)


class Lion(RowOptimizer):
    """Lion: steps of one size, in the direction of a momentum's signs.

    Chen et al., "Symbolic Discovery of Optimization Algorithms" (2023), program 1. For each weight w with gradient g,
    and m = 0 at first::

        w = (1 - lr·weight_decay)·w - lr·sign(beta1·m + (1 - beta1)·g)
        m = beta2·m + (1 - beta2)·g

    Args:
        params: not used.
        lr: the size of a step.
        betas: (beta1, beta2).
        weight_decay: decoupled.
        maximize: go up the gradient.
    """

    rule = Rule("LION", frozenset({"lr", "betas", "weight_decay", "maximize"}), "decoupled")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, maximize=maximize)
