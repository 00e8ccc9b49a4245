"""Programs in Damo-Embedding's style: how they start, and which groups their modules have."""

import pytest
import torch
from torch import nn

import damo_torchrec as damo
from damo_torchrec import Embedding
from damo_torchrec.life import Life
from support import small_store

UNIFORM, ADAM = {"name": "uniform"}, {"name": "adam", "gamma": 0.01}
SGD = {"name": "sgd", "gamma": 1.0}


def three(**arguments):
    return nn.ModuleList([Embedding(4, **{"optimizer": SGD, **arguments}) for _ in range(3)])


def train(module, key=5):
    module(torch.tensor([[key]])).sum().backward()


def tables(store):
    return {name: len(table) for name, table in store.tables().items()}


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    "arguments",
    [
        ((UNIFORM, ADAM), {}),
        ((UNIFORM,), {"optimizer": ADAM}),
        ((UNIFORM, ADAM, 3), {}),
        ((), {"initializer": UNIFORM, "optimizer": ADAM, "group": 3}),
        ((3, UNIFORM, ADAM), {}),
        ((3,), {"initializer": UNIFORM, "optimizer": ADAM}),
        ((-1, damo.init.Uniform(-0.5, 0.5), (torch.optim.SGD, {"lr": 0.1})), {}),
        (({}, {}), {}),
        ((), {"initializer": {}, "optimizer": {}}),
    ],
    ids=str,
)
def test_arguments_come_in_the_orders_of_all_releases(arguments):
    args, kwargs = arguments
    embedding = Embedding(4, *args, **kwargs)
    assert embedding.group == (3 if 3 in args or kwargs.get("group") == 3 else None)
    given = [a for a in (*args, *kwargs.values()) if isinstance(a, dict | tuple) and a != UNIFORM]
    kinds = {str(ADAM): torch.optim.Adam, "{}": damo.Embedding(4).optimizer_type()}
    assert all(embedding.optimizer_type() is kinds.get(str(a), torch.optim.SGD) for a in given)


def test_arguments_that_are_there_twice_or_too_many_are_refused():
    with pytest.raises(TypeError, match="got group by its place and by its name"):
        Embedding(4, 1, group=2)
    with pytest.raises(TypeError, match="got optimizer by its place and by its name"):
        Embedding(4, UNIFORM, ADAM, optimizer=ADAM)
    with pytest.raises(TypeError, match="takes dim, initializer, optimizer, group by their place, got 5 arguments"):
        Embedding(4, UNIFORM, ADAM, 1, 2)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("{}",), {}),
        (("{}", 0), {}),
        ((0, "{}"), {}),
        ((0, "{}", ""), {}),
        ((), {"workdir": "{}", "ttl": 0}),
        ((), {"dir": "{}", "ttl": 0, "reload": ""}),
        ((), {"model_dir": "{}"}),
    ],
    ids=str,
)
def test_damo_embedding_init_takes_the_calls_of_all_releases(tmp_path, args, kwargs):
    def path(value):
        return value.format(tmp_path / "rows") if isinstance(value, str) else value

    model = three()
    given = {name: path(value) for name, value in kwargs.items()}
    with damo.damo_embedding_init(model, *map(path, args), **given) as store:
        assert store.path == tmp_path / "rows"
        assert [module.group for module in model] == [0, 1, 2]


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "what"),
    [
        ((), {}, ValueError, "needs workdir, the directory of the rows"),
        ((), {"workdir": "a", "dir": "b"}, ValueError, "workdir or dir, which are the same, got both"),
        ((), {"workdir": "a", "reload": "b", "model_dir": "c"}, ValueError, "from reload or model_dir, got both"),
        ((), {"workdir": 3}, TypeError, "workdir must be a path, got 3"),
        ((), {"workdir": "a", "ttl": "x"}, TypeError, "ttl must be a number of seconds, got 'x'"),
        ((), {"workdir": "a", "ttl": -1}, ValueError, "seconds must be positive, and at most a hundred years, got -1"),
        ((), {"workdir": "a", "filter": 3}, TypeError, "filter must be a dict of count, capacity and fpr, got 3"),
        ((), {"workdir": "a", "filter": {"count": 16}}, ValueError, r"count must be an int in 1\.\.15, got 16"),
        ((), {"workdir": "a", "wrkdir": "b"}, TypeError, "has no argument wrkdir"),
        (("a",), {"workdir": "b"}, TypeError, "got workdir by place and by name"),
        (("a", 1, 2), {}, TypeError, "takes model, workdir, ttl by their place, got 4"),
        ((), {"workdir": "a", "reload": "nothing"}, ValueError, "neither a checkpoint nor a store.* convert damo-dump"),
    ],
)
def test_calls_that_say_nothing_or_too_much_are_refused(tmp_path, monkeypatch, args, kwargs, error, what):
    monkeypatch.chdir(tmp_path)
    model = three()
    with pytest.raises(error, match=what):
        damo.damo_embedding_init(model, *args, **kwargs)
    assert not list(tmp_path.iterdir())
    assert [module.group for module in model] == [None] * 3


