"""Of every file that is no text, origin and licence are stated; what is in examples/data is what its README says."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
DATA = PROJECT / "examples" / "data"


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a working tree of git")
    return [PROJECT / name for name in listed.stdout.split("\0") if name and (PROJECT / name).is_file()]


def is_text(path: Path) -> bool:
    try:
        return "\0" not in path.read_bytes().decode()
    except UnicodeDecodeError:
        return False


def test_the_data_is_what_its_readme_says():
    page = (DATA / "README.md").read_text()
    stated = dict(re.findall(r"^\| `([\w.]+)` \| `([0-9a-f]{64})` \|$", page, re.MULTILINE))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in DATA.iterdir()}
    assert files.pop("README.md") is not None
    assert files == stated


def test_the_origin_and_licence_of_the_data_are_stated():
    rows = [line for line in (DATA / "README.md").read_text().splitlines() if line.startswith("|")]
    for path in DATA.glob("*.csv*"):
        described = [row for row in rows if f"`{path.name}`" in row and "licenses/" in row]
        assert len(described) == 1, path.name


def test_binary_files_lie_where_a_readme_states_their_origin_and_licence():
    binary = [path for path in tracked_files() if not is_text(path)]
    assert binary
    for path in binary:
        pages = [
            folder / "README.md" for folder in path.parents if folder.is_relative_to(PROJECT) and folder != PROJECT
        ]
        nearest = next((page for page in pages if page.is_file()), None)
        assert nearest is not None, f"{path.relative_to(PROJECT)} has no README.md beside or above it"
        text = nearest.read_text().lower()
        assert "licence" in text, nearest
        assert re.search("origin|source", text), nearest
