"""``torchrec.ir``, which takes modules out of ``torch.export`` and puts them back: our collections for its serializer.

It is in TorchRec's repository, and not in its wheel.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torchrec
from torch import nn
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

try:
    from torchrec.ir.schema import EmbeddingBagConfigMetadata
    from torchrec.ir.serializer import (
        EBCJsonSerializer,
        FPEBCJsonSerializer,
        JsonSerializer,
        embedding_metadata_to_config,
    )
    from torchrec.ir.utils import qualname
except ImportError as error:
    raise ImportError(
        f"damo_torchrec.ir needs torchrec.ir, which TorchRec's wheel leaves out: take it from the repository ({error})"
    ) from error

from damo_torchrec.modules import EmbeddingBagCollection
from damo_torchrec.options import TableOptions
from damo_torchrec.store.embedding_store import EmbeddingStore


def register_serializer(
    store: EmbeddingStore | None = None,
    *,
    optimizer_type: type[torch.optim.Optimizer] = torchrec.optim.RowWiseAdagrad,
    optimizer_kwargs: Mapping[str, Any] | None = None,
    table_options: Mapping[str, TableOptions] | None = None,
) -> None:
    """Has ``torchrec.ir.serializer.JsonSerializer`` know `EmbeddingBagCollection`, from now on, also below a processor.

    What it writes has the tables' configs and ``is_weighted``, as of TorchRec's own; the arguments say the rest of the
    collections that it makes, as for `EmbeddingBagCollection`. Their rows are those of the store.

    Args:
        store: where the rows are; None for `default_store()`.
        optimizer_type: that the tables have.
        optimizer_kwargs: its hyperparameters.
        table_options: by table name; those of tables that a collection does not have are passed over.
    """

    class Serializer(EBCJsonSerializer):  # type: ignore[misc]  # no wheel, no types
        _module_cls = EmbeddingBagCollection

        @classmethod
        def swap_meta_forward(cls, module: nn.Module) -> None:
            assert isinstance(module, EmbeddingBagCollection)
            # By these names TorchRec's stand-in for a forward finds what the output is like.
            module._embedding_names, module._lengths_per_embedding = module.lookup_plan.names, module.lookup_plan.dims
            super().swap_meta_forward(module)

        @classmethod
        def deserialize_from_dict(
            cls,
            metadata_dict: dict[str, Any],
            device: torch.device | None = None,
            unflatten_ep: nn.Module | None = None,
        ) -> EmbeddingBagCollection:
            tables = [
                embedding_metadata_to_config(EmbeddingBagConfigMetadata(**table)) for table in metadata_dict["tables"]
            ]
            names = {config.name for config in tables}
            return EmbeddingBagCollection(
                tables,
                optimizer_type,
                optimizer_kwargs,
                metadata_dict["is_weighted"],
                device if device is not None else metadata_dict.get("device"),
                store=store,
                table_options={name: given for name, given in (table_options or {}).items() if name in names},
            )

    JsonSerializer.module_to_serializer_cls[qualname(EmbeddingBagCollection)] = Serializer
    JsonSerializer.module_to_serializer_cls[qualname(FeatureProcessedEmbeddingBagCollection)] = _OverProcessors


class _OverProcessors(FPEBCJsonSerializer):  # type: ignore[misc]  # no wheel, no types
    """TorchRec's, which asks for a collection of TorchRec's class, and takes ours, too."""

    @classmethod
    def deserialize_from_dict(
        cls, metadata_dict: dict[str, Any], device: torch.device | None = None, unflatten_ep: Any = None
    ) -> nn.Module:
        if not isinstance(unflatten_ep._embedding_bag_collection, EmbeddingBagCollection):
            made: nn.Module = super().deserialize_from_dict(metadata_dict, device, unflatten_ep)
            return made
        processors = unflatten_ep._feature_processors
        if not metadata_dict["is_fp_collection"]:
            processors = {feature: getattr(processors, feature) for feature in metadata_dict["features"]}
        collection: Any = unflatten_ep._embedding_bag_collection
        return FeatureProcessedEmbeddingBagCollection(collection, processors)