def test_what_has_no_effect_warns(tmp_path):
    with pytest.warns(UserWarning, match="has no effect") as told:
        damo.damo_embedding_init(three(), 0, str(tmp_path / "a"), "", 9275, run_service=False).close()
    assert [str(warning.message) for warning in told] == [
        "damo_embedding_init: port, run_service has no effect here",
    ]


def test_a_ttl_has_rows_go_and_a_filter_says_which_ids_get_one(tmp_path):
    model = three()
    with damo.damo_embedding_init(model, tmp_path / "a", 60, filter={"count": 2, "capacity": 9, "fpr": 0.1}) as store:
        table = store.table("group_0_dim_4")
        assert table.opened.life == Life(
            admit=damo.Admit(sightings=2, within_steps=None), expire=[damo.Idle(minutes=1)]
        )
        train(model[0], 5)
        assert len(table) == 0
        train(model[0], 5)
        assert len(table) == 1
        assert damo.damo_embedding_init(model, tmp_path / "a", 3600) is store
        assert table.opened.life.expire == [damo.Idle(hours=1)], "as where a cell is run again with another number"
    with damo.damo_embedding_init(three(), tmp_path / "a") as store:
        assert store.table("group_0_dim_4").opened.life.expire == [damo.Idle(hours=1)], "nothing is asked"
    with damo.damo_embedding_init(three(), tmp_path / "a", 0) as store:
        assert store.table("group_0_dim_4").opened.life.expire == []
    with (
        pytest.warns(UserWarning, match="filter 'count': path, reload has no effect here"),
        damo.damo_embedding_init(three(), tmp_path / "b", filter={"path": "x", "reload": True}) as store,
    ):
        assert store.table("group_0_dim_4").opened.life.admit.sightings == 15


@pytest.mark.parametrize("name", ["reload", "model_dir"])
@pytest.mark.parametrize("of", ["checkpoint", "store"])
def test_rows_begin_with_those_that_are_reloaded(tmp_path, name, of):
    model = nn.Sequential(*three(), nn.Linear(4, 1))
    with damo.damo_embedding_init(model, tmp_path / "a") as store:
        train(model[1])
        saved = damo.save_model(model, tmp_path / "saved")
        expected = store.table("group_1_dim_4").get([5])
        if of == "checkpoint":
            train(model[1])
    again = three()
    source = saved if of == "checkpoint" else tmp_path / "a"
    with damo.damo_embedding_init(again, workdir=tmp_path / "b", **{name: source}) as store:
        assert torch.equal(again[1](torch.tensor([5])).detach(), expected)
        assert tables(store) == {"group_0_dim_4": 0, "group_1_dim_4": 1, "group_2_dim_4": 0}


def test_a_model_dir_that_is_a_checkpoint_needs_a_place_for_the_rows(tmp_path):
    with damo.damo_embedding_init(three(), tmp_path / "a") as store:
        path = store.checkpoint(tmp_path / "saved")
    with pytest.raises(ValueError, match="is a checkpoint, to begin with: say with workdir"):
        damo.damo_embedding_init(three(), model_dir=path)


