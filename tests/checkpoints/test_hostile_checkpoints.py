"""A checkpoint of a stranger is opened, verified, repaired and loaded with the rows that it has, or refused by name.

Whatever is in its files, with checksums made anew: nothing else is raised, nothing hangs, and nothing outside is read.
CONTRIBUTING.md says how to have it try for hours.
"""

import contextlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import damo_torchrec as damo
from damo_torchrec.cli.main import main
from forging import body_of, forge_body, rehash
from mixed_run import SmallModel

EXAMPLES = os.environ.get("DAMO_FUZZ_EXAMPLES")
fuzz = settings(
    max_examples=int(EXAMPLES or 20),
    deadline=None,
    derandomize=EXAMPLES is None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
NUMBERS = [-1, 0, 1, 2, 3, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, 0.5, 1e308]
NAMES = [
    "",
    "t",
    "x" * 300,
    "../../x",
    "/etc/passwd",
    "a\0b",
    "a\ud800",
    "\x1b[2J\n",
    "rows",
    "rows/CURRENT",
    "float16",
]
ODD = st.sampled_from([*NUMBERS, *NAMES, True, None, [], {}, [[]], float("nan"), float("inf"), "0" * 32, "0" * 64])


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    """A checkpoint of `save_model`, with table files and a journal."""
    path = tmp_path_factory.mktemp("sample")
    with damo.EmbeddingStore(path / "store", memory_budget="64MiB", seed=3) as store:
        model = SmallModel(store)
        model.step()
        store.flush()
        model.step()
        return damo.save_model(model, path / "checkpoint", optimizer=model.optimizer)


@pytest.fixture(scope="module")
def rows(sample) -> torch.Tensor:
    return rows_in(sample)


def rows_in(path: Path) -> torch.Tensor:
    with damo.EmbeddingStore(path, memory_budget="64MiB", read_only=True) as store:
        return weights_of(SmallModel(store))


def weights_of(model: SmallModel) -> torch.Tensor:
    return model.ebc.tables()[0].get(torch.arange(20))


def places(node: object, path: tuple = ()) -> list[tuple]:
    """The paths of all values below `node`."""
    found = []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        found += [(*path, key), *places(value, (*path, key))]
    return found


def changed(draw: Callable, body: Any) -> None:
    """Removes, adds or replaces something in a document."""
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(body) or [()]))
        if not path:
            return
        parent = body
        for key in path[:-1]:
            parent = parent[key]
        change = draw(st.sampled_from(["replace", "replace", "remove", "add", "copy"]))
        if change == "replace":
            parent[path[-1]] = draw(ODD)
        elif change == "remove":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            value = parent[path[-1]] if change == "copy" else draw(ODD)
            parent[draw(st.sampled_from(NAMES))] = json.loads(json.dumps(value))


def nested(draw: Callable, value: Any, depth: int = 0) -> Any:
    """A value in `model.pt`, of which something is something else."""
    if depth > 0 and draw(st.integers(0, 7)) == 0:
        tensors = [torch.zeros(3), torch.zeros(1).expand(2**40), torch.zeros(2, device="meta"), torch.tensor(1 + 1j)]
        return draw(st.sampled_from([*NUMBERS, "x", None, True, {}, [], (), {1: 2}, float("nan"), *tensors]))
    if isinstance(value, dict) and value:
        key = draw(st.sampled_from(list(value)))
        return {**value, key: nested(draw, value[key], depth + 1)}
    if isinstance(value, list) and value:
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], nested(draw, value[index], depth + 1), *value[index + 1 :]]
    return draw(st.sampled_from([0, -1, 5000, 2**63 - 1, 1e308, "x", None, torch.zeros(5)])) if depth else value


def mutate_document(draw: Callable, checkpoint: Path) -> None:
    file = checkpoint / draw(st.sampled_from(["manifest.json", "manifest.json", "origin.json"]))
    body = body_of(file)
    changed(draw, body)
    forge_body(file, body)
    if file.name != "manifest.json":
        rehash(checkpoint, file.name)


def mutate_lineage(draw: Callable, checkpoint: Path) -> None:
    body = json.loads((checkpoint / "line.json").read_text())
    changed(draw, body)
    (checkpoint / "line.json").write_text(json.dumps(body))
    rehash(checkpoint, "line.json")


