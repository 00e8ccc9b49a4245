"""Where scripts/system_packages.sh would use sudo it asks, if there is a terminal to ask at."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "system_packages.sh"


@pytest.fixture
def as_nobody(tmp_path):
    """An environment in which we are not root, a compiler is missing, and sudo writes down what it is to do."""
    programs = {"id": "echo 1000", "sudo": f'echo "$@" >>{tmp_path}/done', "apt-get": "exit 1"}
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, does in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "CXX": "no-such-compiler"}


def run(environment, stdin):
    return subprocess.run([SCRIPT], env=environment, stdin=stdin, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), ("n", False), ("", False)])
def test_at_a_terminal_it_asks(as_nobody, tmp_path, answer, goes_on):
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = run(as_nobody, theirs)
    os.close(ours)
    os.close(theirs)
    assert "Installing system packages: g++" in done.stdout
    assert "by sudo apt-get; go on? [y/N]" in done.stderr
    assert done.returncode == 1  # nothing is there afterwards either
    assert ("still missing" if goes_on else "not installed: g++") in done.stderr
    assert (tmp_path / "done").exists() == goes_on


def test_without_a_terminal_it_says_what_it_does(as_nobody, tmp_path):
    done = run(as_nobody, subprocess.DEVNULL)
    assert "Installing system packages: g++" in done.stdout
    assert "apt-get install -qq -y --no-install-recommends g++" in (tmp_path / "done").read_text()
