"""`PrefetchIterator` around the batches of a training loop."""

import itertools
import logging
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from torchrec import KeyedJaggedTensor
from torchrec.datasets.utils import Batch

import damo_torchrec as damo
from mixed_run import collection
from support import kjt


@pytest.fixture
def ebc(memory_store):
    return collection(memory_store, "t", initial=1.0)


def rows_read(ebc: damo.EmbeddingBagCollection) -> int:
    return ebc.store.stats().rows_read


def batches(n: int) -> list[KeyedJaggedTensor]:
    """Batches of one new id each."""
    return [kjt({"t": [[i]]}) for i in range(n)]


# ------------------------------------------------------------------ which batches come


class Stream(IterableDataset):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


SOURCES: dict[str, Callable[[list[Any]], Iterable[Any]]] = {
    "a list": list,
    "a tuple": tuple,
    "an iterator": iter,
    "a generator": lambda items: (item for item in items),
    "a DataLoader": lambda items: DataLoader(items, batch_size=None),
    "a DataLoader of a stream": lambda items: DataLoader(Stream(items), batch_size=None),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7])
def test_it_yields_the_batches_in_order(ebc, source, depth, n):
    items = batches(n)
    yielded = list(damo.PrefetchIterator(source(items), ebc, depth))
    assert [y.values().tolist() for y in yielded] == [[i] for i in range(n)]
    assert all(y is item for y, item in zip(yielded, items, strict=True))
    assert rows_read(ebc) == n


def test_it_is_an_iterator(ebc):
    items = batches(3)
    ahead = damo.PrefetchIterator(items, ebc)
    assert [next(ahead), next(ahead), next(ahead)] == items
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(ahead)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_it_takes_depth_batches_ahead_and_reads_their_rows(ebc, depth):
    taken = 0

    def source() -> Iterator[Any]:
        nonlocal taken
        for item in batches(20):
            taken += 1
            yield item

    for i, _ in enumerate(damo.PrefetchIterator(source(), ebc, depth)):
        assert taken == min(20, i + 1 + depth)
        assert rows_read(ebc) == taken


def test_a_prefetch_precedes_every_forward(ebc):
    for item in damo.PrefetchIterator(batches(10), ebc):
        ebc(item)
    assert ebc.store.stats().tables["t"].misses == 0


def test_the_default_depth_is_one(ebc):
    next(damo.PrefetchIterator(batches(10), ebc))
    assert rows_read(ebc) == 2


@dataclass
class Sample:
    label: int
    inner: Any
    also: list[Any] = field(default_factory=list)


Pair = namedtuple("Pair", ["features", "label"])
HOLDERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda k: k,
    "a tuple": lambda k: (torch.ones(1), k, None),
    "a list": lambda k: [k, torch.ones(1)],
    "a named tuple": lambda k: Pair(k, 1),
    "a dict": lambda k: {"label": 1, "sparse": k},
    "a dataclass": lambda k: Sample(1, k),
    "TorchRec's Batch": lambda k: Batch(torch.ones(1, 2), k, torch.ones(1)),
    "all of them": lambda k: ({"x": [Sample(1, None, [{"k": (k,)}])]}, "text"),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_it_finds_features_wherever_a_batch_holds_them(ebc, hold):
    items = [hold(k) for k in batches(5)]
    ahead = damo.PrefetchIterator(items, ebc, 2)
    assert next(ahead) is items[0]
    assert rows_read(ebc) == 3
    assert all(next(ahead) is item for item in items[1:])


def test_it_reads_for_every_collection_of_the_model_whatever_the_features_are_in(memory_store):
    model = torch.nn.ModuleDict(
        {name: collection(memory_store, *tables) for name, tables in {"a": "tu", "b": "v", "c": "w"}.items()}
    )
    both, one = kjt({"u": [[1, 2]], "v": [[3]], "t": [[4]]}), kjt({"t": [[9]], "w": [[5]]})
    next(damo.PrefetchIterator([(both, one)], model))
    stats = memory_store.stats()
    assert {name: table.cached_rows for name, table in stats.tables.items()} == {"t": 1, "u": 2, "v": 1, "w": 1}
    assert stats.rows_read == 5


@pytest.mark.parametrize("left", [0, 1, 2, 5])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_loop_over_a_one_shot_iterator_goes_on_where_the_last_one_broke_off(ebc, left, depth):
    ahead = damo.PrefetchIterator(iter(batches(2 + left)), ebc, depth)
    for item in ahead:
        if item.values().item() == 1:
            break
    assert [item.values().item() for item in ahead] == list(range(2, 2 + left))
    assert list(ahead) == []


def test_a_loader_begins_anew_with_each_loop(ebc):
    items = batches(5)
    ahead = damo.PrefetchIterator(DataLoader(items, batch_size=None), ebc, 2)
    for stop in (5, 1, 3, 5):
        seen = []
        for item in ahead:
            seen.append(item.values().item())
            if len(seen) == stop:
                break
        assert seen == list(range(stop))


def test_an_iterator_of_it_does_not_begin_anew(ebc):
    """As any iterator: what takes it up later, a loop or itertools.islice, goes on where it is."""
    iterator = iter(damo.PrefetchIterator(batches(6), ebc))
    taken = [next(iterator), *itertools.islice(iterator, 2), *iterator]
    assert [item.values().item() for item in taken] == [0, 1, 2, 3, 4, 5]


