"""Which torch, TorchRec and FBGEMM fit each other: what pages and workflows name, and what is said of others."""

import re
from pathlib import Path

import pytest
import torch

from damo_torchrec import versions
from damo_torchrec.torch_at_use import torch as torch_at_use
from damo_torchrec.versions import PINNED, SUPPORTED, Trio, explained, misfit

PROJECT = Path(__file__).parents[1]
PINS = re.findall(r"^([\w-]+)==([\d.]+)", (PROJECT / "scripts" / "requirements_alone.in").read_text(), re.MULTILINE)


def found(trio: Trio, fbgemm: str = "fbgemm-gpu-cpu") -> dict[str, str]:
    return {"torch": trio.torch, "torchrec": trio.torchrec, fbgemm: trio.fbgemm}


def said_of(monkeypatch, installed: dict[str, str], error: BaseException) -> str:
    monkeypatch.setattr(versions, "installed", lambda: installed)
    with pytest.raises(ImportError) as raised, explained():
        raise error
    return str(raised.value)


def test_the_pinned_trio_is_that_of_the_set_up():
    setup = (PROJECT / "scripts" / "setup.sh").read_text()
    assert re.findall(r"TORCH_SPEC:-torch==([\d.]+)", setup) == [PINNED.torch]
    assert dict(PINS)["torchrec"] == PINNED.torchrec
    assert dict(PINS)["fbgemm-gpu-cpu"] == PINNED.fbgemm


def test_the_page_has_a_row_and_a_command_for_each_trio():
    page = (PROJECT / "docs" / "versions.md").read_text()
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", page, re.MULTILINE)
    assert rows == [(trio.torch, trio.torchrec, trio.fbgemm) for trio in SUPPORTED]
    for trio in SUPPORTED:
        assert f"\n{trio.command()}\n" in page
        assert f"\n{trio.command(cuda=True)}\n" in page


def test_uv_is_told_that_there_is_no_cuda_build():
    page = (PROJECT / "docs" / "versions.md").read_text()
    override = re.findall(r"--override <\(echo '([^']+)'\)", PINNED.command(uv=True))
    assert len(override) == 1
    assert page.count(override[0]) == 2  # as a file, and in a pyproject.toml
    assert PINNED.command(uv=True).endswith(
        f" torch=={PINNED.torch} torchrec=={PINNED.torchrec} fbgemm-gpu-cpu=={PINNED.fbgemm}"
    )
    assert PINNED.command(cuda=True, uv=True) == f"uv {PINNED.command(cuda=True)}"


def test_the_workflow_runs_every_trio():
    workflow = (PROJECT / ".github" / "workflows" / "versions.yml").read_text()
    run = re.findall(r"trio: ([\d./]+)", workflow)
    assert set(run) == {f"{trio.torch}/{trio.torchrec}/{trio.fbgemm}" for trio in SUPPORTED}
    assert set(re.findall(r'python: "([\d.]+)"', workflow)) == {f"3.{minor}" for minor in range(10, 15)}


def test_tested_trios_are_not_warned_of():
    for trio in SUPPORTED:
        assert misfit(found(trio)) is None
        assert misfit(found(trio, "fbgemm-gpu")) is None
    assert misfit({**found(PINNED), "torch": f"{PINNED.torch}+cpu"}) is None
    assert misfit({"torch": "2.14.0a0+git1234"}) is None  # the others are builds of somebody's own


@pytest.mark.parametrize(("name", "version"), [("torch", "2.15.0"), ("torchrec", "1.9.2"), ("fbgemm-gpu-cpu", "1.7.0")])
def test_others_are_warned_of(name, version):
    assert f"{name} {version}" in (misfit({**found(PINNED), name: version}) or "")


def test_what_is_missing_is_said_with_the_trio_of_the_torch_that_is_there(monkeypatch):
    newest = SUPPORTED[-1]
    message = said_of(monkeypatch, {"torch": newest.torch}, ModuleNotFoundError("No module named 'torchrec'"))
    assert "(No module named 'torchrec')" in message
    assert f"Installed: torch {newest.torch}, torchrec none, FBGEMM none." in message
    assert f"`{newest.command()}`" in message
    assert f"`{newest.command(cuda=True)}`" in message


def test_where_nothing_is_there_the_pinned_trio_is_named(monkeypatch):
    message = said_of(monkeypatch, {}, ModuleNotFoundError("No module named 'torch'"))
    assert "Installed: none of them." in message
    assert PINNED.command() in message


def test_a_torch_that_has_no_fbgemm_gets_the_pinned_trio(monkeypatch):
    installed = {**found(SUPPORTED[-1]), "torch": "2.15.0"}
    message = said_of(monkeypatch, installed, OSError("Could not load this library: fbgemm_gpu_py.so"))
    assert "Installed: torch 2.15.0, torchrec 1.9.2, fbgemm-gpu-cpu 1.9.0." in message
    assert PINNED.command() in message


def test_two_builds_of_fbgemm_are_said(monkeypatch):
    installed = {**found(PINNED), "fbgemm-gpu": PINNED.fbgemm}
    assert "overwrite each other's files: uninstall both" in said_of(
        monkeypatch, installed, OSError("fbgemm_gpu_py.so")
    )


@pytest.mark.parametrize(("name", "version"), [("torch", "2.8.0"), ("torchrec", "1.2.0")])
def test_what_is_too_old_is_refused_before_anything_is_imported(monkeypatch, name, version):
    monkeypatch.setattr(versions, "installed", lambda: {**found(PINNED), name: version})
    with pytest.raises(ImportError, match=f"{name} {version} is older than"), explained():
        pytest.fail("went on")


def test_what_is_installed_is_looked_at_once_where_torch_is_used(monkeypatch):
    assert torch_at_use.int64 is torch.int64
    monkeypatch.setattr("importlib.metadata.version", lambda name: pytest.fail(f"asked for the version of {name}"))
    assert torch_at_use.float32 is torch.float32
    assert torch_at_use.empty(2).shape == (2,)
