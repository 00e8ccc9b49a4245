"""Models that are traced: torch.compile, torch.export and torch.fx see the collection as one operator."""

import pytest
import torch
import torchrec
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.fx import symbolic_trace
from torchrec.models.dlrm import DLRM

import damo_torchrec as damo
from support import config, kjt, payloads, random_kjt

KEYS = ["a", "b"]


class Model(nn.Module):
    def __init__(self, store, is_weighted=False):
        super().__init__()
        torch.manual_seed(0)
        self.ebc = damo.EmbeddingBagCollection(
            [config("a", 4), config("b", 4)], torch.optim.SGD, {"lr": 0.5}, is_weighted, store=store
        )
        self.linear = nn.Linear(8, 1)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.linear(self.ebc(features).values()).squeeze(1)


def batches(n, weighted=False):
    generator = torch.Generator().manual_seed(4)
    for _ in range(n):
        yield random_kjt(generator, KEYS, 6, 20, weighted=weighted)


def train(model, forward, n=5):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for features in batches(n):
        optimizer.zero_grad()
        loss = forward(features).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def stores():
    options = damo.StoreOptions(backend="memory")
    with (
        damo.EmbeddingStore(options=options, memory_budget="64MiB") as first,
        damo.EmbeddingStore(options=options, memory_budget="64MiB") as second,
    ):
        yield first, second


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_trains_as_it_is_in_one_graph(stores, backend):
    plain, other = (Model(store) for store in stores)
    compiled = torch.compile(other, backend=backend, fullgraph=True)
    assert train(other, compiled) == train(plain, plain)
    for table in ("a", "b"):
        assert payloads(stores[0], table) == payloads(stores[1], table)


def test_a_model_traced_by_fx_trains_as_it_is(stores):
    plain, other = (Model(store) for store in stores)
    traced = torch.fx.symbolic_trace(other)
    assert train(other, traced) == train(plain, plain)
    assert payloads(stores[0], "a") == payloads(stores[1], "a")
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert torch.ops.damo_torchrec.embedding_bag_collection in targets


def test_sequences_traced_by_fx_train_as_they_are(stores):
    collections = []
    for store in stores:
        configs = [torchrec.EmbeddingConfig(name=key, embedding_dim=4, num_embeddings=9) for key in KEYS]
        collections.append(damo.EmbeddingCollection(configs, torch.optim.SGD, {"lr": 0.5}, store=store))
    plain, traced = collections[0], torch.fx.symbolic_trace(collections[1])
    for features in batches(5):
        outputs = [forward(features) for forward in (plain, traced)]
        for key in KEYS:
            assert torch.equal(outputs[0][key].values(), outputs[1][key].values())
            assert torch.equal(outputs[0][key].lengths(), outputs[1][key].lengths())
        for output in outputs:
            sum(value.values().square().sum() for value in output.values()).backward()
    assert payloads(stores[0], "a") == payloads(stores[1], "a")


def test_an_exported_model_answers_as_it_is(memory_store):
    model = Model(memory_store)
    train(model, model)
    model.eval()
    features = list(batches(2))
    program = torch.export.export(model, (features[0],), strict=False)
    nodes = [str(node.target) for node in program.graph.nodes]
    assert any("damo_torchrec.embedding_bag_collection" in node for node in nodes)
    assert torch.equal(program.module()(features[0]), model(features[0]))


def test_weights_get_their_gradient_through_the_operator(memory_store):
    ebc = damo.EmbeddingBagCollection(
        [config("a", 4), config("b", 4)], torch.optim.SGD, {"lr": 0.0}, True, store=memory_store
    )
    features = next(batches(1, weighted=True))
    grads = []
    for forward in (ebc, torch.fx.symbolic_trace(ebc)):
        weights = features.weights().clone().requires_grad_()
        given = KeyedJaggedTensor(KEYS, features.values(), weights, lengths=features.lengths())
        forward(given).values().square().sum().backward()
        grads.append(weights.grad)
    assert torch.equal(grads[0], grads[1])
    assert bool((grads[0] != 0).any())


