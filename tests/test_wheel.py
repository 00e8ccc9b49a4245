"""Wheels: what is in them, what is checked of them, and the configuration that makes those that are published."""

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on

PROJECT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
REPOSITORY = PYPROJECT["project"]["urls"]["Repository"]
README = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
PYTHONS = [f"3.{minor}" for minor in range(10, 15)]

FILES = {
    "damo_torchrec/__init__.py": "",
    "damo_torchrec/py.typed": "",
    "damo_torchrec/_core.pyi": "",
    "damo_torchrec/_core.cpython-311-x86_64-linux-gnu.so": "",
    "damo_torchrec/libdamo_onnxruntime_ops.so": "",
    "damo_torchrec.libs/librocksdb-0123abcd.so.7.8.3": "",
    "damo_torchrec.libs/liblz4-89abcdef.so.1.9.4": "",
    "damo_torchrec-0.1.0.dist-info/METADATA": (
        "Metadata-Version: 2.4\nName: damo-torchrec\nVersion: 0.1.0\nProject-URL: Repository, https://host/x\n"
        "Requires-Dist: numpy>=1.23.5\nRequires-Dist: tqdm>=4.60\nRequires-Dist: onnx; extra == 'onnx'\n\n"
        "[docs](https://host/x/docs), [below](#there)\n"
    ),
    "damo_torchrec-0.1.0.dist-info/licenses/LICENSE": "",
    "damo_torchrec-0.1.0.dist-info/licenses/licenses/rocksdb/LICENSE.Apache": "",
    "damo_torchrec-0.1.0.dist-info/licenses/licenses/rocksdb/LICENSE.leveldb": "",
    "damo_torchrec-0.1.0.dist-info/licenses/licenses/onnxruntime/LICENSE": "",
    "damo_torchrec-0.1.0.dist-info/licenses/licenses/lz4/copyright": "",
}
METADATA = "damo_torchrec-0.1.0.dist-info/METADATA"


