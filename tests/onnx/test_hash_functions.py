"""Ids are found in a graph, every int64, and those without rows read their initial values."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from serving_cases import SGD, Pooled, bags, feed, random_features, train

EXTREMES = [0, -1, 1, 2**63 - 1, -(2**63), 2**32, -(2**32), 2**53 + 1, 12345678901234567]


def test_every_int64_is_an_id(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = Pooled(store, weighted=False)
    table = store.table("thirdFalse")
    table.set(EXTREMES, torch.arange(8.0 * len(EXTREMES)).view(-1, 8))
    model.eval()
    damo.onnx.export(model, random_features("abc", 1), tmp_path / "model")
    session = damo.onnx.session(tmp_path / "model", operators=False)
    near = [i for extreme in EXTREMES for i in (extreme - 1, extreme + 1) if -(2**63) <= i < 2**63]
    ids = torch.tensor(EXTREMES + near)
    lengths = torch.cat([torch.ones(len(ids), dtype=torch.int64), torch.zeros(2 * len(ids), dtype=torch.int64)])
    features = KeyedJaggedTensor(keys=list("abc"), values=ids, lengths=lengths)
    (answer,) = session.run(None, feed(features=features))
    np.testing.assert_array_equal(answer, model(features).detach().numpy())
    np.testing.assert_array_equal(answer[: len(EXTREMES), -8:], table.get(EXTREMES).numpy())
    unseen = ~np.isin(ids.numpy(), EXTREMES)
    assert not answer[unseen].any()


def test_unseen_ids_read_their_initial_value_exactly(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    options = {
        "t_a": damo.TableOptions(unseen_in_eval="initial"),
        "t_b": damo.TableOptions(unseen_in_eval="initial", initializer=damo.init.Constant(0.25)),
        "t_c": damo.TableOptions(),
        "t_d": damo.TableOptions(unseen_in_eval="initial"),
    }
    model = nn.Sequential(
        damo.EmbeddingBagCollection(bags("abcd", [6, 6, 6, 6]), store=store, table_options=options, **SGD)
    )

    class Values(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
            return self.model(features).values()

    values = Values()
    train(values, (random_features("abcd", 8),))
    store.table("t_d").delete(store.table("t_d").to_torch()[0])  # nothing is in it
    damo.onnx.export(values, random_features("abcd", 1), tmp_path / "model")
    session = damo.onnx.session(tmp_path / "model", operators=False)
    ids = np.array([*EXTREMES, *range(-100, 100)])
    features = KeyedJaggedTensor(
        keys=list("abcd"),
        values=torch.from_numpy(np.tile(ids, 4)),
        lengths=torch.ones(4 * len(ids), dtype=torch.int64),
    )
    (answer,) = session.run(None, feed(features=features))
    np.testing.assert_array_equal(answer, values(features).detach().numpy())
    assert (answer[:, :6] != 0).all()
    assert (answer[:, 18:] != 0).all()
