"""The store of collections that are given none."""

import importlib
from pathlib import Path

import pytest

import damo_torchrec as damo
from mixed_run import collection


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def no_default_store(monkeypatch):
    monkeypatch.setattr(importlib.import_module("damo_torchrec.store.default_store"), "_default", None)


@pytest.mark.usefixtures("no_default_store")
def test_collections_without_a_store_share_the_default_one(path):
    first, second = (collection(None, name) for name in "ab")
    temporary = damo.default_store()
    assert first.store is second.store is temporary
    assert temporary.path.name.startswith("damo_torchrec-")
    with damo.EmbeddingStore(path) as store:
        damo.set_default_store(store)
        assert damo.default_store() is store
        assert collection(None, "c").store is store
    assert damo.default_store() is not store, "a closed store serves nobody"
    damo.default_store().close()
    temporary.close()
    with pytest.raises(TypeError, match="must be an EmbeddingStore, got str"):
        damo.set_default_store("embeddings/")
