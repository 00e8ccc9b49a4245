"""`damo-torchrec report`: its page, as it is written and as a browser has it."""

import os
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser

import pytest
import torch

import damo_torchrec as damo
from support import config, kjt, small_store

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta"}


class Reader(HTMLParser):
    """Texts of cells, and whether every element that begins ends."""

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


@pytest.fixture
def page(trained_once, tmp_path, call):
    status, lines, err = call("report", trained_once, "-o", tmp_path / "report.html")
    assert (status, lines, err) == (0, [f"wrote {tmp_path / 'report.html'}"], "")
    return tmp_path / "report.html"


def test_it_has_the_figures_of_the_store(page, trained_once):
    reader = read(page.read_text())
    with damo.EmbeddingStore(trained_once, memory_budget="64MiB", read_only=True) as store:
        for name, table in store.tables().items():
            where = reader.cells.index(name)
            assert reader.cells[where + 1 : where + 3] == [str(len(table)), str(table.dim)]
            norms = table.to_torch()[1].double().norm(dim=1)
            where = reader.cells.index(name, where + 1)
            assert float(reader.cells[where + 3]) == pytest.approx(norms.max().item(), rel=1e-3)
        advice = store.advise()
    assert str(advice).split(";")[0] in page.read_text()
    assert "64MiB" in reader.cells
    assert "then" in reader.cells


def test_it_is_self_contained_and_runs_nothing(page):
    html = page.read_text()
    assert not {"script", "link", "img", "iframe"} & read(html).tags
    assert not re.search(r"https?:|url\(|@import", html)
    assert "prefers-color-scheme: dark" in html


def test_names_are_escaped_and_lives_are_told(tmp_path, call):
    name = "<script>alert(1)</script>"
    with small_store(tmp_path / "store") as store:
        options = {name: damo.TableOptions(max_rows=2)}
        ebc = damo.EmbeddingBagCollection(
            [config(name, 4)], torch.optim.SGD, {"lr": 0.1}, store=store, table_options=options
        )
        for first in (0, 5):
            ebc(kjt({name: [[first, first + 1]]})).values().sum().backward()
            store.checkpoint()
        status, _, err = call("report", store.path, "-o", tmp_path / "report.html")
        assert (status, "newest checkpoint" in err) == (0, True)
    html = (tmp_path / "report.html").read_text()
    assert "<script" not in html
    assert name in read(html).cells
    assert "is open" in html
    assert "There is no profile of the cache" in html
    assert "1</b>table<" in html
    assert "<h1>store</h1>" in html
    assert "beyond max_rows" in html


def test_what_cannot_be_the_page_is_wrong_usage(trained_once, tmp_path, call):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "none" / "page.html"):
        status, lines, err = call("report", trained_once, "-o", path)
        assert (status, lines, f"cannot write {path}" in err) == (2, [], True), err
    assert [entry.name for entry in tmp_path.iterdir()] == ["fifo"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in")
def test_a_browser_shows_its_numbers(page):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]
    # Of a short name: Chromium makes a socket in TMPDIR, and pytest's own directories may be too long for that.
    with tempfile.TemporaryDirectory(prefix="chromium-", dir="/tmp", ignore_cleanup_errors=True) as short:
        command += [f"--user-data-dir={short}/profile", "--dump-dom", page.as_uri()]
        environment = {**os.environ, "TMPDIR": short}
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert shown.returncode == 0, shown.stderr
    expected = read(page.read_text()).cells
    found = re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", shown.stdout)
    assert found == expected
    assert len(expected) > 40
