"""One step of a store for each backward pass: gradients are kept until it ends, checked, and applied together.

Autograd calls what was queued with it at the end of a pass that has not failed. A pass that fails is forgotten with all
that it brought.
"""

from __future__ import annotations

import functools
import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from damo_torchrec.errors import DamoError, NonFiniteGradientError, StoreClosedError
from damo_torchrec.store.agreement import Update
from damo_torchrec.store.autograd_task import at_end_of_task, current_task
from damo_torchrec.store.session import Session
from damo_torchrec.store.waiting import BackwardPass, Gradient

_log = logging.getLogger(__name__)

# How many updates that were skipped in a row are told of.
_TOLD_AT = (5, 10, 20, 50, 100, 1000, 10_000, 100_000)


def pass_under_way(session: Session) -> BackwardPass | None:
    """The backward pass that calls this, which ends with an update of the store; None outside of one."""
    task = current_task()
    if task is None:
        return None
    with session.mutex:
        found = session.waiting.under_way(task)
        if found is None:
            found = begun = session.waiting.begin(task)
            end = functools.partial(_end_pass, session, begun)
            # The last all-reduce of DistributedDataParallel is such a callback, too, which others may come before.
            at_end_of_task(end if session.agreement is None else functools.partial(at_end_of_task, end))
        return found


def add(session: Session, gradient: Gradient, joined: BackwardPass | None) -> None:
    """Takes a gradient to the rows at the end of a backward pass.

    Args:
        session: of the rows.
        gradient: what a lookup's output got.
        joined: the pass that it is a part of; None for the one that calls this.
    """
    check_same_rows(session, gradient.generation)
    part_of = joined or pass_under_way(session)
    if part_of is None:  # called by hand, which makes it a pass of its own
        _end(session, [gradient])
    else:
        with session.mutex:
            part_of.gradients.append(gradient)


def apply_waiting(session: Session) -> bool:
    """Updates with what waits for more passes. Returns whether there was anything, and it was not skipped."""
    with session.mutex:
        return _update(session, session.waiting.take)


def check_same_rows(session: Session, generation: int) -> None:
    """Raises StoreClosedError if the store's rows are others than at that generation."""
    _ = session.engine
    if generation != session.generation:
        raise StoreClosedError(f"the store {session.path} was restored between this forward and its backward")


def _end_pass(session: Session, ended: BackwardPass) -> None:
    _end(session, ended.in_order())


def _end(session: Session, gradients: list[Gradient]) -> None:
    def ready(scale: float) -> list[Gradient]:
        for gradient in gradients:
            check_same_rows(session, gradient.generation)
            gradient.check_unchanged()
        return session.waiting.end(gradients, scale)

    if gradients:
        with session.mutex:
            _update(session, ready)


def _update(session: Session, ready: Callable[[float], list[Gradient]]) -> bool:
    """One update of all rows with what is ready under a loss scale. REQUIRES: the mutex."""
    agreement = session.agreement
    if agreement is None:
        update = _prepare(session, ready)
    else:
        update = agreement.settle(lambda: _check(session, _prepare(session, ready)))
    return bool(update.gradients) and _apply(session, update)


def _prepare(session: Session, ready: Callable[[float], list[Gradient]]) -> Update:
    scale = session.dense_part.scale() if session.dense_part is not None else session.grad_scale
    gradients = ready(scale)
    if gradients:
        _set_optimizers(session, gradients)
    finite = not gradients or session.dense_part is None or not session.dense_part.overflows()
    return Update(gradients, scale, finite, clock=session.catalog.lives.read_clock() if gradients else 0.0)


