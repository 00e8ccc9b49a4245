"""Ids are found in a graph, every int64, and those without rows read their initial values."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from serving_cases import SGD, Pooled, bags, feed, random_features, train


class Values(nn.Module):
    def __init__(self, collection: damo.EmbeddingBagCollection) -> None:
        super().__init__()
        self.collection = collection

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.collection(features).values()


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


@pytest.mark.parametrize("other", ["initial", "zeros"])
def test_unseen_ids_read_means_and_initial_values_exactly(
    store: damo.EmbeddingStore, tmp_path: Path, other: Literal["initial", "zeros"]
) -> None:
    options = {
        "t_a": damo.TableOptions(unseen_in_eval="mean"),
        "t_b": damo.TableOptions(unseen_in_eval=other, initializer=damo.init.Constant(0.25)),
        "t_c": damo.TableOptions(unseen_in_eval="mean"),
        "t_d": damo.TableOptions(unseen_in_eval="mean"),
    }
    model = Values(damo.EmbeddingBagCollection(bags("abcd", [6, 6, 5, 6]), store=store, table_options=options, **SGD))
    train(model, (random_features("abcd", 8),))
    store.table("t_d").delete(store.table("t_d").to_torch()[0])  # nothing is in it
    damo.onnx.export(model, random_features("abcd", 1), tmp_path / "model", top_n={"t_a": 2})
    session = damo.onnx.session(tmp_path / "model", operators=False)
    ids = np.array([*EXTREMES, *range(1000, 1100)])
    features = KeyedJaggedTensor(
        keys=list("abcd"),
        values=torch.from_numpy(np.tile(ids, 4)),
        lengths=torch.ones(4 * len(ids), dtype=torch.int64),
    )
    (answer,) = session.run(None, feed(features=features))
    np.testing.assert_array_equal(answer, model(features).detach().numpy())
    for name, first in (("t_a", 0), ("t_c", 12)):
        mean = store.table(name).to_torch()[1].double().mean(dim=0).float()
        np.testing.assert_allclose(
            answer[:, first : first + len(mean)], np.tile(mean.numpy(), (len(ids), 1)), rtol=1e-6
        )
    assert (answer[:, 6:12] == (0.25 if other == "initial" else 0.0)).all()
    assert not answer[:, 17:].any()


def test_unseen_ids_read_their_initial_value_exactly(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    options = {
        "t_a": damo.TableOptions(unseen_in_eval="initial"),
        "t_b": damo.TableOptions(unseen_in_eval="initial", initializer=damo.init.Constant(0.25)),
        "t_c": damo.TableOptions(),
        "t_d": damo.TableOptions(unseen_in_eval="initial"),
    }
    values = Values(damo.EmbeddingBagCollection(bags("abcd", [6, 6, 6, 6]), store=store, table_options=options, **SGD))
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
