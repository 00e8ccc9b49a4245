"""TorchRec's own model-parallel tests over gloo: its model, batches and comparison, our collections and sharders.

What they demand: after a step of each rank on its share, a model over ranks predicts what the whole model in one
process predicts after one on the whole batch. As predictions hardly tell an update of rows,
the rows are compared as well.
"""

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torchrec import EmbeddingBagConfig
from torchrec.modules.embedding_configs import PoolingType

import damo_torchrec as damo
import spread

# A module of TorchRec's that is not in its wheels: of which nothing is used here.
_sequences = ModuleType("torchrec.distributed.tests.test_sequence_model")
vars(_sequences).update(TestEmbeddingCollectionSharder=object)
sys.modules.setdefault("torchrec.distributed.tests", ModuleType("torchrec.distributed.tests"))
sys.modules.setdefault(_sequences.__name__, _sequences)

their_models = pytest.importorskip("torchrec.distributed.test_utils.test_model")
theirs = pytest.importorskip("torchrec.distributed.test_utils.test_sharding")
if not hasattr(theirs, "sharding_single_rank_test_single_process"):
    pytest.skip("this TorchRec's tests start processes of their own", allow_module_level=True)

_LR = 0.1  # of the whole model's optimizer there


def _tables(pooling: str) -> list[EmbeddingBagConfig]:
    """Those of TorchRec's tests: six, of which two have features of others."""
    return [
        EmbeddingBagConfig(
            name=f"table_{table}",
            num_embeddings=(i + 1) * 10,
            embedding_dim=(i + 2) * 8,
            feature_names=[f"feature_{i}"],
            pooling=PoolingType[pooling],
        )
        for table, i in enumerate([0, 1, 2, 3, 0, 1])
    ]


def _weighted_tables() -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(
            name=f"weighted_table_{i}",
            num_embeddings=(i + 1) * 10,
            embedding_dim=(i + 2) * 4,
            feature_names=[f"weighted_feature_{i}"],
        )
        for i in range(2)
    ]


_GROUPS = {
    "group_0": [
        "feature_0@table_0",
        "feature_1@table_1",
        "feature_2",
        "feature_3",
        "feature_0@table_4",
        "feature_1@table_5",
    ]
}


def _in_a_group(rank: int, size: int, model: str, more: Mapping[str, Any]) -> None:
    """TorchRec's comparison on this rank, in the group that there is."""
    options = dict(more)
    tables = _tables(options.pop("pooling", "SUM"))
    # Their batches whose size varies by feature come without weights, as their test has it.
    weighted = None if options.get("variable_batch_per_feature") else _weighted_tables()
    names = {config.name for config in [*tables, *(weighted or [])]}
    models: list[torch.nn.Module] = []

    def tables_of(whole: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        by_table = {name.removesuffix(".weight").rpartition(".")[2]: weights for name, weights in whole.items()}
        return {name: by_table[name].detach() for name in names & by_table.keys()}

    def own_rows(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.arange(len(weights))
        own = damo.distributed.rank_of(ids, size) == rank
        return ids[own], weights[own]

    with spread.new_store() as store:

        def made(**arguments: Any) -> torch.nn.Module:
            """The whole model, or, where its collections are on the meta device, the same over the store."""
            its_model = getattr(their_models, model)(**arguments)
            if arguments.get("sparse_device") == torch.device("meta"):
                damo.swap(its_model, store=store, optimizer_type=torch.optim.SGD, optimizer_kwargs={"lr": _LR})
            models.append(its_model)
            return its_model

        def copied(local: Mapping[str, Any], whole: Mapping[str, torch.Tensor], **rest: Any) -> None:
            """Their `copy_state_dict`, and of the tables the rows that are this rank's own."""
            for name, weights in tables_of(whole).items():
                store.table(name).set(*own_rows(weights))
            dense = {name: tensor for name, tensor in local.items() if not name.endswith("_extra_state")}
            assert dense
            copy_state_dict(dense, whole, **rest)

        copy_state_dict = theirs.copy_state_dict
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(theirs, "copy_state_dict", copied)
            theirs.sharding_single_rank_test_single_process(
                pg=dist.group.WORLD,
                device=torch.device("cpu"),
                rank=rank,
                world_size=size,
                local_size=size,
                model_class=made,
                embedding_groups=_GROUPS,
                tables=tables,
                weighted_tables=weighted,
                sharders=damo.distributed.sharders(),
                optim=None if options.get("allow_zero_batch_size") else theirs.EmbOptimType.EXACT_SGD,
                **options,
            )
        if not options.get("allow_zero_batch_size"):  # they train no whole model then
            for name, weights in tables_of(models[0].state_dict()).items():
                ids, expected = own_rows(weights)
                torch.testing.assert_close(store.table(name).get(ids), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"pooling": "MEAN"},
        {"variable_batch_size": True},
        {"variable_batch_per_feature": True},
        {"variable_batch_per_feature": True, "pooling": "MEAN"},
        {"variable_batch_per_feature": True, "global_constant_batch": True},
        {"allow_zero_batch_size": True},
        {"use_offsets": True},
        {"indices_dtype": torch.int32},
        {"indices_dtype": torch.int32, "offsets_dtype": torch.int32, "lengths_dtype": torch.int32, "use_offsets": True},
        {"lengths_dtype": torch.int32},
    ],
    ids=lambda more: "-".join(f"{key}={str(value).rpartition('.')[2]}" for key, value in more.items()) or "plain",
)
def test_a_step_over_ranks_predicts_what_it_does_in_one_process(ranks, more):
    ranks(_in_a_group, ranks.size, "TestSparseNN", more)


def test_pooled_and_sequences_in_one_model(ranks):
    ranks(_in_a_group, ranks.size, "TestMixedEmbeddingSparseArch", {})
