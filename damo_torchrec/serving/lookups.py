"""Lookups: from a request's ids to the inputs of the dense part."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from damo_torchrec import _core
from damo_torchrec.graph_card import Feature, LookupCard
from damo_torchrec.lookup_plan import LookupKind, engine_features
from damo_torchrec.serving.arrays import Array
from damo_torchrec.serving.overlay import Overlay, TableOverlay, pool
from damo_torchrec.serving.requests import Request
from damo_torchrec.store.embedding_store import EmbeddingStore

# By table, what is read as the mean of its rows.
Means = Mapping[str, list[float]]


@dataclass(frozen=True)
class _Jagged:
    """Ids as the engine reads them.

    Args:
        ids: int64 ``(n,)``, by key, then bag.
        lengths: int64, by key, then bag.
        bags: int64 ``(keys,)``: bags of each key.
        uniform: whether each key has as many.
        weights: float32 ``(n,)``, or None.
    """

    ids: Array
    lengths: Array
    bags: Array
    uniform: bool
    weights: Array | None = None

    @cached_property
    def _ends(self) -> tuple[Array, Array]:
        """Of each key's bags, and of each bag's ids."""
        return np.cumsum(self.bags), np.concatenate([[0], np.cumsum(self.lengths)])

    def of_key(self, key: int) -> tuple[slice, slice]:
        """Where its bags and its ids are."""
        bags, ids = self._ends
        last = int(bags[key])
        first = last - int(self.bags[key])
        return slice(first, last), slice(int(ids[first]), int(ids[last]))


class Lookup:
    """One call of a collection.

    Args:
        card: what it is.
        features: what the model is given.
        store: with its tables open.

    Raises:
        ValueError: it asks for a feature that its input does not have.
    """

    def __init__(self, card: LookupCard, features: Mapping[str, Feature], store: EmbeddingStore) -> None:
        self._card = card
        self._plan = plan = card.plan
        self._store = store
        keys = features[card.input].keys if plan.kind is not LookupKind.ROWS else (plan.features[0],)
        if absent := sorted(set(plan.features) - set(keys)):
            raise ValueError(f"{card.path} looks up {absent}, which {card.input} does not have: {list(keys)}")
        self._keys = plan.positions(keys)
        self._indices = {output.table: store.table(output.table).opened.index for output in plan.outputs}
        self._input_keys = keys
        self._features: tuple[Means, list[_core.Feature]] = ({}, engine_features(plan, keys, self._indices))

    def _features_with(self, means: Means) -> list[_core.Feature]:
        """The engine's, which are kept for as long as the means are the same object."""
        made_with, features = self._features
        if means is not made_with:
            features = engine_features(self._plan, self._input_keys, self._indices, means=means)
            self._features = means, features
        return features

    def run(self, request: Request, overlay: Overlay, means: Means) -> dict[str, Array]:
        """The graph's inputs, float32, by name.

        Args:
            request: what is asked.
            overlay: changes that the store does not have.
            means: by table, what is read as the mean of its rows.

        Raises:
            ValueError: the batch needs more memory than the budget allows.
            DamoError: rows cannot be read.
        """
        jagged = self._jagged(request)
        out, outputs = self._output(jagged)
        lookup = _core.Lookup(
            features=self._features_with(means),
            ids=jagged.ids.ctypes.data,
            num_ids=len(jagged.ids),
            lengths=jagged.lengths.ctypes.data,
            keys=len(jagged.bags),
            batch=int(jagged.bags[0]) if jagged.uniform else 0,
            bags=0 if jagged.uniform else jagged.bags.ctypes.data,
            weights=jagged.weights.ctypes.data if jagged.weights is not None else 0,
        )
        self._store.session.engine.forward(lookup, out.ctypes.data, out.shape[-1])
        for i, output in enumerate(self._plan.outputs):
            if (changes := overlay.get(output.table)) is not None:
                self._patch(i, changes, jagged, outputs[i], means)
        if self._plan.kind is LookupKind.SEQUENCES:
            return dict(zip(self._card.graph_inputs, outputs, strict=True))
        if self._plan.kind is LookupKind.ROWS:
            out = out.reshape(*request.arrays[self._card.input].shape, self._plan.width)
        return {self._card.graph_inputs[0]: out}

    def _output(self, jagged: _Jagged) -> tuple[Array, list[Array]]:
        """Memory as the engine fills it, and each output's ``(bags, dim)`` in it."""
        if jagged.uniform:
            out: Array = np.empty((int(jagged.bags[0]), self._plan.width), dtype=np.float32)
            columns = zip(self._plan.columns(), self._plan.dims, strict=True)
            return out, [out[:, first : first + dim] for first, dim in columns]
        shapes = [(int(jagged.bags[key]), dim) for key, dim in zip(self._keys, self._plan.dims, strict=True)]
        ends = np.cumsum([n * dim for n, dim in shapes])
        out = np.empty(int(ends[-1]), dtype=np.float32)
        parts = np.split(out, ends[:-1])
        return out, [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _jagged(self, request: Request) -> _Jagged:
        arrays, name = request.arrays, self._card.input
        if self._plan.kind is LookupKind.ROWS:
            ids = arrays[name].reshape(-1)
            real = np.ones(len(ids), dtype=bool) if self._plan.padding is None else ids != self._plan.padding
            return _Jagged(ids[real], real.astype(np.int64), np.array([len(ids)]), uniform=True)
        ids, lengths = arrays[f"{name}.values"], arrays[f"{name}.lengths"]
        if self._plan.kind is LookupKind.SEQUENCES:  # each id is a bag of its own
            return _Jagged(ids, np.ones(len(ids), dtype=np.int64), lengths.sum(axis=1), uniform=False)
        weights = arrays[f"{name}.weights"] if self._plan.weighted else None
        return _Jagged(ids, lengths.reshape(-1), np.full(len(lengths), lengths.shape[1]), uniform=True, weights=weights)

    def _patch(self, i: int, changes: TableOverlay, jagged: _Jagged, pooled: Array, means: Means) -> None:
        """Pools again the bags of output `i` in which an id is changed."""
        output = self._plan.outputs[i]
        of_key, members = jagged.of_key(self._keys[i])
        ids, lengths = jagged.ids[members], jagged.lengths[of_key]
        if jagged.weights is None and lengths.max(initial=0) <= 1:  # bags are rows
            filled = lengths == 1
            rows = pooled if filled.all() else pooled[filled]
            changes.patch(ids, rows)
            if rows is not pooled:
                pooled[filled] = rows
            return
        changed = changes.touches(ids)
        if not changed.any():
            return
        bag_of = np.repeat(np.arange(len(lengths)), lengths)
        bags = np.unique(bag_of[changed])
        asked = np.isin(bag_of, bags)
        ids = np.ascontiguousarray(ids[asked])
        rows = np.empty((len(ids), output.dim), dtype=np.float32)
        unseen = _core.UnseenRows[output.unseen.upper()]
        index, mean = self._indices[output.table], means.get(output.table)
        self._store.session.engine.get(index, ids.ctypes.data, len(ids), unseen, rows.ctypes.data, mean)
        changes.patch(ids, rows)
        weights = jagged.weights[members][asked] if jagged.weights is not None else None
        pooled[bags] = pool(rows, lengths[bags], weights, output.mean)
