"""What the optimizer state of a row is made of, under the names that torch.optim, TorchRec and the papers have."""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class StatePart:
    """Some of a row's optimizer state.

    Args:
        name: the optimizer's for it.
        means: what the numbers are. Parts of two rules with one meaning can take each other's place.
        rowwise: whether it is one number for the row, the mean over the columns, rather than one for each weight.
        squares: whether it is never negative.
    """

    name: str
    means: str
    rowwise: bool = False
    squares: bool = False

    def width(self, dim: int) -> int:
        """Floats in a row of `dim` weights."""
        return 1 if self.rowwise else dim


_FIRST_MOMENT = StatePart("exp_avg", "running mean of gradients")
_SECOND_MOMENT = StatePart("exp_avg_sq", "running mean of squared gradients", squares=True)
_SECOND_MOMENT_OF_ROW = StatePart("exp_avg_sq", "running mean of squared gradients", rowwise=True, squares=True)

# By update rule, in the order in which they lie in a row.
STATE_PARTS: Mapping[str, tuple[StatePart, ...]] = {
    "SGD": (),
    "MOMENTUM_SGD": (StatePart("momentum_buffer", "momentum of gradients"),),
    "ADAGRAD": (StatePart("sum", "sum of squared gradients", squares=True),),
    "ROWWISE_ADAGRAD": (StatePart("sum", "sum of squared gradients", rowwise=True, squares=True),),
    "ADAM": (_FIRST_MOMENT, _SECOND_MOMENT),
    "AMSGRAD": (
        _FIRST_MOMENT,
        _SECOND_MOMENT,
        StatePart("max_exp_avg_sq", "largest running mean of squared gradients", squares=True),
    ),
    "PARTIAL_ROWWISE_ADAM": (_FIRST_MOMENT, _SECOND_MOMENT_OF_ROW),
    "LAMB": (_FIRST_MOMENT, _SECOND_MOMENT),
    "PARTIAL_ROWWISE_LAMB": (_FIRST_MOMENT, _SECOND_MOMENT_OF_ROW),
    "LARS_SGD": (StatePart("momentum_buffer", "momentum of steps"),),
    "FTRL": (StatePart("z", "FTRL's linear term"), StatePart("n", "FTRL's sum of squared gradients", squares=True)),
    "LION": (StatePart("exp_avg", "Lion's running mean of gradients"),),
}

_CORRECTED_MAX = "largest running mean of squared gradients after bias correction"


def state_parts(optimizer: Mapping[str, float | str]) -> tuple[StatePart, ...]:
    """Those of an update rule, as a table's schema has it."""
    parts = STATE_PARTS[str(optimizer["name"])]
    if not optimizer.get("corrected_max"):
        return parts
    return tuple(replace(part, means=_CORRECTED_MAX) if part.name == "max_exp_avg_sq" else part for part in parts)
