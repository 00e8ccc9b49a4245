"""`damo_torchrec.store.continued_rows`: who is warned that rows of an earlier run are trained on, and who is not."""

import warnings
from pathlib import Path

import pytest
import torch
import torchrec

import damo_torchrec as damo
from mixed_run import collection
from support import config, kjt, small_store

BATCH = kjt({"t": [[1], [2, 3]]})


class Model(torch.nn.Module):
    """A table and a dense part."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.ebc = collection(store, "t", lr=0.1)
        self.dense = torch.nn.Linear(4, 1)

    def forward(self, batch: torchrec.KeyedJaggedTensor) -> torch.Tensor:
        return self.dense(self.ebc(batch).values()).sum()


def train(model: Model, steps: int) -> None:
    for _ in range(steps):
        model(BATCH).backward()


def first_run(path: Path) -> Path:
    """A program that trains, saves and closes. Returns the checkpoint with its model."""
    with small_store(path) as store:
        model = Model(store)
        model(BATCH).backward()
        saved = damo.save_model(model)
        model(BATCH).backward()
    return saved


@pytest.fixture
def trained(tmp_path) -> Path:
    """A store that `first_run` has left."""
    first_run(tmp_path / "store")
    return tmp_path / "store"


def test_a_program_that_is_run_twice_is_told_once_how_to_resume_and_how_to_begin_anew(trained):
    with small_store(trained) as store:
        model = Model(store)
        model(BATCH)
        with pytest.warns(damo.ContinuedRowsWarning) as told:
            train(model, steps=3)
    assert len(told) == 1
    text = str(told[0].message)
    assert str(trained) in text
    assert "damo_torchrec.load_model(" in text
    assert "fresh directory" in text
    assert "restore()" in text


def test_it_is_told_before_any_row_changes(trained):
    with small_store(trained) as store:
        model = Model(store)
        before = store.table("t").get([1, 2, 3])
        with warnings.catch_warnings():
            warnings.simplefilter("error", damo.ContinuedRowsWarning)
            with pytest.raises(damo.ContinuedRowsWarning):
                model(BATCH).backward()
        assert torch.equal(store.table("t").get([1, 2, 3]), before)


def test_each_session_is_told(trained):
    for _ in range(2):
        with small_store(trained) as store, pytest.warns(damo.ContinuedRowsWarning):
            Model(store)(BATCH).backward()


def resume(store: damo.EmbeddingStore, model: Model) -> None:
    damo.load_model(store.path, model)


def resume_where_the_rows_are(store: damo.EmbeddingStore, model: Model) -> None:
    damo.load_model(damo.save_model(model), model)


def restore(store: damo.EmbeddingStore, model: Model) -> None:
    store.restore()


def restore_by_a_manager(store: damo.EmbeddingStore, model: Model) -> None:
    manager = damo.CheckpointManager(store.path / "checkpoints", every_steps=1)
    store.restore()
    damo.save_model(model)
    assert manager.restore(model) is not None


def load_a_state_dict(store: damo.EmbeddingStore, model: Model) -> None:
    model.load_state_dict(model.state_dict())


def read_alone(store: damo.EmbeddingStore, model: Model) -> None:
    model.eval()
    for _ in range(2):
        model(BATCH).backward()
    model.train()


def set_and_delete_alone(store: damo.EmbeddingStore, model: Model) -> None:
    store.table("t").set([7], torch.ones(1, 4))
    store.table("t").delete([1])


@pytest.mark.parametrize(
    "prepare", [resume, resume_where_the_rows_are, restore, restore_by_a_manager, load_a_state_dict]
)
def test_a_program_that_says_which_rows_it_goes_on_from_is_not_told(trained, prepare):
    with small_store(trained) as store:
        model = Model(store)
        prepare(store, model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(BATCH).backward()


@pytest.mark.parametrize("use", [read_alone, set_and_delete_alone])
def test_a_program_that_trains_nothing_is_not_told(trained, use):
    with small_store(trained) as store:
        model = Model(store)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            use(store, model)


def test_a_store_that_is_opened_at_a_checkpoint_by_name_is_not_told(tmp_path):
    saved = first_run(tmp_path / "store")
    for path, which in ((tmp_path / "store", saved.name), (tmp_path / "store", 1), (tmp_path / "new", saved)):
        with damo.EmbeddingStore(path, memory_budget="64MiB", restore=which) as store:
            model = Model(store)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                model(BATCH).backward()


def test_a_first_run_is_not_told(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first_run(tmp_path / "store")


def test_a_run_after_a_crash_before_the_first_checkpoint_is_not_told(tmp_path):
    store = small_store(tmp_path / "store")
    Model(store)(BATCH).backward()
    store.session.give_up_rows()
    with small_store(tmp_path / "store") as again, warnings.catch_warnings():
        warnings.simplefilter("error")
        Model(again)(BATCH).backward()


def test_rows_that_were_set_and_never_trained_are_nobodys_old_run(tmp_path):
    with small_store(tmp_path / "store") as store:
        Model(store)
        store.table("t").set(range(100), torch.ones(100, 4))
    with small_store(tmp_path / "store") as again, warnings.catch_warnings():
        warnings.simplefilter("error")
        Model(again)(BATCH).backward()


def test_another_model_of_the_same_store_has_no_old_rows(trained):
    with small_store(trained) as store:
        other = damo.EmbeddingBagCollection(
            tables=[config("other", dim=4)], optimizer_type=torchrec.optim.SGD, store=store
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other(kjt({"other": [[1]]})).values().sum().backward()
        with pytest.warns(damo.ContinuedRowsWarning):
            Model(store)(BATCH).backward()


def test_it_can_be_ignored(trained):
    with small_store(trained) as store, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", damo.ContinuedRowsWarning)
        Model(store)(BATCH).backward()
