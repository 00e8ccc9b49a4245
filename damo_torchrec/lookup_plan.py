"""What a collection looks up, as plain data: which features, in which tables, and what comes of the rows.

A collection makes its plan; whoever has to know what it would look up, such as export, serving or a sharder, takes the
plan and not the collection.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from damo_torchrec import _core


class LookupKind(Enum):
    """What is asked with, and what is given. The values are part of the format of exported graphs."""

    POOLED = "EmbeddingBagCollection"  # jagged ids by feature; each bag's rows as one
    SEQUENCES = "EmbeddingCollection"  # jagged ids by feature; a row for each id
    ROWS = "Embedding"  # a plain tensor of ids; a row for each


@dataclass(frozen=True)
class LookupOutput:
    """One output: a feature, looked up in one table.

    Args:
        feature: its name.
        table: the table's name.
        dim: of the table's rows.
        mean: whether bags are means; else sums, and rows themselves where nothing is pooled.
        unseen: what ids without a row read as in eval mode: ``"zeros"``, ``"initial"`` or ``"mean"``.
        trainable: whether gradients update its rows.
        unseen_in_train: what such ids read as in train mode: ``"initial"`` or ``"zeros"``.
        string_salt: with which its ids are `hash_strings` of strings; None: they are not.
    """

    feature: str
    table: str
    dim: int
    mean: bool
    unseen: str
    trainable: bool = True
    unseen_in_train: str = "initial"
    string_salt: int | None = None


@dataclass(frozen=True)
class LookupPlan:
    """All that a collection looks up in one call.

    Args:
        kind: what is asked with, and what is given.
        outputs: in the order of the tables, and of each table's features.
        weighted: whether each id has a weight.
        padding: an id that reads zeros whatever its row; None for none.

    Attributes:
        features: by output, its feature.
        dims: by output, its columns.
        names: by output, TorchRec's name: the feature's, or ``feature@table`` if several tables have the feature.
        trained: by output, whether it is trained.
    """

    kind: LookupKind
    outputs: tuple[LookupOutput, ...]
    weighted: bool = False
    padding: int | None = None
    # Not cached properties, which torch.compile cannot trace; lists, as KeyedTensor wants them.
    features: list[str] = field(init=False, repr=False, compare=False)
    dims: list[int] = field(init=False, repr=False, compare=False)
    names: list[str] = field(init=False, repr=False, compare=False)
    trained: list[bool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        features = [output.feature for output in self.outputs]
        names = [o.feature if features.count(o.feature) == 1 else f"{o.feature}@{o.table}" for o in self.outputs]
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "dims", [output.dim for output in self.outputs])
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "trained", [output.trainable for output in self.outputs])

    @property
    def width(self) -> int:
        """Columns of all outputs, side by side."""
        return sum(self.dims)

    def read_means(self, training: bool) -> set[str]:
        """The tables of which ids without a row read the mean, in train mode or in eval mode."""
        return {o.table for o in self.outputs if o.unseen == "mean" and not (training and o.trainable)}

    def columns(self) -> list[int]:
        """By output, which of these columns is its first."""
        return [0, *itertools.accumulate(self.dims)][: len(self.dims)]

    def positions(self, keys: Sequence[str]) -> list[int]:
        """By output, where among these keys its feature is. Raises KeyError if it is not there."""
        position = {key: i for i, key in enumerate(keys)}
        for feature in self.features:
            if feature not in position:
                raise KeyError(f"no feature {feature!r} in the input, whose keys are {list(keys)}")
        return [position[feature] for feature in self.features]


def engine_features(
    plan: LookupPlan,
    keys: Sequence[str],
    tables: Mapping[str, int],
    training: bool = False,
    means: Mapping[str, list[float]] = MappingProxyType({}),
) -> list[_core.Feature]:
    """The engine's form of a plan: which key goes from which table to which columns.

    Args:
        plan: what is looked up.
        keys: of the input, in its order.
        tables: by name, the engine's number.
        training: whether ids without a row, of outputs that are trained, read as in train mode.
        means: by name, what is read as the mean of a table's rows; of others that of the rows at the time of a lookup.

    Raises:
        KeyError: a feature is not among the keys.
    """
    return [
        _core.Feature(
            table=tables[output.table],
            pooling=_core.Pooling.MEAN if output.mean else _core.Pooling.SUM,
            unseen=_core.UnseenRows[
                (output.unseen_in_train if training and output.trainable else output.unseen).upper()
            ],
            key=key,
            column=column,
            use=_core.LookupUse.TRAINING if training and output.trainable else _core.LookupUse.EVALUATION,
            mean=means.get(output.table),
        )
        for output, key, column in zip(plan.outputs, plan.positions(keys), plan.columns(), strict=True)
    ]
