"""Any sequence of operations on a store does what it does to plain dicts: see store_model.py.

``HYPOTHESIS_PROFILE=long`` runs many more sequences, and other ones each time.
"""

import contextlib
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import damo_torchrec as damo
from mixed_run import INT64_MAX, INT64_MIN
from store_model import DIM, INITIAL, Gradient, GradientsModel, TableModel, Tables, copy_of
from support import A_HANDFUL_OF_ROWS, config, directory_in_memory, kjt, small_store

POOL = [INT64_MIN, INT64_MIN + 1, -(2**32), -2, -1, 0, 1, 2, 7, 2**31, 2**32 + 1, INT64_MAX - 1, INT64_MAX]
# A learning rate of a quarter keeps SGD exact with the integers that gradients and weights are here.
OPTIMIZERS = {"plain": (torch.optim.SGD, 0.25), "adaptive": (torch.optim.Adagrad, 0.5), "later": (torch.optim.SGD, 0.5)}
FEATURES = {"plain": ["plain", "again"], "adaptive": ["adaptive"], "later": ["later"]}
FIRST, SECOND = ["plain", "adaptive"], ["later"]
READS = ["forward", "no_grad", "prefetch", "get", "attach"]  # the last: by a second model over the same tables
PATTERN = torch.arange(DIM) % 5 - 2.0

id_lists = st.lists(st.sampled_from(POOL), max_size=6)
tables_of_first = st.sampled_from(FIRST)
small_integers = st.integers(-3, 3)
calls_per_update = st.sampled_from([1, 1, 2, 3])


def batches_of(names):
    """Bags by feature, 0 to 3 samples."""
    features = [feature for name in names for feature in FEATURES[name]]
    bags = st.lists(st.sampled_from(POOL), max_size=3)
    return st.integers(0, 3).flatmap(
        lambda n: st.fixed_dictionaries({f: st.lists(bags, min_size=n, max_size=n) for f in features})
    )


def open_collection(store, names):
    options = {
        name: damo.TableOptions(
            initializer=damo.init.Constant(INITIAL), optimizer=(OPTIMIZERS[name][0], {"lr": OPTIMIZERS[name][1]})
        )
        for name in names
    }
    tables = [config(name, DIM, FEATURES[name]) for name in names]
    return damo.EmbeddingBagCollection(tables, store=store, table_options=options)


def bags_by_table(names, batch):
    return {name: [bag for feature in FEATURES[name] for bag in batch[feature]] for name in names}


