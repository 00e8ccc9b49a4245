"""`swap`: which modules of a model it replaces, what they hold afterwards, and what it refuses."""

import inspect
import logging
import re
from functools import partial

import pytest
import torch
import torchrec
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_tower import EmbeddingTower, EmbeddingTowerCollection
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

import damo_torchrec as damo
from support import config, kjt, payloads, random_kjt, small_store

SGD = {"optimizer_type": torch.optim.SGD, "optimizer_kwargs": {"lr": 0.5}}
MANY = [random_kjt(torch.Generator().manual_seed(seed), ["a", "b"], 20, 100) for seed in range(3)]
FEATURES = {"a": [[1, 2], [3]], "b": [[4], []]}


def plain(*names):
    return torchrec.EmbeddingBagCollection([config(name) for name in names])


def fused(*names):
    return FusedEmbeddingBagCollection([config(name) for name in names], torch.optim.SGD, {"lr": 0.1})


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = plain("a")
        self.rest = nn.ModuleList([nn.Linear(1, 1), nn.ModuleDict({"second": fused("b")})])

    def forward(self, features):
        return torch.cat([self.first(features).values(), self.rest[1]["second"](features).values()], dim=1)


class OverEmbeddings(nn.Module):
    def forward(self, embeddings):
        return embeddings.values().sum(1, keepdim=True)


def modules_of(model, kind):
    return [module for module in model.modules() if type(module) is kind]


def test_plain_and_fused_collections_are_replaced_wherever_they_are(memory_store):
    model = Nested()
    assert damo.swap(model, store=memory_store, **SGD) is model
    assert type(model.first) is damo.EmbeddingBagCollection
    assert type(model.rest[1]["second"]) is damo.EmbeddingBagCollection
    assert modules_of(model, torchrec.EmbeddingBagCollection) == []
    assert modules_of(model, FusedEmbeddingBagCollection) == []
    assert sorted(memory_store.tables()) == ["a", "b"]
    model(kjt(FEATURES)).sum().backward()
    assert [len(memory_store.table(name)) for name in "ab"] == [3, 1]
    for collection in modules_of(model, damo.EmbeddingBagCollection):
        assert collection.store is memory_store
        assert collection.optimizer_type() is torch.optim.SGD
        assert collection.optimizer_kwargs() == {"lr": 0.5}


def test_copied_rows_give_the_same_outputs_for_all_ids(memory_store):
    model = Nested()
    features = random_kjt(torch.Generator().manual_seed(0), ["a", "b"], 50, 100)
    expected = model(features)
    damo.swap(model, store=memory_store, copy_weights=True, **SGD)
    torch.testing.assert_close(model(features), expected)
    assert [len(memory_store.table(name)) for name in "ab"] == [100, 100]


def test_tables_longer_than_a_call_takes_are_copied_whole(memory_store):
    model = torchrec.EmbeddingBagCollection([config("a", 1, num_embeddings=70_000)])
    weight = model.embedding_bags["a"].weight.detach()
    damo.swap(model, store=memory_store, copy_weights=True, **SGD)
    assert torch.equal(memory_store.table("a").get(range(70_000)), weight)


def test_without_copying_there_are_no_rows(memory_store):
    damo.swap(Nested(), store=memory_store, **SGD)
    assert [len(memory_store.table(name)) for name in "ab"] == [0, 0]


@pytest.mark.parametrize("collection", [plain, fused])
def test_a_dlrm_trains_after_the_swap(memory_store, collection):
    model = damo.swap(DLRM(collection("a", "b"), 3, [4, 8], [4, 1]), store=memory_store, **SGD)
    model(torch.ones(2, 3), kjt(FEATURES)).sum().backward()
    assert memory_store.step == 1
    assert not any("embedding" in name for name, _ in model.named_parameters())