# ------------------------------------------------------------------ groups


def test_groups_are_places_where_none_is_given(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.user, self.item = Embedding(4, optimizer=SGD), Embedding(4, optimizer=SGD)
            self.tower = nn.ModuleDict({"city": Embedding(8, optimizer=SGD), "shared": self.user})

    for _ in range(2):  # the same in the next process
        net = Net()
        with damo.damo_embedding_init(net, tmp_path / "rows") as store:
            train(net.tower["city"])  # whatever is used first
            train(net.item)
            assert [m.group for m in (net.user, net.item, net.tower["city"])] == [0, 1, 2]
            assert tables(store) == {"group_0_dim_4": 0, "group_1_dim_4": 1, "group_2_dim_8": 1}


def test_given_groups_stay_and_count_as_places(tmp_path):
    model = nn.ModuleList([Embedding(4, group=0), Embedding(4), Embedding(4, group=9), Embedding(4)])
    with damo.damo_embedding_init(model, tmp_path / "rows"):
        assert [module.group for module in model] == [0, 1, 9, 3]


def test_a_place_that_is_given_to_another_is_refused(tmp_path):
    model = nn.ModuleList([Embedding(4), Embedding(4, group=0)])
    with pytest.raises(ValueError, match="group 0 is given to one Embedding, and is another's by its place"):
        damo.damo_embedding_init(model, tmp_path / "a")
    assert model[0].group is None
    model[0].number(5)
    with damo.damo_embedding_init(model, tmp_path / "b"):
        assert [module.group for module in model] == [5, 0]


def test_without_a_model_each_gets_the_next_group_of_its_store(tmp_path):
    for _ in range(2):  # the same in the next process
        with small_store(tmp_path / "rows") as store:
            model = [Embedding(4, optimizer=SGD, store=store) for _ in range(2)]
            model += [Embedding(4, 2, optimizer=SGD, store=store), Embedding(4, optimizer=SGD, store=store)]
            assert [module.group for module in model] == [0, 1, 2, 3]
            with pytest.raises(ValueError, match="group 1 is given to one Embedding, and is another's by its place"):
                Embedding(4, 1, optimizer=SGD, store=store)
            train(model[3])
            assert tables(store)["group_3_dim_4"] == 1
            model.pop(0)
            assert Embedding(4, optimizer=SGD, store=store).group == 4  # none is given out twice


def test_a_model_that_was_used_before_it_was_saved_keeps_its_groups(tmp_path):
    def net():
        return nn.ModuleDict({"w": Embedding(4, optimizer=SGD), "v": Embedding(4, optimizer=SGD)})

    with small_store(tmp_path / "a") as store:
        damo.set_default_store(store)
        model = net()
        train(model["v"], 7)  # which is used first here
        assert (model["v"].group, model["w"]._configs[0].name) == (0, "group_of_its_own_dim_4")
        damo.save_model(model, tmp_path / "saved")
        expected = model["v"](torch.tensor([7])).detach()
    with small_store(tmp_path / "b") as store:
        damo.set_default_store(store)
        for again in (net(), None):
            loaded = damo.load_model(tmp_path / "saved", again, allow_pickle=again is None)
            assert (loaded["v"].group, loaded["w"].group) == (0, 1)
            assert torch.equal(loaded["v"](torch.tensor([7])).detach(), expected)


def test_a_feature_that_is_added_gets_a_group_that_no_other_has(tmp_path):
    def net(*names):
        return nn.ModuleDict({name: Embedding(4, optimizer=SGD) for name in names})

    model = net("a", "b")
    with damo.damo_embedding_init(model, tmp_path / "rows") as store:
        train(model["b"])
        saved, expected = damo.save_model(model), model["b"](torch.tensor([5])).detach()
        more = net("a", "new", "b")
        damo.load_model(saved, more, strict=False)
        assert {name: module.group for name, module in more.items()} == {"a": 0, "new": 3, "b": 1}
        assert torch.equal(more["b"](torch.tensor([5])).detach(), expected)
        train(more["new"])
        assert tables(store) == {"group_0_dim_4": 0, "group_1_dim_4": 1, "group_3_dim_4": 1}


def test_two_optimizers_of_the_same_rows_are_refused(tmp_path):
    with small_store(tmp_path / "rows") as store:
        first = Embedding(4, 1, optimizer=SGD, store=store)
        Embedding(4, 1, optimizer=SGD, store=store)
        Embedding(8, 1, optimizer={"name": "sgd", "gamma": 0.1}, store=store)  # other rows
        with pytest.raises(ValueError, match=r"of group 1 and dim 4 .*one optimizer: lr is 1.0 in one and 0.1 in the"):
            Embedding(4, 1, optimizer={"name": "sgd", "gamma": 0.1}, store=store)
        del first
    model = nn.ModuleList([Embedding(4, 1, optimizer={"name": "adam", "gamma": rate}) for rate in (0.1, 0.2)])
    with pytest.raises(ValueError, match="over the same rows"):
        damo.damo_embedding_init(model, tmp_path / "other")


def test_learning_rates_set_before_the_start_hold(tmp_path):
    model = three()
    scheduler = torch.optim.lr_scheduler.LambdaLR(model[1].fused_optimizer, lambda step: 0.5)
    with damo.damo_embedding_init(model, tmp_path / "rows") as store:
        train(model[1])
        before = store.table("group_1_dim_4").get([5])
        train(model[1])
        torch.testing.assert_close(store.table("group_1_dim_4").get([5]), before - 0.5)
        state = model[1].fused_optimizer.state_dict()
        assert list(state["state"]) == ["embeddings.group_1_dim_4.weight"]
        model[1].fused_optimizer.load_state_dict(state)
    assert scheduler.get_last_lr() == [0.5]


def test_a_second_start_in_one_place_uses_the_store_that_is_open(tmp_path):
    model = three()
    with damo.damo_embedding_init(model, tmp_path / "rows") as store:
        train(model[2])
        saved = store.checkpoint(tmp_path / "saved")
        again = three()
        assert damo.damo_embedding_init(again, tmp_path / "rows") is store
        assert torch.equal(again[2](torch.tensor([5])), model[2](torch.tensor([5])))
        expected = again[2](torch.tensor([5])).detach()
        train(again[2])
        assert not torch.equal(model[2](torch.tensor([5])), expected)
        with pytest.raises(ValueError, match=r"has changes that no checkpoint has.* Save them first, or close\(\)"):
            damo.damo_embedding_init(three(), dir=tmp_path / "rows", reload=saved)
        assert not torch.equal(model[2](torch.tensor([5])), expected)
        store.checkpoint(tmp_path / "newer")
        for _ in range(2):
            assert damo.damo_embedding_init(three(), dir=tmp_path / "rows", reload=saved) is store
        assert torch.equal(model[2](torch.tensor([5])), expected)
        with pytest.raises(ValueError, match="over the same rows"):
            damo.damo_embedding_init(three(optimizer=ADAM), tmp_path / "rows")
        assert not store.closed


def test_a_module_that_is_used_already_is_refused_by_the_next_start(tmp_path):
    model = three()
    with small_store(tmp_path / "a") as store:
        damo.set_default_store(store)
        train(model[0])
        with pytest.raises(ValueError, match=r"of group 0 has its rows in .*a already"):
            damo.damo_embedding_init(model, tmp_path / "b")


def test_a_table_that_was_dropped_and_not_saved_is_not_brought_back_by_a_start(tmp_path):
    with damo.damo_embedding_init(three(), tmp_path / "rows") as store:
        Embedding(4, 7, optimizer=SGD, store=store)
        saved = store.checkpoint(tmp_path / "saved")
        store.drop_table("group_7_dim_4")
        with pytest.raises(ValueError, match="has changes that no checkpoint has"):
            damo.damo_embedding_init(three(), dir=tmp_path / "rows", reload=saved)


# ------------------------------------------------------------------ models that have changed
