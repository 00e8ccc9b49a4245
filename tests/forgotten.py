"""Whether bytes of a row are in files, and a store of which a few days have gone by, with what servers begin from."""

from collections.abc import Iterable
from pathlib import Path

import torchrec
from torchrec import EmbeddingBagConfig

import damo_torchrec as damo
from support import kjt

DIM = 16
PERSON = [405, -3, -(2**63)]
OTHERS = [1, 2, 3, 2**63 - 1]


def collection(store: damo.EmbeddingStore, name: str = "t") -> damo.EmbeddingBagCollection:
    config = EmbeddingBagConfig(name=name, embedding_dim=DIM, num_embeddings=1000, feature_names=["u"])
    return damo.EmbeddingBagCollection([config], torchrec.optim.Adam, {"lr": 0.1}, store=store)


def train(ebc: damo.EmbeddingBagCollection, ids: Iterable[int]) -> None:
    (ebc(kjt({"u": [[i] for i in ids]})).values() ** 2).sum().backward()


class Traces:
    """Bytes of rows as they were at some moments: weights and state.

    Attributes:
        pieces: some of them, of 16 bytes each, as a log may divide a row between two records.
    """

    def __init__(self) -> None:
        self.pieces: set[bytes] = set()

    def note(self, table: damo.Table, ids: Iterable[int]) -> None:
        ids = list(ids)
        numbers = [table.get(ids), *(state.reshape(len(ids), -1) for state in table.get_state(ids).values())]
        for part in numbers:
            for row in part:
                content = row.numpy().astype("<f4").tobytes()
                pieces = [content[at : at + 16] for at in (0, 32, len(content) - 16)]
                self.pieces |= {piece for piece in pieces if len(set(piece)) > 4}

    def files(self, *directories: Path) -> list[str]:
        """Names of the files, in these directories and below, that have some of it."""
        assert self.pieces, "there is nothing to look for"
        files = [file for directory in directories for file in sorted(directory.rglob("*")) if file.is_file()]
        contents = ((file, file.read_bytes()) for file in files)
        return [str(file) for file, content in contents if any(piece in content for piece in self.pieces)]


def days(path: Path, traces: Traces, **options: object) -> damo.EmbeddingStore:
    """An open store that has checkpoints with and without journals, and rows that were overwritten and deleted."""
    ids = [*range(1000), *PERSON, *OTHERS]
    with damo.EmbeddingStore(path, memory_budget="64MiB", options=damo.StoreOptions(**options)) as store:
        ebc = collection(store)
        train(ebc, ids)
        traces.note(ebc.tables()[0], PERSON)
    store = damo.EmbeddingStore(path, memory_budget="64MiB", options=damo.StoreOptions(**options))
    ebc = collection(store)
    table = ebc.tables()[0]
    for batch in (ids, PERSON[:2], OTHERS, PERSON):
        train(ebc, batch)
        traces.note(table, PERSON)
        store.checkpoint()  # with a journal
    table.delete(PERSON[:1])  # as one who thinks that this is enough
    store.checkpoint()
    store.flush()
    store.checkpoint(path / "checkpoints" / "mine")
    train(ebc, PERSON)
    traces.note(table, PERSON)
    return store