def test_towers_run_and_train_after_the_swap(memory_store):
    weighted = torchrec.EmbeddingBagCollection([config("b")], is_weighted=True)
    towers = EmbeddingTowerCollection(
        [EmbeddingTower(plain("a"), OverEmbeddings()), EmbeddingTower(weighted, OverEmbeddings())]
    )
    features, weighted_features = kjt({"a": [[1], [2]]}), kjt({"b": [[1], [2]]}, weights=[0.5, 2.0])
    expected = towers(features, weighted_features)
    damo.swap(towers, store=memory_store, copy_weights=True, **SGD)
    output = towers(features, weighted_features)
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    assert memory_store.step == 1
    assert [module.is_weighted() for module in modules_of(towers, damo.EmbeddingBagCollection)] == [False, True]


def test_a_model_that_is_a_collection_is_returned_replaced(memory_store):
    swapped = damo.swap(plain("a"), store=memory_store, **SGD)
    assert type(swapped) is damo.EmbeddingBagCollection


def test_a_model_without_collections_is_refused(memory_store):
    with pytest.raises(ValueError, match="no embedding collection of TorchRec's to replace in Linear"):
        damo.swap(nn.Linear(1, 1), store=memory_store)


def test_a_collection_that_is_used_twice_is_replaced_by_one(memory_store):
    shared = plain("a")
    model = damo.swap(nn.ModuleDict({"x": shared, "y": nn.Sequential(shared)}), store=memory_store, **SGD)
    assert type(model["x"]) is damo.EmbeddingBagCollection
    assert model["y"][0] is model["x"]


class Special(torchrec.EmbeddingBagCollection):
    pass


def test_subclasses_are_refused_alone_and_warned_of_beside_others(memory_store, caplog):
    with pytest.raises(ValueError, match=r"does not replace \{'0': 'Special'\}"):
        damo.swap(nn.Sequential(Special([config("a")])), store=memory_store)
    model = damo.swap(nn.Sequential(Special([config("a")]), plain("b")), store=memory_store, **SGD)
    assert [type(module) for module in model] == [Special, damo.EmbeddingBagCollection]
    assert "does not replace {'0': 'Special'}" in caplog.text


def test_a_second_swap_changes_nothing(memory_store):
    model = damo.swap(Nested(), store=memory_store, **SGD)
    first = model.first
    assert damo.swap(model, store=memory_store, **SGD).first is first


def test_the_mode_and_the_configs_are_kept(memory_store):
    model = Nested()
    model.first.eval()
    configs = model.first.embedding_bag_configs()
    damo.swap(model, store=memory_store, **SGD)
    assert not model.first.training
    assert model.rest[1]["second"].training
    assert model.first.embedding_bag_configs() == configs
    assert model.first.embedding_bag_configs()[0] is not configs[0]


def test_table_options_reach_their_tables(memory_store):
    options = {"b": damo.TableOptions(initializer=damo.init.Constant(2.0))}
    model = damo.swap(Nested(), store=memory_store, table_options=options, **SGD)
    output = model(kjt(FEATURES))
    assert torch.equal(output[0, 8:], torch.full((8,), 2.0))


def test_what_was_replaced_is_logged(memory_store, caplog):
    caplog.set_level(logging.INFO, "damo_torchrec")
    damo.swap(Nested(), store=memory_store, **SGD)
    assert [record.getMessage().split(" -> ")[0] for record in caplog.records] == [
        "first: EmbeddingBagCollection",
        "rest.1.second: FusedEmbeddingBagCollection",
    ]


def trained_alike(model, store, arguments=MANY, **options):
    """Trains the model and its twin over the store; their outputs must stay equal."""
    twin = damo.swap(nn.Sequential(model), store=store, copy_weights=True, **options)[0]
    for batch in arguments:
        for one in (model, twin):
            one(batch).values().square().sum().backward()
        torch.testing.assert_close(twin(batch).values(), model(batch).values())
    return twin


@pytest.mark.parametrize(
    ("optimizer_type", "kwargs"),
    [
        (torch.optim.SGD, {"lr": 0.5}),
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"lr": 0.5, "momentum": 0.0}),
        (torch.optim.Adagrad, {"lr": 0.5, "eps": 0.1}),
        (torchrec.optim.RowWiseAdagrad, {"lr": 0.3}),
    ],
)
def test_the_optimizer_of_a_fused_collection_is_taken_over(memory_store, optimizer_type, kwargs):
    model = FusedEmbeddingBagCollection([config("a"), config("b")], optimizer_type, kwargs)
    twin = trained_alike(model, memory_store)
    assert twin.fused_optimizer.param_groups[0]["lr"] == kwargs.get("lr", pytest.approx(0.01))


