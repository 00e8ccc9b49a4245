"""A program in the style of Damo-Embedding's documentation, from its start to the exported model, day after day."""

import pytest
import torch
from torch import nn

import damo_torchrec as damo
from damo_torchrec import Embedding, damo_embedding_init, load_model, save_model
from support import needs_onnxruntime

FIELDS = 5


class FactorizationMachine(nn.Module):
    def __init__(self, dim, **kwargs):
        super().__init__()
        initializer = {"name": "truncate_normal", "mean": 0.0, "stddev": float(kwargs.get("stddev", 0.0001))}
        optimizer = {"name": "adam", "gamma": float(kwargs.get("gamma", 0.001)), "lambda": 0.0, "epsilon": 1e-8}
        self.w = Embedding(1, initializer=initializer, optimizer=optimizer)
        self.v = Embedding(dim, initializer=initializer, optimizer=optimizer)
        self.deep = nn.Sequential(nn.Linear(FIELDS * dim, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, inputs):
        assert inputs.shape[1] == FIELDS
        w, v = self.w.forward(inputs), self.v.forward(inputs)
        pairs = 0.5 * (v.sum(1) ** 2 - (v * v).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(w.sum(1) + pairs + self.deep(torch.flatten(v, 1)))


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 40, (32, FIELDS), generator=generator)
    return ids, (ids.sum(1, keepdim=True) % 2).float()


def run(init, epochs):
    """Two epochs, each of which saves the model to one path. Returns the model and its losses."""
    torch.manual_seed(0)
    model = FactorizationMachine(4, gamma=0.05)
    init(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(epochs):
        for seed in range(4):
            ids, labels = batch(seed)
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy(model(ids), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        save_model(model, "train", True)
    return model, losses


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "init",
    [
        lambda model: damo_embedding_init(model, 0, "./embeddings"),
        lambda model: damo_embedding_init(model=model, workdir="./embeddings", ttl=0),
        lambda model: damo_embedding_init(model=model, ttl=0, dir="./embeddings", reload=""),
    ],
    ids=["1.1.12", "since 1.1.13", "by name"],
)
def test_a_program_trains_saves_and_goes_on(here, init):
    model, losses = run(init, 3)
    assert losses[-1] < losses[0]
    assert {n: len(t) > 0 for n, t in model.w.store.tables().items()} == {"group_0_dim_1": True, "group_1_dim_4": True}
    ids, _ = batch(0)
    expected = model.eval()(ids).detach()
    model.w.store.close()

    again = FactorizationMachine(4, gamma=0.05)
    init(again)
    torch.testing.assert_close(load_model("train", again).eval()(ids).detach(), expected, rtol=0, atol=0)
    assert damo.checkpoint_info("train").step == 12
    save_model(again, "train", True)  # the program of the next day, of the same store
    again.w.store.close()


def test_the_rows_of_a_saved_model_are_reloaded_elsewhere(here):
    model, _ = run(lambda model: damo_embedding_init(model, 0, "a"), 1)
    ids, _ = batch(0)
    expected = model.v(ids).detach()
    model.w.store.close()
    other = FactorizationMachine(4, gamma=0.05)
    with damo_embedding_init(other, ttl=0, dir="b", reload="train"):
        assert torch.equal(other.v(ids).detach(), expected)


@pytest.mark.slow
@needs_onnxruntime
def test_the_model_for_serving_is_exported_twice_to_one_path(here):
    model, _ = run(lambda model: damo_embedding_init(model, 0, "embeddings"), 1)
    ids, _ = batch(9)
    arguments = {
        "dummy_input": torch.randint(low=1, high=1000, size=(100, FIELDS), dtype=torch.int64),
        "input_names": ["input"],
        "output_names": ["output"],
        "dynamic_axes": {"input": {0: "batch_size"}, "output": {0: "batch_size"}},
    }
    for _ in range(2):
        file = save_model(model, "eval", False, **arguments)
    (output,) = damo.onnx.session(file).run(["output"], {"input": ids.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model.eval()(ids).detach(), rtol=1e-5, atol=1e-6)
    model.w.store.close()