def test_a_graph_outliving_its_model_says_so(memory_store):
    traced = torch.fx.symbolic_trace(Model(memory_store))
    import gc

    gc.collect()
    with pytest.raises(RuntimeError, match="trace the model again"):
        traced(next(batches(1)))


@pytest.mark.parametrize("how", ["to", "to_empty", "forward", "prefetch"])
@pytest.mark.parametrize("kind", ["pooled", "sequences", "ids"])
def test_what_was_made_on_the_meta_device_comes_to_life_over_its_store(memory_store, kind, how):
    made = {"optimizer_type": torch.optim.SGD, "optimizer_kwargs": {"lr": 1.0}, "device": "meta", "store": memory_store}
    if kind == "pooled":
        module, batch = damo.EmbeddingBagCollection([config("a", 4)], **made), kjt({"a": [[1, 2]]})
    elif kind == "sequences":
        table = torchrec.EmbeddingConfig(name="a", embedding_dim=4, num_embeddings=9, feature_names=["a"])
        module, batch = damo.EmbeddingCollection([table], **made), kjt({"a": [[1, 2]]})
    else:
        module, batch = damo.Embedding(4, device="meta", store=memory_store), torch.tensor([1, 2])
    model = torch.nn.Sequential(module).half()
    assert memory_store.tables() == {}
    assert model[0].device.type == "meta"
    if how == "to":
        model.to("cpu")
    elif how == "to_empty":
        model.to_empty(device="cpu")
    elif how == "prefetch":
        module.prefetch(batch) if kind != "ids" else module(batch)
    else:
        module(batch)
    assert module.device.type == "cpu"
    assert module.store is memory_store
    output = module(batch)
    output = output["a"].values() if kind == "sequences" else output.values() if kind == "pooled" else output
    output.sum().backward()
    (table,) = memory_store.tables().values()
    assert len(table) == 2


def test_what_cannot_come_to_life_stays_on_the_meta_device(memory_store):
    damo.EmbeddingBagCollection([config("a", 4)], torch.optim.SGD, {"lr": 1.0}, store=memory_store)
    module = damo.EmbeddingBagCollection([config("a", 8)], device="meta", store=memory_store)
    for _ in range(2):
        with pytest.raises(damo.SchemaMismatchError, match="has dim 4, got 8"):
            module(kjt({"a": [[1]]}))
        assert module.device.type == "meta"


def test_meta_has_shapes_and_no_store():
    ebc = damo.EmbeddingBagCollection([config("a", 4), config("b", 6)], device="meta")
    ec = damo.EmbeddingCollection(
        [torchrec.EmbeddingConfig(name="a", embedding_dim=4, num_embeddings=9)], device="meta"
    )
    features = next(batches(1)).to(torch.device("meta"))
    output = ebc(features)
    assert output.values().shape == (6, 10)
    assert output.values().device.type == "meta"
    assert output.keys() == ["a", "b"]
    assert ec(features)["a"].values().device.type == "meta"
    assert ebc.tables() == []
    with pytest.raises(ValueError, match="over no store"):
        _ = ebc.store


def test_a_model_can_be_traced_around_it(memory_store):
    ebc = damo.EmbeddingBagCollection([config("a"), config("b")], store=memory_store)
    model = DLRM(ebc, 3, [4, 8], [4, 1])
    inputs = torch.ones(2, 3), kjt({"a": [[1], [2]], "b": [[1], []]})
    traced = symbolic_trace(model, leaf_modules=["EmbeddingBagCollection"])
    assert torch.equal(traced(*inputs), model(*inputs))
    traced(*inputs).sum().backward()
    assert memory_store.step == 1


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's, on its way through TorchRec
def test_a_model_runs_under_torch_compile(memory_store):
    ebc = damo.EmbeddingBagCollection([config("a"), config("b")], store=memory_store)
    model = DLRM(ebc, 3, [4, 8], [4, 1])
    inputs = torch.ones(2, 3), kjt({"a": [[1], [2]], "b": [[1], []]})
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(*inputs), model(*inputs))
    compiled(*inputs).sum().backward()
    assert memory_store.step == 1