def mutate_dense(draw: Callable, checkpoint: Path) -> None:
    dense = torch.load(checkpoint / "model.pt", weights_only=True)
    torch.save(nested(draw, dense), checkpoint / "model.pt")
    rehash(checkpoint, "model.pt")


def mutate_bytes(draw: Callable, checkpoint: Path) -> None:
    """Of any file, whose SHA-256 is made anew or not."""
    file = draw(st.sampled_from(sorted(path for path in checkpoint.rglob("*") if path.is_file())))
    content = bytearray(file.read_bytes())
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(content)))
        content[begin : begin + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    file.write_bytes(content)
    if draw(st.booleans()) and file.name not in ("manifest.json", "module.pickle"):
        rehash(checkpoint, str(file.relative_to(checkpoint)))


def mutate_layout(draw: Callable, checkpoint: Path) -> None:
    """Puts something else in the place of a file, or beside the files."""
    names = sorted(path for path in checkpoint.rglob("*"))
    beside = [
        checkpoint / name for name in ("rows/000099.sst", "rows/000099.log", "rows/notes", "rows/MANIFEST-000099")
    ]
    file = draw(st.sampled_from([*names, *beside]))
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)
    what = draw(st.sampled_from(["nothing", "link", "loop", "fifo", "directory", "empty"]))
    if what == "link":
        file.symlink_to("/etc/hostname")
    elif what == "loop":
        file.symlink_to(file.name)
    elif what == "fifo":
        os.mkfifo(file)
    elif what == "directory":
        file.mkdir()
    elif what == "empty":
        file.write_bytes(b"")


MUTATIONS = [mutate_document, mutate_lineage, mutate_dense, mutate_bytes, mutate_layout]
REFUSALS = (damo.DamoError, ValueError)


def train_on(checkpoint: Path, scratch: Path) -> torch.Tensor:
    """The rows, of which a later checkpoint can be read as well."""
    with damo.EmbeddingStore(scratch / "store", memory_budget="64MiB", restore=checkpoint) as store:
        model = SmallModel(store)
        read = weights_of(model)
        model.step()
        after = weights_of(model)
    assert torch.equal(rows_in(scratch / "store"), after)
    return read


def load(checkpoint: Path, scratch: Path) -> torch.Tensor:
    with damo.EmbeddingStore(scratch / "other", memory_budget="64MiB", seed=3) as store:
        model = SmallModel(store)
        damo.load_model(checkpoint, model, optimizer=model.optimizer)
        return weights_of(model)


def repaired(checkpoint: Path, scratch: Path) -> None:
    if main(["repair", str(checkpoint), str(scratch / "repaired")]) == 0:
        rows_in(scratch / "repaired")


def told(checkpoint: Path, _: Path) -> None:
    assert str(damo.checkpoint_info(checkpoint))


def shown(checkpoint: Path, _: Path) -> None:
    assert {main(["info", str(checkpoint)]), main(["verify", str(checkpoint)])} <= {0, 1, 2}


OPERATIONS: list[Callable[[Path, Path], torch.Tensor | None]] = [
    lambda checkpoint, _: rows_in(checkpoint),
    train_on,
    load,
    repaired,
    told,
    shown,
]


@pytest.mark.parametrize("mutate", MUTATIONS)
@fuzz
@given(data=st.data())
def test_what_a_stranger_made_is_right_or_refused(sample, rows, tmp_path, mutate, data):
    scratch = tmp_path / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    checkpoint = scratch / "checkpoint"
    shutil.copytree(sample, checkpoint)
    mutate(data.draw, checkpoint)
    same_table = has_the_table(sample, checkpoint)
    operation = data.draw(st.sampled_from(OPERATIONS))
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            read = operation(checkpoint, scratch)
        except REFUSALS:
            return
    if read is not None and same_table:
        assert torch.equal(read, rows)


def has_the_table(sample: Path, checkpoint: Path) -> bool:
    """Whether a manifest speaks of the same rows, so that these can be expected, and draws new ones alike."""

    def tables(path: Path) -> Any:
        manifest = json.loads((path / "manifest.json").read_text())["manifest"]
        return manifest["seed"], [(name, table["schema"]) for name, table in manifest["tables"].items()]

    if not (checkpoint / "manifest.json").is_file():  # but a FIFO
        return False
    try:
        return tables(checkpoint) == tables(sample)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