def checked(tmp_path: Path, files: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What the program says of a wheel with these files."""
    wheel = tmp_path / "damo_torchrec-0.1.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    command = [sys.executable, str(PROJECT / "scripts" / "check_wheel.py"), str(wheel)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_wheel_that_has_all_is_passed(tmp_path):
    done = checked(tmp_path, FILES)
    assert (done.returncode, done.stderr) == (0, "")
    assert "complete, with licences" in done.stdout


@pytest.mark.parametrize(
    ("left_out", "fault"),
    [
        ("_core.cpython", "there is no damo_torchrec/_core"),
        ("py.typed", "there is no damo_torchrec/py.typed"),
        ("libdamo_onnxruntime_ops", "there is no damo_torchrec/libdamo_onnxruntime_ops.so"),
        ("librocksdb", "there is no damo_torchrec.libs/librocksdb"),
        ("licenses/LICENSE", "there is no licence LICENSE"),
        ("LICENSE.leveldb", "there is no licence rocksdb/LICENSE.leveldb"),
        ("onnxruntime/LICENSE", "there is no licence onnxruntime/LICENSE"),
        ("lz4/copyright", "liblz4-89abcdef.so.1.9.4 is in it, but no licence of lz4"),
    ],
)
def test_what_is_missing_is_named(tmp_path, left_out, fault):
    (name,) = [name for name in FILES if left_out in name]
    done = checked(tmp_path, {other: content for other, content in FILES.items() if other != name})
    assert done.returncode == 1
    assert fault in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("Requires-Dist: tqdm>=4.60\n", "Requires-Dist: tqdm>=4.60\nRequires-Dist: torch\n", "brings .*'torch'"),
        ("Project-URL: Repository, https://host/x\n", "", "names no project pages"),
        ("(https://host/x/docs)", "(docs/design.md)", "leads nowhere: docs/design.md"),
    ],
)
def test_metadata_that_are_wrong_are_named(tmp_path, old, new, fault):
    assert old in FILES[METADATA]
    done = checked(tmp_path, {**FILES, METADATA: FILES[METADATA].replace(old, new)})
    assert done.returncode == 1
    assert re.search(fault, done.stderr)


def test_what_does_not_belong_into_a_wheel_is_named(tmp_path):
    assert "'tests'" in checked(tmp_path, {**FILES, "tests/__init__.py": ""}).stderr


def test_a_bare_machine_has_no_compilers_headers_and_rocksdb():
    look = "import ctypes, os, shutil; print(os.listdir('/usr/include')); print(shutil.which('c++'))\n"
    look += "try: ctypes.CDLL('librocksdb.so'); print('loaded')\nexcept OSError: print('not loaded')"
    bare = str(PROJECT / "scripts" / "bare.sh")
    done = subprocess.run([bare, sys.executable, "-c", look], capture_output=True, text=True, check=True)
    if "SKIP" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.stdout.split() == ["[]", "None", "not", "loaded"]
    assert subprocess.run([bare, "sh", "-c", "exit 7"], check=False).returncode == 7


def test_installing_the_package_brings_numpy_and_tqdm_alone():
    """Of the package as it is installed: torch, TorchRec and FBGEMM are left as they are."""
    required = [text for text in importlib.metadata.requires("damo-torchrec") or [] if "extra ==" not in text]
    assert {re.split(r"[^\w-]", text)[0] for text in required} == {"numpy", "tqdm"}


def readme_of_an_index() -> str:
    text = "".join((PROJECT / fragment["path"]).read_text() for fragment in README["fragments"])
    for substitution in README["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)
    return text.replace("$HFPR_VERSION", PYPROJECT["project"]["version"])


def test_the_readme_of_an_index_leads_into_the_repository():
    page = (PROJECT / "README.md").read_text()
    relative = re.findall(r"\]\(((?!\w+:|#)[^)]+)\)", page)
    release = f"v{PYPROJECT['project']['version']}"
    links = re.findall(r"(!?)\[[^\]]*\]\((\w+:[^)]+)\)", readme_of_an_index())
    rewritten = [(image, link) for image, link in links if link.startswith(REPOSITORY)]
    assert len(rewritten) == len(relative) > 20
    for (image, link), path in zip(rewritten, relative, strict=True):
        assert link == f"{REPOSITORY}/{'raw' if image else 'blob'}/{release}/{path}"
        assert (PROJECT / path.partition("#")[0]).is_file()
    assert any(image for image, _ in rewritten)


def test_what_is_no_link_is_left_alone():
    """Code above all, where a bracket may be followed by a parenthesis."""
    page = (PROJECT / "README.md").read_text()
    for code in re.findall(r"^```.*?^```", page, re.MULTILINE | re.DOTALL):
        assert code in readme_of_an_index()


def test_the_repository_is_one():
    urls = re.findall(r"https://[\w./-]*damo-torchrec/damo-torchrec", (PROJECT / "pyproject.toml").read_text())
    assert set(urls) == {REPOSITORY}


def test_licences_are_there():
    patterns = PYPROJECT["project"]["license-files"]
    found = {path.relative_to(PROJECT).as_posix() for pattern in patterns for path in PROJECT.glob(pattern)}
    assert {"LICENSE", "licenses/rocksdb/LICENSE.leveldb", "licenses/onnxruntime/LICENSE"} <= found
    assert "Copyright (c) Microsoft Corporation" in (PROJECT / "licenses/onnxruntime/LICENSE").read_text()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_such(path):
    """As far as that can be seen without running them: jobs that are needed are there, and so is each program."""
    workflow: dict[Any, Any] = yaml.safe_load(path.read_text())
    assert workflow["name"] == path.stem
    assert workflow[True]  # what YAML has for `on`
    jobs = workflow["jobs"]
    for job in jobs.values():
        needed = job.get("needs", [])
        assert ({needed} if isinstance(needed, str) else set(needed)) <= jobs.keys()
        assert job["timeout-minutes"] > 0
        keys = matrix_keys(job)
        assert set(re.findall(r"matrix\.(\w+)", yaml.dump(job))) <= keys
        for step in job["steps"]:
            assert len({"uses", "run"} & step.keys()) == 1
            for program in re.findall(r"\b(?:scripts|tests)/\w+\.(?:py|sh|txt)", step.get("run", "")):
                assert (PROJECT / program).is_file()


def matrix_keys(job: dict[str, Any]) -> set[str]:
    matrix = job.get("strategy", {}).get("matrix", {})
    return (matrix.keys() - {"include"}).union(*(entry.keys() for entry in matrix.get("include", [])))


def test_published_wheels_are_for_every_python_and_for_systems_as_old_as_torchs():
    config = PYPROJECT["tool"]["cibuildwheel"]
    (braces,) = re.findall(r"^cp31\{([\d,]+)\}-manylinux_\*$", config["build"])
    assert [f"3.1{digit}" for digit in braces.split(",")] == PYTHONS
    assert [text for text in PYPROJECT["project"]["classifiers"] if re.search(r":: 3\.\d", text)] == [
        f"Programming Language :: Python :: {version}" for version in PYTHONS
    ]
    assert config["manylinux-x86_64-image"] == config["manylinux-aarch64-image"] == "manylinux_2_28"
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "wheels.yml").read_text())
    assert workflow["jobs"]["try"]["strategy"]["matrix"]["python"] == PYTHONS
    assert set(workflow["jobs"]["publish"]["needs"]) == {"build", "source", "try"}
    assert "refs/tags/v" in workflow["jobs"]["publish"]["if"]


def test_rocksdb_is_built_of_one_commit():
    """A branch or a tag may be moved; the id of a commit is a hash of all that is in it."""
    script, prefix, _, ref = PYPROJECT["tool"]["cibuildwheel"]["before-all"].split()[1:]
    assert (PROJECT / script.removeprefix("{project}/")).is_file()
    assert re.fullmatch("[0-9a-f]{40}", ref)
    assert PYPROJECT["tool"]["cibuildwheel"]["environment"]["RocksDB_ROOT"] == prefix
