"""`damo_torchrec.ir`, over stand-ins for ``torchrec.ir``, which its wheel leaves out: docs/torchrec.md has more."""

import importlib
import sys
from dataclasses import dataclass, fields
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torchrec import EmbeddingBagConfig
from torchrec.modules.feature_processor_ import PositionWeightedModule
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

import damo_torchrec as damo
from mixed_run import look_up, update
from support import config

SGD = (torch.optim.SGD, {"lr": 0.5})


@dataclass
class TableMetadata:
    name: str
    embedding_dim: int
    num_embeddings: int
    feature_names: list


class Serializer:
    module_to_serializer_cls: ClassVar = {}

    @classmethod
    def swap_meta_forward(cls, module):
        module.forward = lambda _: (module._embedding_names, module._lengths_per_embedding)

    @classmethod
    def deserialize_from_dict(cls, metadata_dict, device=None, unflatten_ep=None):
        return "TorchRec's"


@pytest.fixture
def ir(monkeypatch):
    def qualname(kind):
        return f"{kind.__module__}.{kind.__qualname__}"

    parts = {
        "schema": {"EmbeddingBagConfigMetadata": TableMetadata},
        "utils": {"qualname": qualname},
        "serializer": {
            **dict.fromkeys(("EBCJsonSerializer", "FPEBCJsonSerializer", "JsonSerializer"), Serializer),
            "embedding_metadata_to_config": lambda table: EmbeddingBagConfig(**vars(table)),
        },
    }
    monkeypatch.setitem(sys.modules, "torchrec.ir", ModuleType("torchrec.ir"))
    for name, values in parts.items():
        module = ModuleType(f"torchrec.ir.{name}")
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Serializer, "module_to_serializer_cls", {})
    monkeypatch.delitem(sys.modules, "damo_torchrec.ir", raising=False)
    yield importlib.import_module("damo_torchrec.ir")
    sys.modules.pop("damo_torchrec.ir")


def serializer_of(kind):
    return Serializer.module_to_serializer_cls[f"{kind.__module__}.{kind.__qualname__}"]


def test_without_torchrecs_ir_it_says_where_that_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrec.ir", None)
    with pytest.raises(ImportError, match="which TorchRec's wheel leaves out: take it from the repository"):
        importlib.import_module("damo_torchrec.ir")


def test_a_collection_is_made_anew_over_its_rows(ir, memory_store):
    ir.register_serializer(memory_store, optimizer_type=SGD[0], optimizer_kwargs=SGD[1])
    ebc = damo.EmbeddingBagCollection([config("t", 4, ["f", "g"])], *SGD, store=memory_store)
    update(ebc, {"f": [[1]], "g": [[2]]})
    tables = [{f.name: getattr(c, f.name) for f in fields(TableMetadata)} for c in ebc.embedding_bag_configs()]
    made = serializer_of(damo.EmbeddingBagCollection).deserialize_from_dict({"tables": tables, "is_weighted": False})
    assert torch.equal(look_up(made, {"f": [[1]], "g": [[2]]}), look_up(ebc, {"f": [[1]], "g": [[2]]}))
    serializer_of(damo.EmbeddingBagCollection).swap_meta_forward(made)
    assert made(None) == (["f", "g"], [4, 4])


def test_below_a_feature_processor_as_well(ir, memory_store):
    ir.register_serializer(memory_store)
    ebc = damo.EmbeddingBagCollection([config("t", 4, ["f"])], *SGD, is_weighted=True, store=memory_store)
    processors = SimpleNamespace(f=PositionWeightedModule(3))
    made = serializer_of(FeatureProcessedEmbeddingBagCollection).deserialize_from_dict(
        {"is_fp_collection": False, "features": ["f"]},
        unflatten_ep=SimpleNamespace(_embedding_bag_collection=ebc, _feature_processors=processors),
    )
    assert type(made) is FeatureProcessedEmbeddingBagCollection
    assert made._embedding_bag_collection is ebc
    theirs = SimpleNamespace(_embedding_bag_collection=None)
    assert serializer_of(type(made)).deserialize_from_dict({}, unflatten_ep=theirs) == "TorchRec's"