def test_a_learning_rate_that_was_changed_since_is_taken_over(memory_store):
    model = fused("a", "b")
    model.fused_optimizer().param_groups[0]["lr"] = 0.7
    model(MANY[0])  # FBGEMM takes it there
    twin = damo.swap(model, store=memory_store)
    assert twin.fused_optimizer.param_groups[0]["lr"] == pytest.approx(0.7)


@pytest.mark.parametrize("optimizer_type", [torch.optim.SGD, torch.optim.Adagrad, torchrec.optim.RowWiseAdagrad])
def test_the_optimizer_that_was_applied_in_backward_is_taken_over(memory_store, optimizer_type):
    model = plain("a", "b")
    apply_optimizer_in_backward(optimizer_type, model.parameters(), {"lr": 0.5})
    trained_alike(model, memory_store)


def test_each_table_takes_over_its_own_optimizer_and_its_options_come_first(memory_store):
    model = plain("a", "b", "c")
    for name, optimizer_type in (("a", torch.optim.SGD), ("b", torch.optim.Adam)):
        apply_optimizer_in_backward(optimizer_type, [model.embedding_bags[name].weight], {"lr": 0.25})
    options = {"b": damo.TableOptions(optimizer=(torch.optim.SGD, {"lr": 2.0}), clip_grad_norm=1.0)}
    swapped = damo.swap(model, store=memory_store, table_options=options)
    assert [group["lr"] for group in swapped.fused_optimizer.param_groups] == [0.25, 2.0, 0.01]
    specs = {d.name: d.optimizer for d in swapped.table_definitions()}
    assert [specs[name].kind for name in "abc"] == ["SGD", "SGD", "ROWWISE_ADAGRAD"]
    assert specs["b"].clip_norm == 1.0


def test_adagrads_sums_come_along_with_weights(memory_store):
    model = plain("a", "b")
    apply_optimizer_in_backward(torch.optim.Adagrad, model.parameters(), {"lr": 0.5})
    for batch in MANY:
        model(batch).values().square().sum().backward()
    twin = damo.swap(nn.Sequential(model), store=memory_store, copy_weights=True)[0]
    for one in (model, twin):
        one(MANY[0]).values().square().sum().backward()
    torch.testing.assert_close(twin(MANY[0]).values(), model(MANY[0]).values())


def test_moments_that_are_left_behind_are_told(memory_store, caplog):
    model = plain("a", "b")
    apply_optimizer_in_backward(torch.optim.Adam, model.parameters(), {"lr": 0.5})
    model(MANY[0]).values().sum().backward()
    damo.swap(model, store=memory_store, copy_weights=True)
    assert "state of the tables a, b is left behind" in caplog.text


def test_hooks_that_are_not_taken_over_are_told(memory_store, caplog):
    model = nn.Sequential(plain("a"))
    model[0].register_forward_hook(lambda *_: None)
    damo.swap(model, store=memory_store, **SGD)
    assert "0 has hooks, which its replacement has not" in caplog.text


def test_weights_that_are_not_finite_are_refused_before_there_is_a_table(memory_store):
    model = nn.ModuleDict({"x": plain("a"), "y": plain("b")})
    with torch.no_grad():
        model["y"].embedding_bags["b"].weight[3, 1] = float("nan")
    assert_refused(model, memory_store, ValueError, "table 'b' of 'y' has weights that are not", copy_weights=True)
    assert memory_store.tables() == {}


