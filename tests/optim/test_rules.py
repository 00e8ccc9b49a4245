"""Update rules against torch's and TorchRec's own optimizers, in float64.

Only the rows of a batch are updated, and Adam's bias correction goes by the table's iteration: optimizer_oracles.py has
torch's dense optimizers do the same. Rules that neither has are in optim/test_formulas.py.
"""

import pytest
import torch
import torchrec
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode

import damo_torchrec as damo
from damo_torchrec import _core
from damo_torchrec.optim.rules import RULES
from optimizer_oracles import compare
from support import config, random_kjt

RowWiseAdagrad = torchrec.optim.RowWiseAdagrad

# Whose rule each class has, and the keywords that it needs there to have the defaults of ours. TorchRec's classes have
# FBGEMM's defaults, and decoupled weight decay for Adam.
ORACLES = {
    torch.optim.SGD: (torch.optim.SGD, {}),
    torch.optim.Adagrad: (torch.optim.Adagrad, {}),
    torch.optim.Adam: (torch.optim.Adam, {}),
    torch.optim.AdamW: (torch.optim.AdamW, {}),
    torch.optim.SparseAdam: (torch.optim.SparseAdam, {}),
    torchrec.optim.SGD: (torch.optim.SGD, {"lr": 0.01}),
    torchrec.optim.Adagrad: (torch.optim.Adagrad, {"lr": 0.01, "eps": 1e-8}),
    torchrec.optim.RowWiseAdagrad: (RowWiseAdagrad, {"lr": 0.01, "eps": 1e-8}),
    torchrec.optim.Adam: (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.0}),
}
IN_FORMULAS = {
    *(
        torchrec.optim.LarsSGD,
        torchrec.optim.PartialRowWiseAdam,
        torchrec.optim.LAMB,
        torchrec.optim.PartialRowWiseLAMB,
    ),
    *(damo.optim.FTRL, damo.optim.Lion),
}

