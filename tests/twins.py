"""TorchRec's collection and ours over the same rows."""

import copy
from dataclasses import dataclass, replace

import torch
import torchrec
from torchrec import PoolingType

import damo_torchrec as damo
from support import config, copy_rows

ROWS = 20


LAYOUTS = {
    "one table": [config("t", 8, ["f"])],
    "mixed dims": [config("t1", 3, ["f"]), config("t2", 16, ["g"]), config("t3", 1, ["h"])],
    "several features of a table": [config("t1", 4, ["f", "g"]), config("t2", 8, ["h"])],
    "a feature of several tables": [config("t1", 4, ["f", "g"]), config("t2", 8, ["g"])],
    "a feature twice in a table": [config("t1", 4, ["f", "f"])],
    "mixed pooling": [
        config("t1", 4, ["f"], pooling=PoolingType.MEAN),
        config("t2", 5, ["g"]),
        config("t3", 6, ["f", "h"], pooling=PoolingType.MEAN),
    ],
}


@dataclass
class Twins:
    """TorchRec's collection, and ours over a store with the same rows, whose update adds the gradient to the rows."""

    theirs: torchrec.EmbeddingBagCollection
    ours: damo.EmbeddingBagCollection

    def gradients(self):
        """The gradient of each table, of TorchRec and as our rows moved by it."""
        for table in self.ours.tables():
            weight = self.theirs.embedding_bags[table.name].weight
            yield weight.detach() - table.get(range(len(weight))), weight.grad

    def assert_same(self, ours, theirs):
        assert ours.keys() == theirs.keys()
        assert ours.length_per_key() == theirs.length_per_key()
        torch.testing.assert_close(ours.values(), theirs.values())


def twins(tables, store, is_weighted=False):
    tables = [replace(table, num_embeddings=ROWS) for table in tables]
    theirs = torchrec.EmbeddingBagCollection(copy.deepcopy(tables), is_weighted)
    ours = damo.EmbeddingBagCollection(tables, torch.optim.SGD, {"lr": 1.0}, is_weighted, store=store)
    copy_rows(theirs, ours)
    return Twins(theirs, ours)


def features_of(tables):
    return sorted({feature for table in tables for feature in table.feature_names})
