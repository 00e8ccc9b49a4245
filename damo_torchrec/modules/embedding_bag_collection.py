"""`EmbeddingBagCollection`: TorchRec's pooled embeddings, with rows in a store."""

from collections.abc import Mapping
from typing import Any

import torch
import torchrec
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollectionInterface, reorder_inverse_indices
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor
from torchrec.sparse.tensor_dict import maybe_td_to_kjt

from damo_torchrec.modules import operators, tracing
from damo_torchrec.modules.accumulation import Part
from damo_torchrec.modules.autograd import Batch, make_lookup, readable, update, weight_gradient
from damo_torchrec.modules.collection import Collection, as_int64, check_device
from damo_torchrec.options import TableOptions
from damo_torchrec.store.embedding_store import EmbeddingStore


class EmbeddingBagCollection(Collection, EmbeddingBagCollectionInterface):
    """A collection of pooled embedding tables whose rows live in an `EmbeddingStore`.

    Takes the place of TorchRec's `EmbeddingBagCollection` and `FusedEmbeddingBagCollection`. Ids are any int64; an
    unseen id reads its initial value in train mode and zeros in eval mode, and gets its row with its first update.
    Rows are updated inside ``backward()``: pass a dense optimizer the model's parameters, which rows are none of.

    ::

        #             i = 0     i = 1   i = 2   <- samples
        # "user"      [7]       []      [-3]
        # "clicks"    [1, 2]    [2]     []        keys
        ebc(KeyedJaggedTensor(keys=["user", "clicks"], values=[7, -3, 1, 2, 2], lengths=[1, 0, 1, 2, 1, 0]))

        #         "user" (dim 2)  "clicks" (dim 3)
        # i = 0   w[7]            w[1] + w[2]
        # i = 1   zeros           w[2]
        # i = 2   w[-3]           zeros

    Args:
        tables: TorchRec's configs. ``num_embeddings`` is no limit: it sets the default range of initial weights,
            ±1/√num_embeddings, so give the number of ids that you expect.
        optimizer_type: an optimizer class of torch.optim, torchrec.optim or damo.optim.
        optimizer_kwargs: its hyperparameters.
        is_weighted: whether inputs carry a weight for each id.
        device: of outputs; inputs are there or on the CPU. Rows stay in host memory. ``"meta"`` for shapes only,
            without a store.
        store: where the rows are; None for `default_store()`.
        table_options: by table name.

    Raises:
        ValueError: two tables with one name, a pooling other than SUM or MEAN, a data type other than FP32, FP16
            or BF16, an ``init_fn``, optimizer or hyperparameter without a counterpart here (named).
        SchemaMismatchError: the store has a table of this name with another dim, optimizer or initializer.
    """

    def __init__(
        self,
        tables: list[EmbeddingBagConfig],
        optimizer_type: type[torch.optim.Optimizer] = torchrec.optim.RowWiseAdagrad,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        is_weighted: bool = False,
        device: torch.device | str | None = None,
        *,
        store: EmbeddingStore | None = None,
        table_options: Mapping[str, TableOptions] | None = None,
    ) -> None:
        super().__init__()
        self._is_weighted = is_weighted
        self._define(tables, "embedding_bags", (optimizer_type, optimizer_kwargs), device, table_options)
        self.attach(store)
        self._number = operators.register(self)
        self._embedding_names = [name for names in self._names_by_table for name in names]
        # Stand for the rows in a graph: what has no input that needs a gradient has no backward.
        self._rows = torch.empty(0, device="cpu", requires_grad=True)
        self._rows_in_eval = torch.empty(0, device="cpu")

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Looks up and pools.

        Args:
            features: F features of B bags: int64 or int32 values, and float weights if the collection is weighted. Keys
                may come in any order; those that no table uses are passed over. With a batch size for each feature,
                ``inverse_indices`` say which bag each of B samples has.

        Returns:
            KeyedTensor: float32 ``(B, ΣD)``, one key per table and feature, in the tables' order. A feature of several
            tables is named ``feature@table`` in each. Empty bags are zeros.

        Raises:
            KeyError: a feature is missing.
            TypeError: the values are not integers.
            ValueError: lengths are negative or do not fit the values, weights are missing or of another size, features
                differ in their batch size without ``inverse_indices``, or the batch needs more memory than the budget
                allows.
        """
        features = maybe_td_to_kjt(features, None)
        if self._device.type == "meta":
            values = torch.empty(features.stride(), self.columns, device="meta")
        elif tracing.is_traced(features):
            values = operators.embedding_bag_collection(
                self._rows if self.training else self._rows_in_eval,
                features.values(),
                features.lengths(),
                features.weights_or_none() if self._is_weighted else None,
                features.keys(),
                features.stride(),
                features.stride_per_key() if tracing.is_fx_proxy(features) else [],
                self._number,
                self.training,
            )
        else:
            values = self._eager_forward(features)
        return KeyedTensor(keys=self._embedding_names, length_per_key=self._dims, values=values)

    @tracing.eager
    def _eager_forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        batch = self._batch(features)
        values = self._lookup(batch, self.training)
        return values if batch.bags is None else self._expand(features, values, batch)

    def _batch(self, features: KeyedJaggedTensor) -> Batch:
        bags = None
        if features.variable_stride_per_key():
            bags = torch.tensor(features.stride_per_key(), dtype=torch.int64, device="cpu")
        return self._make_batch(
            features.values(),
            features.lengths(),
            features.weights_or_none() if self._is_weighted else None,
            features.keys(),
            features.stride(),
            bags,
        )

    def _make_batch(
        self,
        values: torch.Tensor,
        lengths: torch.Tensor,
        weights: torch.Tensor | None,
        keys: list[str],
        size: int,
        bags: torch.Tensor | None = None,
    ) -> Batch:
        check_device("values", values, self._device)
        ids = self._as_ids("values", values)
        lengths = as_int64("lengths", lengths)
        if bags is not None and bool((bags < 0).any()):
            raise ValueError(f"batch sizes of features must not be negative, got {bags.tolist()}")
        expected = len(keys) * size if bags is None else int(bags.sum())
        if lengths.numel() != expected:
            samples = f"{size} samples" if bags is None else f"its samples, {expected} in all"
            raise ValueError(f"lengths must be one for each of {len(keys)} keys and {samples}, got {lengths.numel()}")
        return Batch(
            keys=tuple(keys),
            ids=ids,
            lengths=lengths,
            weights=self._check_weights(weights, ids.numel()),
            size=size,
            bags=bags,
        )

    def _expand(self, features: KeyedJaggedTensor, values: torch.Tensor, batch: Batch) -> torch.Tensor:
        """``(B, ΣD)`` of what was looked up for each feature's own bags."""
        indices = features.inverse_indices_or_none()
        if indices is None:
            raise ValueError(
                f"features have batch sizes of their own, {features.stride_per_key()}, but there are no "
                "inverse_indices, which say which bag each sample has"
            )
        of_features = reorder_inverse_indices(indices, self.feature_names()).to(values.device)
        outputs = self._outputs(values, batch)
        for name, output, index in zip(self.feature_names(), outputs, of_features, strict=True):
            if index.numel() > 0 and not 0 <= int(index.min()) <= int(index.max()) < len(output):
                raise ValueError(
                    f"inverse_indices of feature {name!r} must be in 0..{len(output) - 1}, "
                    f"got {int(index.min())} to {int(index.max())}"
                )
        return torch.cat([output[index] for output, index in zip(outputs, of_features, strict=True)], dim=1)

    def _check_weights(self, weights: torch.Tensor | None, n: int) -> torch.Tensor | None:
        if not self._is_weighted:
            return None
        if weights is None:
            raise ValueError("the collection is weighted, but the KeyedJaggedTensor has no weights")
        if not weights.is_floating_point():
            raise TypeError(f"weights must be floating point, got {weights.dtype}")
        if tuple(weights.shape) != (n,):
            raise ValueError(f"weights must be one for each of {n} values, got {tuple(weights.shape)}")
        check_device("weights", weights, self._device)
        return weights.to("cpu", torch.float32).contiguous()

    def graph_forward(self, graph: operators.GraphBatch) -> torch.Tensor:
        """What operators.py's operator computes."""
        with torch.no_grad():
            return self._lookup(self._of_graph(graph), graph.update)

    def graph_backward(self, grad: torch.Tensor, graph: operators.GraphBatch) -> torch.Tensor:
        """Its backward: updates rows, and returns the gradient of the weights if there are any."""
        batch = self._of_graph(graph)
        call = self._call(batch, graph.update)
        generation = self._session.generation
        found = make_lookup(batch, call.features)
        grad = readable(grad)
        weight_grad = torch.empty(0, device="cpu")
        if batch.weights is not None:
            weight_grad = weight_gradient(call, found, grad)
        if graph.update:
            update(call, Part(found, generation, (batch.ids, batch.lengths, batch.weights), grad))
        return weight_grad.to(graph.ids.device if graph.weights is None else graph.weights.device)

    def _of_graph(self, graph: operators.GraphBatch) -> Batch:
        return self._make_batch(graph.ids, graph.lengths, graph.weights, graph.keys, graph.batch)

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The tables' configs."""
        return self._configs

    def is_weighted(self) -> bool:
        """Whether inputs carry a weight for each id."""
        return self._is_weighted