def test_optimizers_that_cannot_be_taken_over_are_refused(memory_store):
    model = plain("a")
    apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.5})
    assert_refused(
        model,
        memory_store,
        ValueError,
        "has an optimizer of its own",
        optimizer_type=None,
        optimizer_kwargs={"lr": 1.0},
    )
    apply_optimizer_in_backward(torch.optim.Adam, model.parameters(), {"lr": 0.5})
    none = {"optimizer_type": None, "optimizer_kwargs": None}
    assert_refused(model, memory_store, ValueError, "table 'a' has 2 optimizers", **none)
    odd = FusedEmbeddingBagCollection([config("a")], torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
    assert_refused(odd, memory_store, ValueError, "give swap an optimizer_type: .*momentum=0.9", **none)
    model = plain("a")
    apply_optimizer_in_backward(torch.optim.RMSprop, model.parameters(), {"lr": 0.5})
    assert_refused(model, memory_store, ValueError, "no update rule for torch.optim.RMSprop", **none)


def test_tables_whose_weights_require_no_gradient_are_not_trained(memory_store):
    model = Nested()
    model.first.requires_grad_(False)
    damo.swap(model, store=memory_store, copy_weights=True, **SGD)
    before = payloads(memory_store, "a")
    model(kjt(FEATURES)).sum().backward()
    assert payloads(memory_store, "a") == before
    assert memory_store.table("b").iter == 1
    model.requires_grad_(True)
    model(kjt(FEATURES)).sum().backward()
    assert payloads(memory_store, "a") != before


def test_a_table_that_is_frozen_beside_others_stays_so_and_says_it(memory_store):
    tables = [config(name, 8) for name in ("t", "u")]
    ebc = torchrec.EmbeddingBagCollection(tables)
    ebc.embedding_bags["t"].weight.requires_grad_(False)
    ebc = damo.swap(ebc, store=memory_store, **SGD)
    ebc.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"rows of \['t'\] stay as they are"):
        ebc.requires_grad_(True)
    ebc(kjt({"t": [[1]], "u": [[1]]})).values().sum().backward()
    assert (memory_store.table("t").iter, memory_store.table("u").iter) == (0, 1)


def test_rows_that_are_there_are_not_replaced_by_copied_ones(memory_store, caplog):
    damo.swap(plain("a"), store=memory_store, copy_weights=True, **SGD)
    before = payloads(memory_store, "a")
    damo.swap(plain("a"), store=memory_store, copy_weights=True, **SGD)
    assert payloads(memory_store, "a") == before
    assert "has 100 rows: they stay" in caplog.text


def sequence(name):
    return torchrec.EmbeddingCollection([torchrec.EmbeddingConfig(100, 8, name=name, feature_names=[name])])


def test_tables_of_one_name_can_be_renamed_or_shared(tmp_path):
    for rename, tables in (
        ({"seq.a": "a_seq"}, ["a", "a_seq"]),
        ({"seq.a": "a"}, ["a"]),
        ({"seq.a": "item", "bag.a": "item"}, ["item"]),
    ):
        with damo.EmbeddingStore(tmp_path / "".join(rename.values()), memory_budget="64MiB") as store:
            model = nn.ModuleDict({"bag": plain("a"), "seq": sequence("a")})
            damo.swap(model, store=store, rename=rename, **SGD)
            assert sorted(store.tables()) == tables
            bag, steps = model["bag"](kjt({"a": [[1]]})), model["seq"](kjt({"a": [[1]]}))
            assert torch.equal(bag["a"], steps["a"].values()) == (len(tables) == 1)


def test_renaming_and_sharing_say_what_cannot_be(memory_store):
    model = nn.ModuleDict({"bag": plain("a"), "seq": sequence("a")})
    assert_refused(model, memory_store, ValueError, r"rename=\{'seq.a': ...\}")
    assert_refused(model, memory_store, ValueError, r"rename has \['seq.b'\]", rename={"seq.b": "c"})
    assert_refused(model, memory_store, TypeError, "names of tables, got 5", rename={"seq.a": 5})
    both = {"rename": {"seq.a": "a"}, "copy_weights": True}
    assert_refused(model, memory_store, ValueError, "share the table 'a'", **both)


@pytest.mark.parametrize(("device", "eps"), [("cpu", 1e-10), ("meta", 1e-8)])
def test_optimizers_on_the_meta_device_have_the_defaults_of_fbgemm_which_would_train_it(memory_store, device, eps):
    """As ``DistributedModelParallel`` has it: elsewhere TorchRec's own class updates the weight."""
    model = nn.Sequential(torchrec.EmbeddingBagCollection([config("a")], device=device))
    apply_optimizer_in_backward(torchrec.optim.RowWiseAdagrad, model.parameters(), {"lr": 0.3})
    (spec,) = damo.swap(model, store=memory_store)[0].fused_optimizer.specs().values()
    assert (spec.kind, spec.lr, spec.eps) == ("ROWWISE_ADAGRAD", 0.3, eps)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("optimizer_type", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam])
