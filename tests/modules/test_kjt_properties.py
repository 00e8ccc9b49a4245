"""Whatever a KeyedJaggedTensor looks like, outputs, gradients and updated rows are those of TorchRec's own modules.

The rest is in test_embedding_bag_collection.py and test_variable_batch.py; here everything comes at once.
"""

from dataclasses import dataclass

import pytest
import torch
import torchrec
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec import EmbeddingConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType

import damo_torchrec as damo
from support import config, copy_rows, small_store

ROWS = 12
EXAMPLES = settings.default.max_examples // 2
FEATURES = ["a", "b", "c"]
EXTRA = ["x", "y"]
LR = 0.5


@dataclass(frozen=True)
class Jagged:
    """What a KeyedJaggedTensor is made of.

    Args:
        keys: in any order.
        bags: of each key; as many for all unless `indices` are there.
        indices: which bag each sample has, by key.
        ids: the dtype of ids.
        lengths: that of lengths.
    """

    keys: list[str]
    bags: dict[str, list[list[int]]]
    indices: dict[str, list[int]] | None
    ids: torch.dtype
    lengths: torch.dtype

    def tensor(self, weights: torch.Tensor | None, *, widest: bool = False) -> KeyedJaggedTensor:
        """The weights are those of keys in alphabetical order. `widest`: with int64, as TorchRec's kernels need it."""
        bags = [bag for key in self.keys for bag in self.bags[key]]
        if weights is not None:
            sizes = {key: sum(map(len, self.bags[key])) for key in sorted(self.keys)}
            of_keys = dict(zip(sizes, weights.split(list(sizes.values())), strict=True))
            weights = torch.cat([of_keys[key] for key in self.keys])
        more: dict[str, object] = {}
        if self.indices is not None:
            more = {
                "stride_per_key_per_rank": [[len(self.bags[key])] for key in self.keys],
                "inverse_indices": (self.keys, torch.tensor([self.indices[key] for key in self.keys])),
            }
        return KeyedJaggedTensor(
            keys=self.keys,
            values=torch.tensor([i for bag in bags for i in bag], dtype=torch.int64 if widest else self.ids),
            lengths=torch.tensor([len(bag) for bag in bags], dtype=torch.int64 if widest else self.lengths),
            weights=weights,
            **more,
        )

    def count(self) -> int:
        return sum(len(bag) for bags in self.bags.values() for bag in bags)


def lists_of_bags(n: int) -> st.SearchStrategy[list[list[int]]]:
    bag = st.lists(st.integers(0, ROWS - 1), max_size=4)
    return st.lists(bag, min_size=n, max_size=n)


@st.composite
def jagged(draw: st.DrawFn, *, variable: bool = False) -> Jagged:
    keys = draw(st.permutations(FEATURES + draw(st.lists(st.sampled_from(EXTRA), unique=True))))
    batch = draw(st.integers(1, 5))  # TorchRec fails without samples
    sizes = {key: draw(st.integers(1, 4)) if variable else batch for key in keys}
    index = {key: st.lists(st.integers(0, n - 1), min_size=batch, max_size=batch) for key, n in sizes.items()}
    integers = st.sampled_from([torch.int32, torch.int64])
    return Jagged(
        keys=list(keys),
        bags={key: draw(lists_of_bags(n)) for key, n in sizes.items()},
        indices={key: draw(index[key]) for key in keys} if variable else None,
        ids=draw(integers),
        lengths=draw(integers),
    )


def tables(pooling: PoolingType) -> list[torchrec.EmbeddingBagConfig]:
    """A feature of two tables, and tables of one and of two features."""
    return [
        config("t_ab", 4, ["a", "b"], num_embeddings=ROWS, pooling=pooling),
        config("t_c", 3, ["c"], num_embeddings=ROWS, pooling=pooling),
        config("t_bc", 5, ["b", "c"], num_embeddings=ROWS),
    ]


def assert_trains_alike(theirs: torch.nn.Module, ours: damo.EmbeddingBagCollection, batch: Jagged) -> None:
    """Asserts equal outputs, gradients of weights, and rows after an update, from the same rows."""
    copy_rows(theirs, ours)
    numbers = torch.Generator().manual_seed(batch.count())
    weights = torch.rand(batch.count(), generator=numbers) + 0.5 if ours.is_weighted() else None
    results = []
    for module in (theirs, ours):
        leaf = weights.clone().requires_grad_() if weights is not None else None
        output = module(batch.tensor(leaf, widest=module is theirs))
        values = output.values()
        values.backward(torch.randn(values.shape, generator=numbers.manual_seed(1)))
        results.append((output.keys(), values.detach(), leaf.grad if leaf is not None else None))
    torch.optim.SGD(theirs.parameters(), lr=LR).step()
    assert results[1][0] == results[0][0]
    torch.testing.assert_close(results[1][1:], results[0][1:])
    for table in ours.tables():
        torch.testing.assert_close(table.get(range(ROWS)), theirs.embedding_bags[table.name].weight.detach())
        assert (len(table), table.iter) == (ROWS, 1)


@pytest.mark.parametrize("pooling", [PoolingType.SUM, PoolingType.MEAN])
@settings(max_examples=EXAMPLES)
@given(batch=st.one_of(jagged(), jagged(variable=True)))
def test_pooled_embeddings_are_torchrecs(pooling, batch):
    theirs = torchrec.EmbeddingBagCollection(tables(pooling))
    with small_store() as store:
        ours = damo.EmbeddingBagCollection(tables(pooling), torch.optim.SGD, {"lr": LR}, store=store)
        assert_trains_alike(theirs, ours, batch)


@settings(max_examples=EXAMPLES)
@given(batch=st.one_of(jagged(), jagged(variable=True)))
def test_weighted_pooled_embeddings_and_gradients_of_weights_are_torchrecs(batch):
    theirs = torchrec.EmbeddingBagCollection(tables(PoolingType.SUM), is_weighted=True)
    with small_store() as store:
        ours = damo.EmbeddingBagCollection(
            tables(PoolingType.SUM), torch.optim.SGD, {"lr": LR}, is_weighted=True, store=store
        )
        assert_trains_alike(theirs, ours, batch)


def sequence_tables() -> list[EmbeddingConfig]:
    """Those of one collection have one dim, as TorchRec's forward wants it."""
    return [
        EmbeddingConfig(name=name, embedding_dim=4, num_embeddings=ROWS, feature_names=features)
        for name, features in {"t_ab": ["a", "b"], "t_c": ["c"]}.items()
    ]


@settings(max_examples=EXAMPLES)
@given(batch=jagged())
def test_sequence_embeddings_are_torchrecs(batch):
    theirs = torchrec.EmbeddingCollection(sequence_tables())
    with small_store() as store:
        ours = damo.EmbeddingCollection(sequence_tables(), torch.optim.SGD, {"lr": LR}, store=store)
        for table in ours.tables():
            table.set(range(ROWS), theirs.embeddings[table.name].weight.detach())
        outputs = [module(batch.tensor(None, widest=module is theirs)) for module in (theirs, ours)]
        assert list(outputs[0]) == list(outputs[1])
        for feature, expected in outputs[0].items():
            assert torch.equal(outputs[1][feature].values(), expected.values())
            assert outputs[1][feature].lengths().tolist() == expected.lengths().tolist()
        for output in outputs:
            sum(output[key].values().square().sum() for key in sorted(output)).backward()
        torch.optim.SGD(theirs.parameters(), lr=LR).step()
        for table in ours.tables():
            torch.testing.assert_close(table.get(range(ROWS)), theirs.embeddings[table.name].weight.detach())
