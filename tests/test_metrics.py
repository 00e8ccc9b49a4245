"""Figures of stores, where they are sent."""

import types
from html import escape

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.report.facts import facts_of
from damo_torchrec.report.page import page
from damo_torchrec.training.model_checkpoint import CheckpointInfo
from support import config, kjt, small_store

NAME = 't<"\\ö'


@pytest.fixture
def store():
    with small_store() as opened:
        ebc = damo.EmbeddingBagCollection([config(NAME, 4)], torch.optim.SGD, {"lr": 0.1}, store=opened)
        for _ in range(2):
            ebc(kjt({NAME: [[1, 2, 3], [3]]})).values().sum().backward()
        yield opened


def test_flat_figures_are_those_of_stats(store):
    stats = store.stats()
    flat = stats.flat()
    assert all(type(value) is float for value in flat.values())
    assert flat["memory_budget"] == 64 << 20
    assert "disk_budget" not in flat
    assert flat[f"tables/{NAME}/rows"] == 3
    assert flat[f"tables/{NAME}/training/hits"] == 4
    assert flat[f"tables/{NAME}/training/hit_rate"] == flat[f"tables/{NAME}/training/ready_rate"] == 0.5
    assert flat[f"tables/{NAME}/evaluation/misses"] == 0


def test_rows_that_are_on_their_way_are_not_ready():
    counted = damo.LookupStats(hits=5, prefetched=3, misses=2, late=1)
    assert (counted.ids, counted.hit_rate, counted.ready_rate) == (10, 0.5, 0.7)
    assert damo.LookupStats().ready_rate == 0


def test_prefetched_rows_are_ready():
    with small_store() as store:
        ebc = damo.EmbeddingBagCollection([config("t", 4)], torch.optim.SGD, {"lr": 0.1}, store=store)
        batch = kjt({"t": [[1, 2, 3]]})
        ebc.prefetch(batch)
        ebc(batch)
        counted = store.stats().tables["t"].training
    assert (counted.hits, counted.prefetched, counted.misses) == (0, 3, 0)
    assert 0 <= counted.late <= 3
    assert counted.ready_rate == 1 - counted.late / 3


def test_open_metrics_is_what_prometheus_reads(store):
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    families = {f.name: f for f in parser.text_string_to_metric_families(damo.open_metrics(store.stats()))}
    (rows,) = families["damo_rows"].samples
    assert (rows.labels, rows.value) == ({"table": NAME}, 3)
    assert families["damo_memory_budget"].samples[0].value == 64 << 20
    assert families["damo_training_hit_rate"].type == "gauge"


def test_it_sends_every_so_many_steps_to_a_function(store):
    sent = []
    metrics = damo.MetricsLogger(store, lambda figures, step: sent.append((figures, step)), every_steps=3)
    assert [metrics.update() for _ in range(7)] == [False, False, True, False, False, True, False]
    metrics.send()
    assert [step for _, step in sent] == [2, 2, 2]
    assert sent[0][0] == {f"damo/{name}": value for name, value in store.stats().flat().items()}


def test_it_sends_every_so_many_seconds(store, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("damo_torchrec.metrics.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    metrics = damo.MetricsLogger(store, lambda figures, step: None, every_seconds=10)
    due = []
    for now[0] in (105, 110, 111, 121):
        due.append(metrics.update())
    assert due == [False, True, False, True]


def test_tensorboard_and_mlflow_and_files(store, tmp_path):
    scalars, logged = {}, {}
    writer = types.SimpleNamespace(add_scalar=lambda name, value, step: scalars.update({name: (value, step)}))
    damo.MetricsLogger(store, writer).send()
    assert scalars[f"damo/tables/{NAME}/rows"] == (3, 2)
    mlflow = types.SimpleNamespace(log_metrics=lambda figures, step: logged.update(figures, step=step))
    damo.MetricsLogger(store, mlflow, prefix="").send()
    assert (logged["tables/t___ö/rows"], logged["step"]) == (3, 2)
    damo.MetricsLogger(store, tmp_path / "damo.prom").send()
    assert (tmp_path / "damo.prom").read_text() == damo.open_metrics(store.stats())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"to": 5}, TypeError),
        ({"to": print, "every_steps": 0}, ValueError),
        ({"to": print, "every_steps": True}, TypeError),
        ({"to": print, "every_steps": 1.5}, TypeError),
        ({"to": print, "every_seconds": True}, TypeError),
        ({"to": print, "every_seconds": "1"}, TypeError),
        ({"to": print, "every_seconds": float("nan")}, ValueError),
        ({"to": print, "every_seconds": -1.0}, ValueError),
        ({"to": print, "every_steps": 1, "every_seconds": 1}, ValueError),
    ],
)
def test_what_makes_no_sense_is_refused(store, arguments, error):
    with pytest.raises(error):
        damo.MetricsLogger(store, **arguments)


def test_notebooks_get_escaped_tables_without_scripts(store, tmp_path):
    info = CheckpointInfo(tmp_path, 1, 2, {"<b>": "<script>"}, {NAME: 3})
    table = store.table(NAME)
    for shown in (store, table, store.stats(), store.stats().tables[NAME], info):
        html = shown._repr_html_()
        assert html.startswith("<table>")
        assert "<script" not in html
        assert NAME not in html
    assert "t&lt;&quot;\\ö" in store._repr_html_()
    assert "<td>3</td>" in table._repr_html_()
    store.close()
    assert "closed" in store._repr_html_()
    assert table._repr_html_().startswith("<table>")


@pytest.mark.parametrize("name", ["\u202e drawkcab", "two\nlines", "\x1b[2J", "\u2066isolated"])
def test_notebooks_and_reports_escape_what_is_no_sign(name, tmp_path):
    with small_store(tmp_path / "store") as store:
        damo.EmbeddingBagCollection([config(name, 4)], torch.optim.SGD, {"lr": 0.1}, store=store)
        store.checkpoint()
        shown = [store, store.table(name), store.stats()]
        pages = [*(one._repr_html_() for one in shown), page(facts_of(store, lambda *_: None))]
    for html in pages:
        assert name not in html
        assert escape(repr(name)) in html
