"""Which columns become which features, dense values and labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from damo_torchrec.ids import check_salt


@dataclass(frozen=True)
class Ids:
    """A feature of integers: a column of them, one a row, or of lists. Null is an empty bag.

    Args:
        column: its name.
        weights: a column with a number for each id: lists as long as those of ids, or a number where there is one id.
    """

    column: str
    weights: str | None = None


@dataclass(frozen=True)
class Strings:
    """A feature of strings or bytes, or of lists of them, of which `damo_torchrec.ids.hash_strings` makes ids.

    Args:
        column: its name.
        salt: of the hash; the table's `TableOptions.string_salt`.
        weights: as of `Ids`.
    """

    column: str
    salt: int = 0
    weights: str | None = None

    def __post_init__(self) -> None:
        check_salt(self.salt)


@dataclass(frozen=True)
class Number:
    """A column of numbers, or bools, which become float32.

    Args:
        column: its name.
        null: what null and NaN become; None: they are refused.
    """

    column: str
    null: float | None = None


@dataclass(frozen=True)
class Columns:
    """What batches are made of.

    Args:
        features: by key of the KeyedJaggedTensor, in its order. If one has weights, ids of the others weigh 1.
        dense: columns of ``dense_features``; a name is a `Number` without null.
        labels: columns of ``labels``, float32 ``(B, L)``; one that is not in a list gives ``(B,)``.

    Raises:
        TypeError, ValueError: something else is among them, or there is no feature.
    """

    features: Mapping[str, Ids | Strings]
    dense: Sequence[str | Number] = ()
    labels: str | Number | Sequence[str | Number] = ()
    dense_numbers: tuple[Number, ...] = field(init=False, repr=False, compare=False)
    label_numbers: tuple[Number, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("features must have at least one key")
        for key, feature in self.features.items():
            if not isinstance(feature, Ids | Strings):
                raise TypeError(f"features[{key!r}] must be Ids or Strings, got {type(feature).__name__}")
        if isinstance(self.dense, str | Number):
            raise TypeError(f"dense must be a list of columns, got {self.dense!r}")
        object.__setattr__(self, "dense_numbers", _numbers("dense", self.dense))
        labels = (self.labels,) if isinstance(self.labels, str | Number) else self.labels
        object.__setattr__(self, "label_numbers", _numbers("labels", labels))

    @property
    def one_label(self) -> bool:
        """Whether labels have one dimension."""
        return isinstance(self.labels, str | Number)

    @property
    def weighted(self) -> bool:
        """Whether ids have weights."""
        return any(feature.weights is not None for feature in self.features.values())

    @property
    def names(self) -> list[str]:
        """The columns that are read, each once."""
        numbers = [number.column for number in (*self.dense_numbers, *self.label_numbers)]
        weights = [feature.weights for feature in self.features.values() if feature.weights is not None]
        return [*dict.fromkeys([*(feature.column for feature in self.features.values()), *weights, *numbers])]


def _numbers(what: str, columns: Sequence[str | Number]) -> tuple[Number, ...]:
    numbers = tuple(Number(column) if isinstance(column, str) else column for column in columns)
    for number in numbers:
        if not isinstance(number, Number):
            raise TypeError(f"{what} must be names of columns or Numbers, got {number!r}")
    return numbers