class StoreMachine(RuleBasedStateMachine):
    """A store with two collections of which one is opened later, and the model of both."""

    on_disk = True
    cache_bytes = 0

    @initialize(
        look_always=st.booleans(),
        on_nonfinite=st.sampled_from(["raise", "skip"]),
        calls=calls_per_update,
    )
    def begin(self, look_always, on_nonfinite, calls):
        self.look_always = look_always
        self.cleanup = contextlib.ExitStack()
        self.directory = self.cleanup.enter_context(directory_in_memory())
        self.model: Tables = {name: TableModel(*OPTIMIZERS[name]) for name in FIRST}
        self.saved: dict[Path, Tables] = {}
        self.order: list[Path] = []  # of checkpoints inside the store
        self.open(on_nonfinite, calls)

    def open(self, on_nonfinite, calls, **arguments):
        self.on_nonfinite, self.calls = on_nonfinite, calls
        options = {"on_nonfinite": self.on_nonfinite, "cache_bytes": self.cache_bytes, "num_threads": 2}
        options["keep_checkpoints"] = None  # any of them may be restored
        if not self.on_disk:
            self.store = small_store(**options)
        else:
            self.store = damo.EmbeddingStore(
                self.directory / "store", memory_budget="64MiB", options=damo.StoreOptions(**options), **arguments
            )
        self.collections = {"first": open_collection(self.store, FIRST)}
        self.waiting = GradientsModel()
        self.store.accumulate(calls)
        self.skipped = 0
        self.note_new_checkpoints()

    def note_new_checkpoints(self):
        for path in self.store.checkpoints() if self.on_disk else []:
            if path not in self.saved:
                self.saved[path] = copy_of(self.model)
                self.order.append(path)

    def teardown(self):
        if hasattr(self, "store"):
            with contextlib.suppress(damo.StoreClosedError):
                self.look()
            self.store.close()
            self.cleanup.close()

    # ------------------------------------------------------------------ what is there

    @invariant()
    def counts_are_the_models(self):
        assert self.store.step == max(table.iter for table in self.model.values())
        assert self.store.stats().skipped_backwards == self.skipped
        for name, table in self.store.tables().items():
            assert (len(table), table.iter) == (len(self.model[name].rows), self.model[name].iter), name

    @invariant()
    def rows_are_the_models(self):
        if self.look_always:
            self.look()

    def look(self):
        for name in self.store.tables():
            self.look_at(self.store, name)

    def look_at(self, store, name, batch_size=5):
        table, model = store.table(name), self.model[name]
        batches = list(table.items(batch_size=batch_size))
        assert [i for ids, _ in batches for i in ids.tolist()] == sorted(model.rows)
        weights = torch.cat([torch.empty(0, DIM), *(w for _, w in batches)])
        self.compare(name, weights, model.read(sorted(model.rows), 0.0))
        assert table.contains(POOL).tolist() == [i in model.rows for i in POOL]

    @staticmethod
    def compare(name, actual, expected):
        if OPTIMIZERS[name][0] is torch.optim.SGD:
            assert torch.equal(actual, expected), name
        else:
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)

    # ------------------------------------------------------------------ training and reading

    @rule(
        batch=batches_of(FIRST),
        values=st.tuples(small_integers, small_integers, small_integers),
        fault=st.sampled_from([None, None, None, float("nan"), float("-inf")]),
    )
    def train(self, batch, values, fault):
        self.train_collection("first", batch, values, fault)

    @precondition(lambda self: "second" in self.collections)
    @rule(batch=batches_of(SECOND), values=st.tuples(small_integers, small_integers, small_integers))
    def train_the_second(self, batch, values):
        self.train_collection("second", batch, values, None)

    def train_collection(self, which, batch, values, fault):
        ebc, names = self.collections[which], {"first": FIRST, "second": SECOND}[which]
        output = ebc.train()(kjt(batch)).to_dict()
        keys = {name: [k for k in ebc.lookup_plan.names if k in FEATURES[name]] for name in names}
        bags = bags_by_table(names, batch)
        gradients = {}
        for name, of_table in keys.items():
            self.compare(name, torch.cat([output[k] for k in of_table]), self.model[name].pool(bags[name], INITIAL))
            samples = len(bags[name]) // len(of_table)
            gradients |= {k: torch.tensor(values[:samples])[:, None] * PATTERN + i for i, k in enumerate(of_table)}
        if fault is not None:
            # In one element of one sample; if its bag is empty, it reaches no row.
            gradients[keys[names[-1]][0]][:1, 3] = fault
        expected = Gradient(bags, {name: torch.cat([gradients[k] for k in of]) for name, of in keys.items()})
        applied = self.waiting.backward(self.model, expected, self.calls)
        keyed = list(output)
        refused = not applied and self.on_nonfinite == "raise"
        with pytest.raises(damo.NonFiniteGradientError) if refused else contextlib.nullcontext():
            torch.autograd.backward([output[k] for k in keyed], [gradients[k] for k in keyed])
        self.skipped += not applied and not refused

    @rule()
    def apply_accumulated(self):
        some, applied = self.gradients_wait(), self.waiting.apply(self.model)
        refused = not applied and self.on_nonfinite == "raise"
        with pytest.raises(damo.NonFiniteGradientError) if refused else contextlib.nullcontext():
            assert self.store.apply_accumulated() == (some and applied)
        self.skipped += not applied and not refused

    @rule(batch=batches_of(FIRST), training=st.booleans(), how=st.sampled_from(READS))
    def read(self, batch, training, how):
        ebc = self.collections["first"]
        if how == "attach":
            ebc = open_collection(self.store, FIRST)
        ebc.train(training)
        if how == "prefetch":
            ebc.prefetch(kjt(batch))
        elif how == "get":
            ids = [i for bag in batch["again"] for i in bag]
            self.compare("plain", self.store.table("plain").get(ids), self.model["plain"].read(ids, 0.0))
        else:
            with torch.no_grad() if how == "no_grad" else contextlib.nullcontext():
                self.compare_forward(ebc, batch)

    def compare_forward(self, ebc, batch):
        output = ebc(kjt(batch)).to_dict()
        unseen = INITIAL if ebc.training else 0.0
        for name in FIRST:
            for feature in FEATURES[name]:
                self.compare(name, output[feature].detach(), self.model[name].pool(batch[feature], unseen))

    @rule(calls=calls_per_update)
    def accumulate(self, calls):
        if self.gradients_wait():
            with pytest.raises(ValueError, match="change accumulate in the middle"):
                self.store.accumulate(calls)
        else:
            self.store.accumulate(calls)
            self.calls = calls

    def gradients_wait(self):
        return bool(self.waiting.waiting)

    # ------------------------------------------------------------------ rows by id

    @rule(name=tables_of_first, ids=id_lists, values=st.lists(small_integers, min_size=6, max_size=6))
    def set(self, name, ids, values):
        weights = torch.tensor(values[: len(ids)])[:, None] * PATTERN + 0.5
        self.store.table(name).set(ids, weights)
        self.model[name].set(ids, weights)

    @rule(name=tables_of_first, ids=id_lists)
    def delete(self, name, ids):
        self.store.table(name).delete(ids)
        self.model[name].delete(ids)

    @precondition(lambda self: "second" not in self.collections)
    @rule()
    def open_a_second_table(self):
        self.model.setdefault("later", TableModel(*OPTIMIZERS["later"]))
        self.collections["second"] = open_collection(self.store, SECOND)

    # ------------------------------------------------------------------ on disk

    @rule()
    def flush(self):
        self.store.flush()

    @precondition(lambda self: self.on_disk)
    @rule(place=st.sampled_from(["default", "name", "elsewhere"]))
    def checkpoint(self, place):
        number = len(self.saved)
        inside = self.store.path / "checkpoints" / f"named-{number}"
        path = {"default": None, "name": inside, "elsewhere": self.directory / f"own-{number}"}[place]
        if self.gradients_wait():
            if path is not None or self.store.session.changed:
                with pytest.raises(ValueError, match="checkpoint in the middle"):
                    self.store.checkpoint(path)
            return
        made = self.store.checkpoint(path)
        assert path in (None, made)
        if made in self.saved:
            assert self.model_is(self.saved[made]), "a checkpoint of other rows was given out for this one"
        elif place == "elsewhere":
            self.saved[made] = copy_of(self.model)
        self.note_new_checkpoints()

    def model_is(self, tables):
        """But for tables that have neither rows nor updates."""
        return all(
            self.model[n].iter == tables[n].iter and self.model[n].rows == tables[n].rows
            for n in {*self.model, *tables}
            if n in tables or self.model[n].iter or self.model[n].rows
        )

    @precondition(lambda self: self.on_disk)
    @rule(data=st.data(), how=st.sampled_from(["latest", "step", "name", "path"]))
    def restore(self, data, how):
        which, path = self.choose(data, how)
        self.store.restore(which)
        self.go_to(path)
        self.waiting.waiting = []

    def choose(self, data, how):
        """What to say, and the checkpoint it means."""
        if how == "latest":
            return "latest", self.order[-1]
        if how == "path":
            path = data.draw(st.sampled_from(sorted(self.saved)))
            return path, path
        path = data.draw(st.sampled_from([p for p in self.order if how == "name" or p.name[5:].isdecimal()]))
        return (path.name, path) if how == "name" else (int(path.name[5:]), path)

    def go_to(self, path):
        empty = {name: TableModel(*OPTIMIZERS[name]) for name in self.store.tables()}
        self.model = empty | copy_of(self.saved[path])

    @precondition(lambda self: self.on_disk)
    @rule(
        data=st.data(),
        how=st.sampled_from([None, None, "step", "path"]),
        on_nonfinite=st.sampled_from(["raise", "skip"]),
        calls=calls_per_update,
    )
    def close_and_open(self, data, how, on_nonfinite, calls):
        self.store.close()
        for path in sorted((self.store.path / "checkpoints").iterdir(), key=lambda p: p in self.saved):
            if path not in self.saved:
                self.saved[path] = copy_of(self.model)
                self.order.append(path)
        which, path = self.choose(data, how or "latest")
        if how is None:
            assert self.model_is(self.saved[path]), "closing has lost what came after the last checkpoint"
        self.model = {name: TableModel(*OPTIMIZERS[name]) for name in FIRST} | copy_of(self.saved[path])
        self.open(on_nonfinite, calls, restore=which)
        self.look()

    @precondition(lambda self: self.on_disk)
    @rule(data=st.data(), batch=batches_of(FIRST))
    def read_a_checkpoint(self, data, batch):
        """Beside the open store: reading needs no lock."""
        path = data.draw(st.sampled_from(sorted(self.saved)))
        now, self.model = self.model, copy_of(self.saved[path])
        with damo.EmbeddingStore(path, read_only=True, memory_budget="64MiB") as store:
            ebc = open_collection(store, [name for name in FIRST if name in self.model])
            self.compare_forward(ebc.eval(), batch)
            for name in store.tables():
                self.look_at(store, name)
            with pytest.raises(ValueError, match="read-only"):
                store.table("plain").set([1], torch.zeros(1, DIM))
        self.model = now


class InMemory(StoreMachine):
    on_disk = False


class Evicting(StoreMachine):
    cache_bytes = A_HANDFUL_OF_ROWS


def cases_of(machine):
    machine.TestCase.settings = settings(stateful_step_count=50, max_examples=settings.default.max_examples // 2)
    return pytest.mark.slow(machine.TestCase)


TestOnDisk, TestOnDiskAllRowsEvicted, TestInMemory = map(cases_of, (StoreMachine, Evicting, InMemory))
