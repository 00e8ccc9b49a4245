"""What is installed: every name that pages and pyproject.toml give is there, and pinned by hash."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PYPROJECT = (PROJECT / "pyproject.toml").read_text()
LOCKS = [
    PROJECT / "scripts" / name for name in ("requirements.txt", "requirements_alone.txt", "requirements_wheel.txt")
]
PAGES = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("*/README.md")]
# Torch has several builds of one version. FBGEMM and TorchRec, which it needs, are in requirements_alone.txt.
PIN = re.compile(r"[\w.]+( ; [^\n\\]+)? \\(\n    --hash=sha256:[0-9a-f]{64}( \\)?)+")
NOT_LOCKED = {"torch", "fbgemm-gpu", "torchrec", "damo-torchrec"}


def extras() -> dict[str, set[str]]:
    """The extras of pyproject.toml, each with the names of what it asks for."""
    section = PYPROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    found = re.findall(r"^(\w+) = \[(.*?)\]$", section, re.MULTILINE | re.DOTALL)
    return {name: set(re.findall(r'"([\w-]+)', asked)) for name, asked in found}


def pins(lock: Path) -> dict[str, list[str]]:
    """What stands after each name in a lock file, of which there may be several, by markers."""
    blocks: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=[a-z])", re.sub("^#.*\n", "", lock.read_text(), flags=re.MULTILINE)):
        name, _, rest = block.strip().partition("==")
        blocks.setdefault(name, []).append(rest)
    return blocks


def test_extras_that_are_named_exist():
    """In the pages, in what errors say, and in pyproject.toml itself."""
    sources = [*PAGES, PROJECT / "pyproject.toml", *(PROJECT / "damo_torchrec").rglob("*.py")]
    named = {
        extra.strip()
        for path in sources
        for found in re.findall(r"(?:damo[-_]torchrec|pip install '?\.)\[([\w, ]+)\]", path.read_text())
        for extra in found.split(",")
    }
    assert {"onnx", "examples", "cuda"} <= named
    assert named - extras().keys() == set()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_pin_has_hashes_and_nothing_else(lock):
    assert len(pins(lock)) > 3
    for name, versions in pins(lock).items():
        for rest in versions:
            assert PIN.fullmatch(rest), f"{name}=={rest[:200]}"


def test_all_that_is_asked_for_is_pinned():
    dependencies = re.findall(r"^dependencies = (.*)", PYPROJECT, re.MULTILINE)[0]
    asked = set().union(*extras().values(), re.findall(r'"([\w-]+)', dependencies))
    inputs = (PROJECT / "scripts" / "requirements.in").read_text()
    asked |= set(re.findall(r"^([\w-]+)", inputs, re.MULTILINE))
    assert asked - pins(LOCKS[0]).keys() - NOT_LOCKED == set()


def test_what_makes_a_wheel_is_pinned():
    asked = re.findall(r"^([\w-]+)", LOCKS[2].with_suffix(".in").read_text(), re.MULTILINE)
    assert {"auditwheel", "scikit-build-core"} <= set(asked) <= pins(LOCKS[2]).keys()


def test_installing_the_package_brings_no_torch_and_no_fbgemm():
    """Which would take the place of builds that are there. TorchRec asks for one, so it is none of ours either."""
    dependencies = re.findall(r"^dependencies = (.*)", PYPROJECT, re.MULTILINE)[0]
    assert set(re.findall(r'"([\w-]+)', dependencies)) == {"numpy", "tqdm"}
    named = {"torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu"}
    assert {name for name, asked in extras().items() if asked & named} == {"cuda"}


def test_what_stands_alone_has_the_versions_that_its_input_names():
    asked = re.findall(r"^([\w-]+)==([\d.]+)", LOCKS[1].with_suffix(".in").read_text(), re.MULTILINE)
    assert {(name, rest.split()[0]) for name, versions in pins(LOCKS[1]).items() for rest in versions} == set(asked)


def test_the_trio_has_the_same_versions_everywhere():
    versions = dict(re.findall(r"^([\w-]+)==([\d.]+)", LOCKS[1].with_suffix(".in").read_text(), re.MULTILINE))
    by_hand = (PROJECT / "CONTRIBUTING.md").read_text()
    setup = (PROJECT / "scripts" / "setup.sh").read_text()
    torch = re.findall(r"TORCH_SPEC:-torch==([\d.]+)", setup)[0]
    assert f"torch=={torch} fbgemm-gpu-cpu=={versions['fbgemm-gpu-cpu']}" in by_hand
    assert f"torchrec=={versions['torchrec']}" in by_hand
    assert versions["fbgemm-gpu"] == versions["fbgemm-gpu-cpu"]
    cuda = dict(re.findall(r'"([\w-]+)==([\d.]+)\.\*"', PYPROJECT))
    for name, version in {**versions, "torch": torch}.items():
        if name in cuda:
            assert version.startswith(cuda[name])
