"""What a checkpoint's dense part is loaded into: a model, its optimizer and schedulers, all of it or none."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from damo_torchrec.checkpoints.document import shown
from damo_torchrec.errors import DamoError, SchemaMismatchError
from damo_torchrec.training.fitting import IncompatibleKeys, fitting_model, fitting_scheduler, shapes
from damo_torchrec.training.fitting_optimizer import fitting_optimizer, other_hyperparameters
from damo_torchrec.training.model_checkpoint import dense_state, learning_rates, load_dense_state, set_learning_rates

NOT_STRICT = "strict=False loads what fits"


@dataclass(frozen=True)
class DenseParts:
    """What a checkpoint's dense part is loaded into."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    schedulers: Sequence[LRScheduler]

    def check(self, states: Mapping[str, Any], path: Path) -> None:
        """Raises SchemaMismatchError if they are not as they were saved."""
        _check_model(self.model, states["model"], path)
        if self.optimizer is not None:
            _check_optimizer(self.optimizer, states["optimizer"], path)
        for scheduler, state in zip(self.schedulers, states["schedulers"], strict=False):
            _check_scheduler(scheduler, state, path)

    def fitting(self, states: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], IncompatibleKeys]:
        """What of the states fits, with what they have now in place of what does not."""
        found = IncompatibleKeys()
        fits = {**states, "model": fitting_model(dense_state(self.model), states["model"], found)}
        if self.optimizer is not None:
            with _refused(f"the optimizer cannot take its state in {path}"):
                fits["optimizer"] = fitting_optimizer(self.model, self.optimizer, states, found)
        fits["schedulers"] = [
            fitting_scheduler(scheduler.state_dict(), state, str(i), found)
            for i, (scheduler, state) in enumerate(zip(self.schedulers, states["schedulers"], strict=False))
        ]
        for scheduler, state in zip(self.schedulers, fits["schedulers"], strict=True):
            _check_scheduler(scheduler, state, path)
        return fits, found

    def load(self, states: Mapping[str, Any], path: Path) -> None:
        """Loads states that `check` has passed, or `fitting` has made. What fails may be half done."""
        with _refused(f"the model cannot take the state dict in {path}"):
            load_dense_state(self.model, states["model"])
        if self.optimizer is not None:
            with _refused(f"the optimizer cannot take its state in {path}"):
                self.optimizer.load_state_dict(states["optimizer"])
        set_learning_rates(self.model, states["learning_rates"])
        for scheduler, state in zip(self.schedulers, states["schedulers"], strict=False):
            with _refused(f"a scheduler cannot take its state in {path}"):
                scheduler.load_state_dict(state)

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Brings back what they were if what follows fails: rows are restored last, and are so whole or not at all."""
        dense, rates = copy.deepcopy(dense_state(self.model)), learning_rates(self.model)
        states = [
            (part, copy.deepcopy(part.state_dict())) for part in (self.optimizer, *self.schedulers) if part is not None
        ]
        try:
            yield
        except BaseException:
            load_dense_state(self.model, dense)
            set_learning_rates(self.model, rates)
            for part, state in states:
                part.load_state_dict(state)
            raise


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Has whatever torch raises of a state that fits in its outline alone say which it is."""
    try:
        yield
    except DamoError:
        raise
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    except Exception as error:  # torch has no one exception
        raise SchemaMismatchError(f"{what}: {type(error).__name__}: {error}") from error


def _check_model(model: nn.Module, saved: dict[str, torch.Tensor], path: Path) -> None:
    now, then = shapes(dense_state(model)), shapes(saved)
    if now == then:
        return
    names = sorted(n for n in {*now, *then} if now.get(n) != then.get(n))
    differences = "; ".join(f"{n}: {then.get(n)} saved, {now.get(n)} in the model" for n in names[:5])
    raise SchemaMismatchError(f"the model differs from the one saved in {path}: {differences}. {NOT_STRICT}")


def _check_scheduler(scheduler: LRScheduler, saved: Mapping[str, Any], path: Path) -> None:
    """Whether it can load it: those of torch make each name in it an attribute."""
    if odd := sorted(name for name in saved if name == "optimizer" or callable(getattr(type(scheduler), name, None))):
        raise SchemaMismatchError(f"the scheduler differs from the one saved in {path}: its state has {shown(odd)}")


def _check_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any], path: Path) -> None:
    """Whether the optimizer can load it, which torch finds out when it has begun to."""

    def groups(state: dict[str, Any]) -> list[int]:
        return [len(group["params"]) for group in state.get("param_groups", [])]

    state = optimizer.state_dict()
    then, now = groups(saved), groups(state)
    if then != now:
        raise SchemaMismatchError(
            f"the optimizer differs from the one saved in {path}: parameters by parameter group were {then}, are "
            f"{now}. {NOT_STRICT}"
        )
    had, has = other_hyperparameters(state, saved)
    if had and has:
        raise SchemaMismatchError(
            f"the optimizer differs from the one saved in {path}, which had {had}: {type(optimizer).__name__} has {has}"
        )
