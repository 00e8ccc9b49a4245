"""`fused_optimizer`: learning rates by table, for schedulers, TorchRec's wrappers and checkpoints."""

import pytest
import torch
import torchrec
from torch.optim.lr_scheduler import LambdaLR, StepLR
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.warmup import WarmupOptimizer, WarmupPolicy, WarmupStage

import damo_torchrec as damo
from support import config, kjt

FEATURES = {"t": [[1]], "u": [[1]]}


@pytest.fixture
def ebc(memory_store):
    return damo.EmbeddingBagCollection(
        [config("t", 4), config("u", 4)], torch.optim.SGD, {"lr": 0.5}, store=memory_store
    )


def moves(ebc):
    """How far a gradient of ones moves each table's row: its learning rate."""
    before = [table.get([1]) for table in ebc.tables()]
    for table in ebc.tables():
        table.set([1], torch.zeros(1, 4))
    ebc(kjt(FEATURES)).values().sum().backward()
    moved = [-float(table.get([1])[0, 0]) for table in ebc.tables()]
    for table, rows in zip(ebc.tables(), before, strict=True):
        table.set([1], rows)
    return moved


def test_there_is_one_parameter_group_for_each_table(ebc):
    optimizer = ebc.fused_optimizer
    assert isinstance(optimizer, KeyedOptimizer)
    assert list(optimizer.params) == ["embedding_bags.t.weight", "embedding_bags.u.weight"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    for group, parameter in zip(optimizer.param_groups, optimizer.params.values(), strict=True):
        assert group["params"][0] is parameter


def test_calling_it_returns_it_as_torchrecs_fused_modules_do(ebc):
    assert ebc.fused_optimizer() is ebc.fused_optimizer


def test_a_learning_rate_set_by_hand_holds_from_the_next_backward(ebc):
    output = ebc(kjt(FEATURES)).values()
    ebc.fused_optimizer.param_groups[1]["lr"] = 0.25
    start = [table.get([1]) for table in ebc.tables()]
    output.sum().backward()  # of a forward before the change
    assert not any(rows.any() for rows in start)
    assert moves(ebc) == [0.5, 0.25]


def test_a_learning_rate_may_be_a_tensor(ebc):
    ebc.fused_optimizer.param_groups[0]["lr"] = torch.tensor(0.125)
    assert moves(ebc) == [0.125, 0.5]


@pytest.mark.parametrize("lr", [-1.0, float("nan"), float("inf")])
def test_a_learning_rate_that_is_none_is_refused_and_nothing_changes(ebc, lr):
    output = ebc(kjt(FEATURES)).values()
    ebc.fused_optimizer.param_groups[0]["lr"] = lr
    with pytest.raises(ValueError, match=f"lr must be .* got {lr}"):
        output.sum().backward()
    assert [len(table) for table in ebc.tables()] == [0, 0]
    assert ebc.store.step == 0


def test_torchs_schedulers_act_on_it(ebc):
    optimizer = ebc.fused_optimizer
    scheduler = StepLR(optimizer, step_size=2, gamma=0.5)
    seen = []
    for _ in range(5):
        seen.append(moves(ebc)[0])
        optimizer.step()
        scheduler.step()
    assert seen == [0.5, 0.5, 0.25, 0.25, 0.125]


def test_a_scheduler_may_treat_tables_differently(ebc):
    LambdaLR(ebc.fused_optimizer, [lambda _: 1.0, lambda _: 0.5])
    assert moves(ebc) == [0.5, 0.25]


def test_torchrecs_warmup_acts_on_it(ebc):
    stages = [WarmupStage(policy=WarmupPolicy.LINEAR, max_iters=4, value=0.0)]
    warmup = WarmupOptimizer(ebc.fused_optimizer, stages, lr=1.0)
    seen = []
    for _ in range(5):
        warmup.zero_grad()
        seen.append(moves(ebc)[0])
        warmup.step()
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_step_and_zero_grad_leave_the_rows_alone(ebc):
    ebc(kjt(FEATURES)).values().sum().backward()
    rows = [table.get([1]) for table in ebc.tables()]
    ebc.fused_optimizer.zero_grad()
    ebc.fused_optimizer.step()
    assert all(torch.equal(table.get([1]), row) for table, row in zip(ebc.tables(), rows, strict=True))
    assert ebc.store.step == 1


def dense_optimizer(model):
    parameters = dict(in_backward_optimizer_filter(model.named_parameters()))
    return KeyedOptimizerWrapper(parameters, lambda p: torch.optim.SGD(p, lr=0.1))


def test_it_combines_with_a_dense_optimizer_as_torchrecs_does(ebc):
    model = torch.nn.ModuleDict({"ebc": ebc, "over": torch.nn.Linear(8, 1)})
    combined = CombinedOptimizer([ebc.fused_optimizer, ("dense", dense_optimizer(model))])
    assert len(combined.param_groups) == 3
    before = model["over"].weight.detach().clone()
    for _ in range(2):
        combined.zero_grad()
        model["over"](ebc(kjt(FEATURES)).values()).sum().backward()
        combined.step()
    assert not torch.equal(model["over"].weight, before)
    assert ebc.store.step == 2
    combined.load_state_dict(combined.state_dict())


def test_a_combined_optimizers_state_dict_carries_the_learning_rates_too(ebc):
    model = torch.nn.ModuleDict({"ebc": ebc, "over": torch.nn.Linear(8, 1)})
    combined = CombinedOptimizer([ebc.fused_optimizer, ("dense", dense_optimizer(model))])
    combined.save_param_groups(True)
    ebc.fused_optimizer.param_groups[1]["lr"] = 0.25
    saved = combined.state_dict()
    ebc.fused_optimizer.param_groups[1]["lr"] = 0.75
    combined.load_state_dict(saved)
    assert moves(ebc) == [0.5, 0.25]


def test_torchrecs_filter_finds_the_dense_parameters_alone(ebc):
    model = torch.nn.ModuleDict({"ebc": ebc, "over": torch.nn.Linear(8, 1)})
    dense = dict(in_backward_optimizer_filter(model.named_parameters()))
    assert sorted(dense) == ["over.bias", "over.weight"]
    assert list(in_backward_optimizer_filter(model.named_parameters(), include=True)) == []


def test_the_state_dict_brings_learning_rates_back(ebc, memory_store):
    scheduler = StepLR(ebc.fused_optimizer, step_size=1, gamma=0.5)
    ebc.fused_optimizer.param_groups[1]["lr"] = 0.25
    saved = ebc.fused_optimizer.state_dict()
    again = damo.EmbeddingBagCollection(
        [config("t", 4), config("u", 4)], torch.optim.SGD, {"lr": 9.0}, store=memory_store
    )
    again.fused_optimizer.load_state_dict(saved)
    assert moves(again) == [0.5, 0.25]
    later = StepLR(again.fused_optimizer, step_size=1, gamma=0.5)
    later.load_state_dict(scheduler.state_dict())
    again.fused_optimizer.step()
    later.step()
    assert moves(again) == [0.25, 0.125]


def test_the_state_dict_survives_torch_save(ebc, tmp_path):
    ebc.fused_optimizer.param_groups[0]["lr"] = 0.25
    torch.save(ebc.fused_optimizer.state_dict(), tmp_path / "optimizer.pt")
    ebc.fused_optimizer.param_groups[0]["lr"] = 0.75
    ebc.fused_optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert moves(ebc) == [0.25, 0.5]


def test_a_state_dict_of_other_tables_is_refused(ebc, memory_store):
    other = damo.EmbeddingBagCollection(
        [config("v", 4), config("w", 4)], torchrec.optim.SGD, {"lr": 0.1}, store=memory_store
    )
    with pytest.raises(ValueError, match=r"embedding_bags\.t\.weight"):
        ebc.fused_optimizer.load_state_dict(other.fused_optimizer.state_dict())


def test_parameter_groups_cannot_be_added(ebc):
    with pytest.raises(NotImplementedError):
        ebc.fused_optimizer.add_param_group({"params": [torch.zeros(1)]})


def test_a_scheduler_begins_with_the_learning_rate_of_the_moment(ebc):
    for group in ebc.fused_optimizer.param_groups:
        group["lr"] = 0.125
    LambdaLR(ebc.fused_optimizer, lambda epoch: 0.5**epoch)
    assert moves(ebc) == [0.125, 0.125]


@pytest.mark.parametrize("name", ["momentum", "weight_decay", "betas", "eps"])
def test_a_hyperparameter_that_has_no_effect_in_a_group_is_refused(ebc, name):
    ebc.fused_optimizer.param_groups[1][name] = 0.5
    with pytest.raises(ValueError, match=f"have a learning rate, lr, and no {name}"):
        moves(ebc)
    del ebc.fused_optimizer.param_groups[1][name]
    moves(ebc)