def test_keywords_that_change_nothing_are_passed_over_on_any_device(optimizer_type, device):
    parameters = inspect.signature(optimizer_type).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    only = {name: defaults[name] for name in ("lr", "eps") if name in defaults}
    specs = []
    for kwargs in (defaults, {**defaults, "foreach": False}, only):
        model = nn.Sequential(torchrec.EmbeddingBagCollection([config("a")], device=device))
        apply_optimizer_in_backward(optimizer_type, model.parameters(), kwargs)
        with small_store() as store:
            specs += damo.swap(model, store=store)[0].fused_optimizer.specs().values()
    assert specs[0] == specs[1] == specs[2]


def test_keywords_that_fbgemm_has_no_rule_for_are_refused_under_the_name_that_was_given(memory_store):
    for kwargs in ({"momentum": 0.9}, {"maximize": True}):
        model = nn.Sequential(torchrec.EmbeddingBagCollection([config("a")], device="meta"))
        apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1, **kwargs})
        said = f"torch.optim.SGD is trained here as FBGEMM has it, torchrec.optim.SGD: {next(iter(kwargs))}="
        with pytest.raises(ValueError, match=re.escape(said)):
            damo.swap(model, store=memory_store)


def test_models_on_the_meta_device_come_to_life(memory_store):
    model = nn.Sequential(torchrec.EmbeddingBagCollection([config("a"), config("b")], device="meta"))
    assert_refused(model, memory_store, ValueError, "on the meta device", copy_weights=True)
    damo.swap(model, store=memory_store, **SGD)
    model(kjt(FEATURES)).values().sum().backward()
    assert [len(memory_store.table(name)) for name in "ab"] == [3, 1]


def test_sharded_collections_are_refused(memory_store, gloo):
    model = nn.Sequential(torchrec.EmbeddingBagCollection([config("a")], device="meta"))
    sharded = DistributedModelParallel(model, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="has to come before DistributedModelParallel"):
        damo.swap(sharded, store=memory_store)


def assert_refused(model, store, error, match, **more):
    """The swap raises, and neither the model nor any row is another than before."""
    modules = dict(model.named_modules())
    rows = {name: payloads(store, name) for name in store.tables()}
    with pytest.raises(error, match=match):
        damo.swap(model, store=store, **{**SGD, **more})
    assert dict(model.named_modules()) == modules
    assert {name: payloads(store, name) for name in rows} == rows


def test_one_table_name_in_two_collections_is_refused_and_the_model_is_unchanged(memory_store):
    model = nn.ModuleDict({"x": plain("a", "b"), "y": nn.Sequential(fused("b"))})
    assert_refused(model, memory_store, ValueError, "table 'b' is in two collections, 'x' and 'y.0'")
    assert memory_store.tables() == {}


def test_unknown_names_in_table_options_are_refused(memory_store):
    options = {"c": damo.TableOptions()}
    assert_refused(Nested(), memory_store, ValueError, "not in the model: .*'c'", table_options=options)


def test_a_collection_that_cannot_be_replaced_leaves_the_model_unchanged(memory_store):
    odd = torchrec.EmbeddingBagCollection([config("b", init_fn=partial(nn.init.kaiming_uniform_, a=1.0))])
    model = nn.ModuleDict({"x": plain("a"), "y": odd})
    assert_refused(model, memory_store, ValueError, "table 'b': init_fn")
    assert_refused(Nested(), memory_store, ValueError, "eps", optimizer_kwargs={"eps": 0.9})


def test_a_table_that_the_store_has_with_another_schema_leaves_the_model_unchanged(memory_store):
    damo.EmbeddingBagCollection([config("b", 4)], store=memory_store)
    memory_store.table("b").set([1], torch.ones(1, 4))
    assert_refused(Nested(), memory_store, damo.SchemaMismatchError, "table 'b'.* has dim 4, got 8")
