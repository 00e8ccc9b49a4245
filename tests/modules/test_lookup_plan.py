"""What a collection looks up, as data."""

import pytest
from torchrec import EmbeddingConfig, PoolingType

import damo_torchrec as damo
from damo_torchrec.lookup_plan import LookupKind, LookupOutput
from support import config


def test_a_plan_has_an_output_for_each_table_and_feature(memory_store):
    tables = [config("t", 4, ["f", "g"]), config("u", 3, ["f"], pooling=PoolingType.MEAN)]
    options = {"u": damo.TableOptions(unseen_in_eval="initial")}
    ebc = damo.EmbeddingBagCollection(tables, is_weighted=True, store=memory_store, table_options=options)
    plan = ebc.lookup_plan
    assert (plan.kind, plan.weighted, plan.padding) == (LookupKind.POOLED, True, None)
    assert plan.outputs == (
        LookupOutput("f", "t", 4, mean=False, unseen="zeros"),
        LookupOutput("g", "t", 4, mean=False, unseen="zeros"),
        LookupOutput("f", "u", 3, mean=True, unseen="initial"),
    )
    assert plan.names == ["f@t", "g", "f@u"]
    assert plan.features == ebc.feature_names() == ["f", "g", "f"]
    assert (plan.dims, plan.columns(), plan.width) == ([4, 4, 3], [0, 4, 8], 11)
    assert plan.positions(["x", "g", "f"]) == [2, 1, 2]
    with pytest.raises(KeyError, match=r"no feature 'g' in the input, whose keys are \['f', 'x'\]"):
        plan.positions(("f", "x"))


def test_sequences_and_rows_are_not_pooled(memory_store):
    table = EmbeddingConfig(name="t", embedding_dim=4, num_embeddings=10, feature_names=["f"])
    plan = damo.EmbeddingCollection([table], store=memory_store).lookup_plan
    assert plan.kind is LookupKind.SEQUENCES
    assert plan.outputs == (LookupOutput("f", "t", 4, mean=False, unseen="zeros"),)
    plan = damo.Embedding(4, store=memory_store, padding_idx=3).lookup_plan
    assert (plan.kind, plan.padding, plan.width) == (LookupKind.ROWS, 3, 4)
