"""`EmbeddingBagCollection`: TorchRec's pooled embeddings, with rows in a store."""

from collections.abc import Mapping
from typing import Any

import torch
import torchrec
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollectionInterface
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from damo_torchrec.lookup_plan import LookupKind, LookupPlan
from damo_torchrec.modules import jagged_input, operators, tracing
from damo_torchrec.modules.autograd import Batch, graph_backward
from damo_torchrec.modules.collection import Collection
from damo_torchrec.options import TableOptions
from damo_torchrec.store.embedding_store import EmbeddingStore


class EmbeddingBagCollection(Collection, EmbeddingBagCollectionInterface):
    """A collection of pooled embedding tables whose rows live in an `EmbeddingStore`.

    Takes the place of TorchRec's `EmbeddingBagCollection` and `FusedEmbeddingBagCollection`. Ids are any int64; an
    unseen id reads its initial value in train mode and zeros in eval mode, unless `TableOptions` say otherwise, and
    gets its row with its first update. Rows are updated inside ``backward()``: pass a dense optimizer the model's
    parameters, which rows are none of.

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
            without a store, until `to`, `to_empty` or an input with values has it come to life.
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
        outputs = self._define(tables, "embedding_bags", (optimizer_type, optimizer_kwargs), device, table_options)
        self._plan = LookupPlan(LookupKind.POOLED, outputs, weighted=is_weighted)
        self.attach_store(store)
        self._number = operators.register(self)
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
        features = jagged_input.as_keyed_jagged(features)
        if not tracing.is_fx_proxy(features) and self._has_shapes_only(features.values()):
            values = torch.empty(features.stride(), self._plan.width, device="meta")
        elif tracing.is_traced(features):
            values = operators.embedding_bag_collection(
                self._rows if self.trains else self._rows_in_eval,
                *jagged_input.parts_in_graph(features, self._plan.weighted),
                self._number,
                self.trains,
            )
        else:
            values = self._eager_forward(features)
        return KeyedTensor(keys=self._plan.names, length_per_key=self._plan.dims, values=values)

    @tracing.eager
    def _eager_forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        batch = self._batch(features)
        values = self._lookup(batch, self.trains)
        if batch.bags is None:
            return values
        return jagged_input.expand(features, self._plan.features, self._outputs(values, batch))

    def _batch(self, features: KeyedJaggedTensor) -> Batch:
        return jagged_input.bags(jagged_input.parts_of(features), self._accepted())

    def _check_outputs(self, features: KeyedJaggedTensor, batch: Batch) -> None:
        if batch.bags is not None:
            jagged_input.inverse_indices(features, self._plan.features, self._bags_of_outputs(batch))

    @property
    def output_width(self) -> int:
        """Of the output, where all features have as many bags."""
        return self._plan.width

    def graph_forward(self, graph: operators.GraphBatch) -> torch.Tensor:
        """What operators.py's operator computes."""
        with torch.no_grad():
            return self._lookup(self._of_graph(graph), graph.update)

    def graph_backward(self, grad: torch.Tensor, graph: operators.GraphBatch) -> torch.Tensor:
        """Its backward: updates rows, and returns the gradient of the weights if there are any."""
        batch = self._of_graph(graph)
        weight_grad = graph_backward(self._call(batch, graph.update), batch, grad, self._rows)
        return weight_grad.to(graph.ids.device if graph.weights is None else graph.weights.device)

    def _of_graph(self, graph: operators.GraphBatch) -> Batch:
        parts = jagged_input.JaggedParts(graph.ids, graph.lengths, graph.weights, graph.keys, graph.batch)
        return jagged_input.bags(parts, self._accepted()._replace(computed_weights=True))  # who knows, in a graph

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The tables' configs."""
        return self._configs

    def is_weighted(self) -> bool:
        """Whether inputs carry a weight for each id."""
        return self._plan.weighted
