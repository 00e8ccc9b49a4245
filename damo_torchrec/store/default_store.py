"""The store that modules use when they are given none."""

from pathlib import Path

from damo_torchrec.store.embedding_store import EmbeddingStore

_default: EmbeddingStore | None = None


def default_store() -> EmbeddingStore:
    """The store that modules use when they are given none: a temporary one until `set_default_store`."""
    global _default
    if _default is None or _default.closed:
        _default = EmbeddingStore()
    return _default


def default_store_at(path: Path) -> EmbeddingStore | None:
    """The default store, if it is open and in this directory."""
    opened = _default if _default is not None and not _default.closed else None
    return opened if opened is not None and opened.path == path else None


def set_default_store(store: EmbeddingStore) -> None:
    """Makes `store` the one that modules use when they are given none."""
    global _default
    if not isinstance(store, EmbeddingStore):
        raise TypeError(f"store must be an EmbeddingStore, got {type(store).__name__}")
    _default = store
