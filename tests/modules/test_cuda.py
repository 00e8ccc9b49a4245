"""Collections whose outputs are on a GPU: the same rows and outputs as on the CPU."""

import pytest
import torch
from torchrec import EmbeddingConfig, KeyedJaggedTensor

import damo_torchrec as damo
from support import config, payloads, random_kjt, small_store

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a CUDA build of torch")

KEYS = ["t_a", "t_b"]


def collection(store, device, **kwargs):
    return damo.EmbeddingBagCollection(
        [config("t_a"), config("t_b", dim=4)], torch.optim.Adagrad, {"lr": 0.1}, device=device, store=store, **kwargs
    )


def batches(n=5, weighted=False):
    generator = torch.Generator().manual_seed(3)
    return [random_kjt(generator, KEYS, 40, 60, weighted=weighted) for _ in range(n)]


def train(ebc, features, inputs):
    """Returns the outputs, on the CPU."""
    outputs = []
    for batch in features:
        values = ebc(batch.to(torch.device(inputs))).values()
        assert values.device.type == ebc.device.type
        # Powers of two: the gradient has the same bits on every device.
        (values * torch.tensor([0.5, -2.0, 1.0], device=values.device).repeat(4)).sum().backward()
        outputs.append(values.detach().cpu())
    return outputs


@pytest.mark.parametrize("inputs", ["cpu", "cuda"])
def test_outputs_and_rows_have_the_bits_of_the_cpu(inputs):
    with small_store() as on_cpu, small_store() as on_gpu:
        expected = train(collection(on_cpu, "cpu"), batches(), "cpu")
        found = train(collection(on_gpu, "cuda"), batches(), inputs)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
        for name in KEYS:
            assert payloads(on_gpu, name) == payloads(on_cpu, name)


@pytest.mark.parametrize("inputs", ["cpu", "cuda"])
def test_weights_get_their_gradient_where_they_are(inputs):
    grads = []
    for device, where in (("cpu", "cpu"), ("cuda", inputs)):
        with small_store() as store:
            ebc = collection(store, device, is_weighted=True)
            (features,) = batches(1, weighted=True)
            weights = features.weights().to(where).requires_grad_()
            moved = KeyedJaggedTensor(
                keys=KEYS, values=features.values().to(where), lengths=features.lengths().to(where), weights=weights
            )
            ebc(moved).values().sum().backward()
            assert weights.grad.device.type == where
            grads.append(weights.grad.cpu())
    assert torch.equal(*grads)


def test_sequences_and_their_updates_have_the_bits_of_the_cpu():
    found = []
    for device in ("cpu", "cuda"):
        with small_store() as store:
            ec = damo.EmbeddingCollection(
                [EmbeddingConfig(name=name, embedding_dim=8, num_embeddings=60) for name in KEYS],
                torch.optim.SGD,
                {"lr": 0.5},
                device=device,
                need_indices=True,
                store=store,
            )
            for features in batches():
                outputs = ec(features.to(torch.device(device)))
                sum(output.values().sum() for output in outputs.values()).backward()
            assert all(output.values().device.type == device for output in outputs.values())
            found.append(([output.values().detach().cpu() for output in outputs.values()], payloads(store, "t_a")))
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    assert found[0][1] == found[1][1]


def test_copies_wait_for_nobody_and_lose_nothing():
    """Outputs leave while the GPU is busy with an earlier batch, and the memory that they leave from is used again."""
    with small_store() as store:
        ebc = collection(store, "cuda").eval()
        (features,) = batches(1)
        table = store.table("t_a")
        table.set(torch.arange(60), torch.rand(60, 8))
        expected = ebc(features).values().cpu()
        busy = torch.rand(4096, 4096, device="cuda")
        found = []
        for _ in range(20):
            busy = busy @ busy / 4096
            found.append(ebc(features).values())
        assert all(torch.equal(values.cpu(), expected) for values in found)


def test_a_prefetched_batch_is_moved_by_the_loop():
    with small_store() as store:
        ebc = collection(store, "cuda")
        loader = damo.PrefetchIterator(batches(), ebc)
        assert len(train(ebc, loader, "cuda")) == 5


def test_a_compiled_model_has_its_outputs_on_the_gpu():
    with small_store() as store:
        ebc = collection(store, "cuda").eval()
        (features,) = batches(1)
        features = features.to(torch.device("cuda"))
        compiled = torch.compile(ebc, backend="eager", fullgraph=True)
        assert torch.equal(compiled(features).values(), ebc(features).values())


def test_a_batch_from_a_gpu_is_refused_by_a_collection_on_the_cpu(memory_store):
    ebc = collection(memory_store, "cpu")
    (features,) = batches(1)
    with pytest.raises(ValueError, match="must be on the cpu, got cuda"):
        ebc(features.to(torch.device("cuda")))
