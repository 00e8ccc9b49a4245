"""Rows that are not trained: of a table, by its options, and of a whole collection, by ``requires_grad_``."""

import pytest
import torch
import torchrec
from torchrec import EmbeddingConfig, KeyedJaggedTensor

import damo_torchrec as damo
from mixed_run import collection, look_up, rows_of, update
from support import config, copy_rows, kjt, payloads, random_kjt

KEPT = {"given": damo.TableOptions(trainable=False)}
SGD = (torch.optim.SGD, {"lr": 0.5})


def pooled(store, **options):
    tables = [config("own", num_embeddings=20), config("given", num_embeddings=20), config("more", num_embeddings=20)]
    return damo.EmbeddingBagCollection(tables, *SGD, store=store, table_options=KEPT, **options)


def sequences(store):
    tables = [EmbeddingConfig(20, 8, name=name, feature_names=[name]) for name in ("given", "own")]
    return damo.EmbeddingCollection(
        tables=tables, optimizer_type=SGD[0], optimizer_kwargs=SGD[1], store=store, table_options=KEPT
    )


@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_table_that_is_not_trained_keeps_its_rows_and_the_others_go_on_as_torchs(memory_store, is_weighted):
    theirs = torchrec.EmbeddingBagCollection(
        [config(name, num_embeddings=20) for name in ("own", "given", "more")], is_weighted=is_weighted
    )
    theirs.embedding_bags["given"].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=0.5)
    ours = pooled(memory_store, is_weighted=is_weighted)
    copy_rows(theirs, ours)
    before = payloads(memory_store, "given")
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        batch = random_kjt(generator, ["given", "own", "more"], 7, 20, weighted=is_weighted)
        if is_weighted:
            batch.weights().requires_grad_()
        grads = []
        for model in (theirs, ours):
            output = model(batch).values()
            output.square().sum().backward()
            grads.append(batch.weights().grad.clone() if is_weighted else output)
            if is_weighted:
                batch.weights().grad = None
        torch.testing.assert_close(grads[1], grads[0])
        optimizer.step()
        optimizer.zero_grad()
    for name in ("own", "given", "more"):
        torch.testing.assert_close(memory_store.table(name).get(range(20)), theirs.embedding_bags[name].weight.detach())
    assert payloads(memory_store, "given") == before
    assert memory_store.table("given").iter == 0
    assert memory_store.table("own").iter == 3


def test_sequences_and_a_batch_size_for_each_feature_train_the_other_tables_alone(memory_store):
    ec = sequences(memory_store)
    memory_store.table("given").set([1], torch.ones(1, 8))
    memory_store.table("own").set([1, 2], torch.ones(2, 8))
    outputs = ec(kjt({"own": [[1, 2], [1]], "given": [[1], [9]]}))
    assert torch.equal(outputs["given"].values(), torch.tensor([[1.0], [0.0]]).expand(2, 8))
    (outputs["own"].values().sum() + 3 * outputs["given"].values().sum()).backward()
    assert torch.equal(memory_store.table("own").get([1, 2]), torch.tensor([[0.0], [0.5]]).expand(2, 8))
    assert payloads(memory_store, "given").keys() == {1}
    ebc = damo.EmbeddingBagCollection([config("given"), config("own")], *SGD, store=memory_store, table_options=KEPT)
    batch = KeyedJaggedTensor(
        keys=["own", "given"],
        values=torch.tensor([2, 1, 9]),
        lengths=torch.tensor([1, 1, 1]),
        stride_per_key_per_rank=[[1], [2]],
        inverse_indices=(["own", "given"], torch.tensor([[0, 0], [0, 1]])),
    )
    ebc(batch)["own"].sum().backward()
    assert torch.equal(memory_store.table("own").get([2]), torch.full((1, 8), -0.5))
    assert torch.equal(memory_store.table("given").get([1]), torch.ones(1, 8))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.9's Dynamo
def test_compiled_training_keeps_frozen_rows(memory_store):
    ebc = pooled(memory_store)
    memory_store.table("given").set([1], torch.ones(1, 8))
    step = torch.compile(lambda features: ebc(features).values().sum(), backend="eager")
    step(kjt({"given": [[1, 2]], "own": [[1]], "more": [[1]]})).backward()
    assert torch.equal(memory_store.table("given").get([1, 2]), torch.tensor([[1.0], [0.0]]).expand(2, 8))
    assert [len(memory_store.table(name)) for name in ("own", "more", "given")] == [1, 1, 1]
    ebc.requires_grad_(False)
    before = rows_of(memory_store)
    frozen = step(kjt({"given": [[1]], "own": [[1]], "more": [[5]]}))
    assert not frozen.requires_grad
    assert rows_of(memory_store) == before


def test_a_frozen_collection_reads_as_in_eval_mode_and_thaws(memory_store):
    ebc = collection(memory_store, "t", initial=1.0)
    update(ebc, {"t": [[1]]})
    before = rows_of(memory_store)
    assert ebc.requires_grad_(False) is ebc
    output = ebc(kjt({"t": [[1], [2]]})).values()
    assert not output.requires_grad
    assert torch.equal(output, look_up(ebc.eval(), {"t": [[1], [2]]}))
    assert rows_of(memory_store) == before
    ebc.train()
    assert torch.equal(look_up(ebc, {"t": [[2]]}), torch.zeros(1, 4))
    ebc.requires_grad_(True)
    update(ebc, {"t": [[1], [2]]})
    assert len(memory_store.table("t")) == 2


def test_a_frozen_part_lets_gradients_pass_to_the_rest_of_a_model(memory_store):
    ebc = collection(memory_store, "t", initial=1.0)
    memory_store.table("t").set([1], torch.ones(1, 4))
    model = torch.nn.Sequential(torch.nn.Linear(4, 1))
    ebc.requires_grad_(False)
    model(look_up(ebc, {"t": [[1]]})).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_a_table_that_another_collection_trains_is_updated_by_it_alone(memory_store):
    keeps = damo.EmbeddingBagCollection([config("given")], *SGD, store=memory_store, table_options=KEPT)
    trains = damo.EmbeddingBagCollection([config("given")], *SGD, store=memory_store)
    memory_store.table("given").set([1], torch.ones(1, 8))
    batch = kjt({"given": [[1]]})
    (keeps(batch).values() + trains(batch).values()).sum().backward()
    assert torch.equal(memory_store.table("given").get([1]), torch.full((1, 8), 0.5))


def test_trainable_is_true_or_false():
    with pytest.raises(TypeError, match="trainable must be True or False, got 0"):
        damo.TableOptions(trainable=0)