# ------------------------------------------------------------------ the same as without it


class Counted:
    """How often it was begun."""

    begun = 0

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        return iter(batches(3))


def test_a_loop_begins_its_source_once(ebc):
    """Beginning a DataLoader starts its workers, and draws a random number."""
    source = Counted()
    ahead = damo.PrefetchIterator(source, ebc)
    for loops in (1, 2):
        assert len(list(ahead)) == 3
        assert source.begun == loops


def test_a_shuffled_loader_yields_what_it_yields_without_it(ebc):
    loader = DataLoader(batches(30), batch_size=None, shuffle=True)

    def epochs(source: Iterable[Any]) -> list[Any]:
        torch.manual_seed(5)
        order = [[item.values().item() for item in source] for _ in range(2)]
        return [*order, torch.rand(1).item()]

    assert epochs(damo.PrefetchIterator(loader, ebc)) == epochs(loader)


@pytest.mark.parametrize("source", [[], [1, 2, 3], DataLoader([1, 2, 3, 4], batch_size=3)])
def test_it_has_the_length_of_its_source(ebc, source):
    assert len(damo.PrefetchIterator(source, ebc)) == len(source)


def test_it_has_no_length_where_its_source_has_none(ebc):
    with pytest.raises(TypeError, match="len"):
        len(damo.PrefetchIterator(iter([1]), ebc))


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 4])
def test_an_error_of_the_source_comes_after_the_whole_batches_before_it(ebc, n, depth):
    def source() -> Iterator[Any]:
        yield from batches(n)
        raise OSError("the file ends within a row")

    ahead = damo.PrefetchIterator(source(), ebc, depth)
    assert [next(ahead).values().item() for _ in range(n)] == list(range(n))
    with pytest.raises(OSError, match="the file ends within a row"):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)


def test_an_interrupt_is_not_held_back(ebc):
    def source() -> Iterator[Any]:
        yield from batches(2)
        raise KeyboardInterrupt

    ahead = damo.PrefetchIterator(source(), ebc, 5)
    with pytest.raises(KeyboardInterrupt):
        next(ahead)


def test_a_batch_that_cannot_be_looked_up_comes_in_its_turn(ebc):
    """Its forward says what is wrong with it, and the batches around it are none the worse."""
    good, bad = batches(3), KeyedJaggedTensor(keys=["t"], values=torch.tensor([0.5]), lengths=torch.tensor([1]))
    items = [good[0], good[1], bad, good[2]]
    seen: list[object] = []
    ahead = damo.PrefetchIterator(items, ebc, 1)
    while len(seen) < 10:
        try:
            item = next(ahead)
        except StopIteration:
            break
        except TypeError as error:
            seen.append(f"raised early: {error}")
            continue
        seen.append(items.index(item))
        if item is bad:
            with pytest.raises(TypeError, match=r"values must be int64 or int32, got torch\.float32"):
                ebc(item)
        else:
            ebc(item)
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("depth", "error", "match"),
    [
        (0, ValueError, "depth must be at least 1, got 0"),
        (-3, ValueError, "depth must be at least 1, got -3"),
        (1.0, TypeError, "depth must be an int, got 1.0"),
        (True, TypeError, "depth must be an int, got True"),
        ("2", TypeError, "depth must be an int, got '2'"),
        (None, TypeError, "depth must be an int, got None"),
    ],
)
def test_a_wrong_depth_is_refused(ebc, depth, error, match):
    with pytest.raises(error, match=match):
        damo.PrefetchIterator([], ebc, depth)


def test_a_model_without_a_collection_is_refused():
    with pytest.raises(ValueError, match=r"Linear has no EmbeddingBagCollection or EmbeddingCollection"):
        damo.PrefetchIterator([], torch.nn.Linear(1, 1))


def test_what_is_no_iterable_is_refused(ebc):
    with pytest.raises(TypeError, match="batches must be an iterable, got int"):
        damo.PrefetchIterator(3, ebc)


def warnings_of(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("damo_torchrec")]


def test_a_loop_in_which_nothing_is_read_ahead_warns_once(ebc, caplog):
    items = [{"features": kjt({"other": [[1]]})}, {"features": None}, {}]
    with caplog.at_level(logging.WARNING, logger="damo_torchrec"):
        ahead = damo.PrefetchIterator(items, ebc)
        assert list(ahead) == items
        assert list(ahead) == items
    (warning,) = warnings_of(caplog)
    assert "PrefetchIterator reads nothing ahead: a batch (dict)" in warning
    assert rows_read(ebc) == 0


def test_a_loop_in_which_all_is_well_does_not_warn(ebc, caplog):
    with caplog.at_level(logging.WARNING, logger="damo_torchrec"):
        list(damo.PrefetchIterator(batches(5), ebc))
        list(damo.PrefetchIterator([], ebc))
    assert warnings_of(caplog) == []


def test_a_store_that_was_closed_ends_the_loop_with_its_error(ebc):
    ahead = damo.PrefetchIterator(batches(5), ebc)
    next(ahead)
    ebc.store.close()
    with pytest.raises(damo.StoreClosedError):
        list(map(ebc, ahead))