LR = {"lr": 0.05}
CASES = [
    (torch.optim.SGD, {**LR, "weight_decay": 0.1}),
    (torch.optim.SGD, {**LR, "weight_decay": 0.1, "maximize": True}),
    (torch.optim.SGD, {**LR, "momentum": 0.9}),
    (torch.optim.SGD, {**LR, "momentum": 0.7, "weight_decay": 0.1, "nesterov": True}),
    (torch.optim.Adagrad, LR),
    (torch.optim.Adagrad, {**LR, "maximize": True}),
    (torch.optim.Adagrad, {**LR, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3}),
    (torch.optim.Adam, LR),
    (torch.optim.Adam, {**LR, "betas": (0.7, 0.9), "weight_decay": 0.1, "eps": 1e-3}),
    (torch.optim.Adam, {**LR, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (torch.optim.Adam, {**LR, "weight_decay": 0.1, "amsgrad": True, "betas": (0.5, 0.6)}),
    (torch.optim.Adam, {**LR, "maximize": True}),
    (torch.optim.AdamW, {**LR, "weight_decay": 0.1}),
    (torch.optim.AdamW, {**LR, "weight_decay": 0.1, "amsgrad": True, "betas": (0.5, 0.6)}),
    (torch.optim.SparseAdam, LR),
    (torch.optim.SparseAdam, {**LR, "maximize": True}),
    (torch.optim.SparseAdam, {**LR, "betas": (0.7, 0.9), "eps": 0.1}),
    (torchrec.optim.SGD, {**LR, "weight_decay": 0.1}),
    (torchrec.optim.Adagrad, {**LR, "weight_decay": 0.1}),
    (torchrec.optim.RowWiseAdagrad, {**LR, "weight_decay": 0.1}),
    (torchrec.optim.RowWiseAdagrad, {**LR, "lr_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3}),
    (torchrec.optim.Adam, {**LR, "weight_decay": 0.1}),
]


def case_id(value):
    return value.__name__ if isinstance(value, type) else ",".join(f"{k}={v}" for k, v in value.items())


@pytest.mark.parametrize(("optimizer_type", "kwargs"), CASES, ids=case_id)
def test_equals_torchs_own_optimizer(any_store, optimizer_type, kwargs):
    oracle_type, more = ORACLES[optimizer_type]
    compare(any_store, optimizer_type, kwargs, oracle_type, {**more, **kwargs})


@pytest.mark.parametrize(
    "optimizer_type",
    [t for t in RULES if t not in IN_FORMULAS],
    ids=lambda t: f"{t.__module__.split('.')[0]}.{t.__name__}",
)
def test_every_class_equals_its_oracle_with_default_hyperparameters(any_store, optimizer_type):
    oracle_type, kwargs = ORACLES[optimizer_type]
    compare(any_store, optimizer_type, {}, oracle_type, kwargs)


@pytest.mark.parametrize("dim", [1, 3, 16, 17, 64])
@pytest.mark.parametrize("optimizer_type", [torch.optim.SGD, torch.optim.Adagrad, RowWiseAdagrad, torch.optim.Adam])
def test_equals_torchs_own_optimizer_at_any_dim(memory_store, optimizer_type, dim):
    kwargs = {**LR, "weight_decay": 0.1, **ORACLES[optimizer_type][1], "lr": 0.05}
    compare(memory_store, optimizer_type, {**LR, "weight_decay": 0.1}, ORACLES[optimizer_type][0], kwargs, dim)


@pytest.mark.parametrize("optimizer_type", [torchrec.optim.SGD, torchrec.optim.Adagrad, RowWiseAdagrad])
def test_decoupled_weight_decay_shrinks_the_weights_before_the_update_without_decay(any_store, optimizer_type):
    kwargs = {**LR, "weight_decay": 0.1, "weight_decay_mode": "decoupled"}
    oracle_type, more = ORACLES[optimizer_type]
    compare(any_store, optimizer_type, kwargs, oracle_type, {**more, **LR}, decoupled=0.1)


@pytest.mark.parametrize("mode", ["none", "l2", "decoupled", *list(WeightDecayMode)[:3]], ids=str)
def test_weight_decay_mode_is_taken_as_text_and_as_fbgemms_enum(memory_store, mode):
    kwargs = {**LR, "weight_decay": 0.1, "weight_decay_mode": mode}
    name = str(getattr(mode, "name", mode)).lower()
    l2, decoupled = {"none": (0.0, 0.0), "l2": (0.1, 0.0)}.get(name, (0.0, 0.1))
    oracle_kwargs = {**LR, "eps": 1e-8, "weight_decay": l2}
    compare(memory_store, RowWiseAdagrad, kwargs, RowWiseAdagrad, oracle_kwargs, decoupled=decoupled)


def test_fbgemms_names_for_hyperparameters_are_taken_for_torchrecs_classes(memory_store):
    kwargs = {"learning_rate": 0.05, "beta1": 0.7, "beta2": 0.9, "weight_decay": 0.1}
    oracle_kwargs = {"lr": 0.05, "betas": (0.7, 0.9), "weight_decay": 0.1}
    compare(memory_store, torchrec.optim.Adam, kwargs, torch.optim.AdamW, oracle_kwargs)


def test_rows_that_a_batch_does_not_name_keep_their_bytes(memory_store):
    ebc = damo.EmbeddingBagCollection(
        [config("t")], torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1}, store=memory_store
    )
    table = memory_store.table("t")
    table.set([1, 2], torch.ones(2, 8))
    ebc(random_kjt(torch.Generator().manual_seed(0), ["t"], batch=4, ids=1)).values().sum().backward()
    assert torch.equal(table.get([1, 2]), torch.ones(2, 8))


@pytest.mark.parametrize(
    ("optimizer_type", "kwargs", "named"),
    [
        (torch.optim.SGD, {"nesterov": True}, "nesterov needs a momentum"),
        (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.1, "nesterov": True}, "dampening=0, got 0.1"),
        (torch.optim.SGD, {"momentum": -0.9}, "momentum must be .* got -0.9"),
        (torch.optim.SGD, {"learning_rate": 0.1}, "learning_rate=0.1"),
        (torch.optim.SparseAdam, {"weight_decay": 0.1}, "weight_decay=0.1"),
        (torchrec.optim.SGD, {"momentum": 0.9}, "momentum=0.9"),
        (torchrec.optim.LAMB, {"weight_decay_mode": "l2"}, "weight_decay_mode='l2'"),
        (RowWiseAdagrad, {"max_norm": 1.0}, "max_norm=1.0"),
        (RowWiseAdagrad, {"gradient_clipping": True, "max_gradient": 0.0}, "clip_value must be positive, got 0"),
        (damo.optim.FTRL, {"lr": 0.0}, "lr: it must be positive"),
        (damo.optim.FTRL, {"lambda1": -1.0}, "lambda1 must be .* got -1"),
        (damo.optim.Lion, {"eps": 1.0}, "eps=1.0"),
        (torchrec.optim.Adam, {"lr": 0.1, "learning_rate": 0.1}, "either lr or learning_rate"),
        (RowWiseAdagrad, {"weight_decay_mode": "cowclip"}, "'cowclip'"),
        (RowWiseAdagrad, {"weight_decay_mode": WeightDecayMode.COUNTER}, "COUNTER"),
        (torch.optim.SGD, {"lr": -0.1}, "lr must be .* got -0.1"),
        (torch.optim.SGD, {"lr": float("nan")}, "lr must be .* got nan"),
        (torch.optim.SGD, {"weight_decay": -0.1}, "weight_decay must be .* got -0.1"),
        (torch.optim.Adagrad, {"lr_decay": -0.1}, "lr_decay must be .* got -0.1"),
        (torch.optim.Adagrad, {"initial_accumulator_value": float("inf")}, "initial_accumulator_value .* got inf"),
        (torch.optim.Adam, {"eps": -1.0}, "eps must be .* got -1"),
        (torch.optim.Adam, {"betas": (1.0, 0.9)}, "beta1 must be .* got 1"),
        (torch.optim.Adam, {"betas": (0.9, -0.1)}, "beta2 must be .* got -0.1"),
        (torch.optim.Adam, {"betas": (0.9,)}, "betas"),
        (torch.optim.Adam, {"betas": 0.9}, "betas"),
        (torch.optim.SGD, {"lr": "fast"}, "lr.*'fast'"),
        (torch.optim.RMSprop, {}, "torch.optim.*RMSprop"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_what_is_not_supported_is_refused_by_name(memory_store, optimizer_type, kwargs, named):
    with pytest.raises(ValueError, match=named):
        damo.EmbeddingBagCollection([config("t")], optimizer_type, kwargs, store=memory_store)
    assert memory_store.tables() == {}


def test_every_update_rule_of_the_engine_has_a_class():
    kinds = [kind for rule in RULES.values() for kind in (rule.kind, *rule.variants.values())]
    assert set(kinds) == set(_core.UPDATE_RULES)


def test_an_unknown_class_is_refused_with_the_list_of_the_known_ones(memory_store):
    with pytest.raises(ValueError, match="RMSprop") as refusal:
        damo.EmbeddingBagCollection([config("t")], torch.optim.RMSprop, store=memory_store)
    assert all(known.__name__ in str(refusal.value) for known in RULES)


@pytest.mark.parametrize("given", ["SGD", EmbOptimType.EXACT_SGD, torch.optim.SGD([torch.zeros(1)])], ids=repr)
def test_what_is_no_class_is_a_type_error(memory_store, given):
    with pytest.raises(TypeError, match="optimizer_type must be an optimizer class"):
        damo.EmbeddingBagCollection([config("t")], given, store=memory_store)


@pytest.mark.parametrize("optimizer_type", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad])
def test_torchs_own_defaults_may_be_given_and_how_torch_computes_does_not_matter(memory_store, optimizer_type):
    parameter = torch.zeros(1, requires_grad=True)
    kwargs = dict(optimizer_type([parameter]).defaults)
    damo.EmbeddingBagCollection([config("t")], optimizer_type, kwargs, store=memory_store)
    for how in ("foreach", "fused"):
        damo.EmbeddingBagCollection([config("t")], optimizer_type, {**kwargs, how: True}, store=memory_store)
