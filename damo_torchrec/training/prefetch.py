"""`PrefetchIterator`: reads the rows of the batches to come while the model computes."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Generic, TypeVar

from torch import nn
from torchrec.distributed.embedding_types import ShardedEmbeddingModule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from damo_torchrec.modules import EmbeddingBagCollection, EmbeddingCollection

_log = logging.getLogger(__name__)

Batch = TypeVar("Batch")


class PrefetchIterator(Generic[Batch]):
    """Yields the batches of an iterable, having the rows of the next ones read meanwhile.

    Results are the same bits with it or without. It pays where rows come from a disk and the model has something to
    compute meanwhile.

    ::

        for batch in damo.PrefetchIterator(dataloader, model):
            loss = model(batch.dense_features, batch.sparse_features)
            ...

    Args:
        batches: what holds KeyedJaggedTensors, by itself or anywhere in tuples, lists, dicts and dataclasses. A
            DataLoader is iterated anew by each ``for``.
        model: its EmbeddingBagCollections and EmbeddingCollections are those whose rows are read, from the
            KeyedJaggedTensors that have all of a collection's features.
        depth: how many batches ahead. They are kept in memory; their rows take up to a quarter of the store's cache,
            and what does not fit is read when its turn has come.

    Raises:
        ValueError: `depth` is less than 1, or the model has no collection of this package.
    """

    def __init__(self, batches: Iterable[Batch], model: nn.Module, depth: int = 1) -> None:
        if isinstance(depth, bool) or not isinstance(depth, int):
            raise TypeError(f"depth must be an int, got {depth!r}")
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self._collections = [m for m in model.modules() if isinstance(m, EmbeddingBagCollection | EmbeddingCollection)]
        if not self._collections:
            sharded = any(isinstance(m, ShardedEmbeddingModule) for m in model.modules())
            raise ValueError(
                f"the model {type(model).__name__} has no EmbeddingBagCollection or EmbeddingCollection of "
                "damo_torchrec to read rows for"
                + sharded
                * "; rows of sharded ones are read ahead by damo_torchrec.distributed.PrefetchTrainPipeline"
            )
        if not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
            raise TypeError(f"batches must be an iterable, got {type(batches).__name__}")
        self._batches = batches
        self._depth = depth
        self._current: _Ahead[Batch] | None = None
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        """That of the batches, such as `damo_torchrec.data.Batches`, after the last one that came out of here.

        Raises:
            TypeError: they have none.
        """
        source = self._stateful()
        state: dict[str, Any] = source.state_dict() if self._current is None else self._current.position
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has the next ``for`` begin where `state_dict` was. Errors are those of the batches, and TypeError."""
        self._stateful().load_state_dict(state)
        self._current = None

    def _stateful(self) -> Any:
        if not _is_stateful(self._batches):
            raise TypeError(
                f"{type(self._batches).__name__} has no state_dict and load_state_dict: no position to keep"
            )
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        source = iter(self._batches)
        # An iterator goes on where it is: it cannot begin anew, and what is ahead would be lost.
        if self._current is None or source is not self._batches:
            position = self._stateful().state_dict if _is_stateful(self._batches) else lambda: None
            self._current = _Ahead(source, self._depth, self._prefetch, position)
        return self._current

    def __next__(self) -> Batch:
        return next(self._current if self._current is not None else iter(self))

    def __len__(self) -> int:
        """Of the iterable; TypeError if it has none."""
        if not isinstance(self._batches, Sized):
            raise TypeError(f"batches have no length: {type(self._batches).__name__}")
        return len(self._batches)

    def _prefetch(self, batch: Batch) -> None:
        found = False
        for features in _keyed_jagged_tensors(batch):
            keys = set(features.keys())
            for collection in self._collections:
                if keys.issuperset(collection.feature_names()):
                    collection.prefetch(features)
                    found = True
        if not found and not self._warned:
            self._warned = True
            _log.warning(
                "PrefetchIterator reads nothing ahead: a batch (%s) has no KeyedJaggedTensor with all features of a "
                "collection",
                type(batch).__name__,
            )


class _Ahead(Generic[Batch]):
    """Goes once through `source`, and calls `prefetch` for batches `depth` before they are due.

    Attributes:
        position: what `ask_position` said after the last batch that was given out.
    """

    def __init__(
        self,
        source: Iterator[Batch],
        depth: int,
        prefetch: Callable[[Batch], None],
        ask_position: Callable[[], Any],
    ) -> None:
        self._source: Iterator[Batch] | None = source
        self._depth = depth
        self._prefetch = prefetch
        self._ask_position = ask_position
        self.position = self._ask_position()
        self._batches: deque[tuple[Batch, Any]] = deque()
        self._error: Exception | None = None

    def __iter__(self) -> _Ahead[Batch]:
        return self

    def __next__(self) -> Batch:
        while self._source is not None and len(self._batches) <= self._depth:
            try:
                batch = next(self._source)
            except StopIteration:
                self._source = None
            except Exception as error:
                # The batches before it are whole: they come first.
                self._source, self._error = None, error
            else:
                self._batches.append((batch, self._ask_position()))
                try:
                    self._prefetch(batch)
                except Exception:
                    _log.debug("a batch could not be prefetched: its forward will tell", exc_info=True)
        if self._batches:
            batch, self.position = self._batches.popleft()
            return batch
        if self._error is not None:
            raised, self._error = self._error, None
            raise raised
        raise StopIteration


def _is_stateful(batches: object) -> bool:
    return hasattr(batches, "state_dict") and hasattr(batches, "load_state_dict")


def _keyed_jagged_tensors(batch: Any) -> Iterator[KeyedJaggedTensor]:
    if isinstance(batch, KeyedJaggedTensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _keyed_jagged_tensors(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _keyed_jagged_tensors(value)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from _keyed_jagged_tensors(getattr(batch, field.name))