def _check(session: Session, update: Update) -> Update:
    """An update that can be applied as it is, and what others compare theirs with.

    Raises:
        NonFiniteGradientError: it would be skipped, but this store does not skip.
        DamoError: it cannot be applied.
    """
    tables = {table.name: table for gradient in update.gradients for table in gradient.tables}
    rules = [
        (name, repr(table.optimizer), session.engine.iter(table.index), repr(table.life))
        for name, table in tables.items()
    ]
    digest = zlib.crc32(repr((update.scale, len(update.gradients), rules)).encode())
    if not update.gradients or not update.finite:
        return replace(update, digest=digest)
    fault = session.engine.find_fault(update.parts, update.scale)
    if fault and not _skips(session):
        raise _nonfinite(fault)
    return replace(update, finite=not fault, digest=digest)


def _apply(session: Session, update: Update) -> bool:
    """One update of all rows. REQUIRES: the mutex."""
    engine, dense = session.engine, session.dense_part
    session.note_update()
    try:
        applied = update.finite and _backward(session, update)
    except NonFiniteGradientError as error:
        raise _nonfinite(str(error)) from None
    if not applied and dense is not None:
        dense.skip()
    if applied:
        session.skipped_in_a_row = 0
        session.catalog.lives.note_clock(update.clock, engine)
    else:
        _count_skipped(session)
    return applied


def _backward(session: Session, update: Update) -> bool:
    """What the engine's says, of an update that is finite; of one of several stores all or none hear of a failure."""
    engine, agreement, shared = session.engine, session.agreement, list(update.shared)
    together = agreement if shared and engine.may_exchange(shared, update.clock) else None

    def exchange(life: bytes) -> list[bytes]:
        assert together is not None
        with session.alone("update"):
            return together.exchange(life)

    try:
        applied = engine.backward(
            update.parts,
            grad_scale=update.scale,
            skip_nonfinite=_skips(session),
            clock=update.clock,
            shared=shared,
            exchange=exchange,
        )
        if together is not None:
            with session.alone("update"):
                together.conclude(None)
        return applied
    except BaseException as error:
        if together is None:
            raise
        with session.alone("update"):
            together.conclude(error)
        # The others may have made the update, or made it in part: nothing of this is to be saved.
        session.give_up_rows()
        what = (
            f"the store {session.path} is closed, in the state of its newest checkpoint, as an update of all ranks "
            "could not be ended"
        )
        if not isinstance(error, Exception):  # an interrupt goes on as one
            _log.error("%s: %s", what, type(error).__name__)
            raise
        raise DamoError(f"{what}: {error}") from error


def _skips(session: Session) -> bool:
    return session.options.on_nonfinite == "skip" or session.dense_part is not None


def _nonfinite(fault: str) -> NonFiniteGradientError:
    advice = "with a torch.amp.GradScaler, damo.follow_grad_scaler has rows skip the steps that it skips"
    return NonFiniteGradientError(f"{fault}; {advice}")


def _set_optimizers(session: Session, gradients: Sequence[Gradient]) -> None:
    """Brings the hyperparameters of now to the engine. Raises ValueError if collections differ in a table's."""
    tables = {table.name: table for gradient in gradients for table in gradient.tables}
    optimizers = {id(gradient.optimizer): gradient.optimizer for gradient in gradients}
    agreed = session.hyperparameters.agreed(optimizers.values())
    session.catalog.set_optimizers(list(tables.values()), agreed, session.engine)


def _count_skipped(session: Session) -> None:
    """Tells of updates that were skipped, as long as it is not one now and then, as a GradScaler makes them."""
    session.skipped_backwards += 1
    session.skipped_in_a_row += 1
    count, limit = session.skipped_in_a_row, session.options.max_skipped_in_a_row
    what = f"the store {session.path} has skipped {count} updates in a row, as gradients were not finite"
    advice = "look for dense weights that are NaN or infinite, and for a learning rate or loss scale that is too large"
    if limit is not None and count >= limit:
        raise NonFiniteGradientError(f"{what}: {advice} (StoreOptions.max_skipped_in_a_row is {limit})")
    if count in _TOLD_AT:
        _log.warning("%s: %s", what, advice)
