"""`damo-torchrec doctor`: versions that are found, the machine, and what it advises."""

import json
import os
import re
from pathlib import Path

import pytest

from damo_torchrec import _core, versions
from damo_torchrec.cli import disk, doctor, doctor_advice, limits


@pytest.fixture(autouse=True)
def _imports(monkeypatch):
    """The trial takes seconds, and is no matter of these tests but of one."""
    monkeypatch.setattr(doctor, "_import_fault", lambda: None)


def document(call, *arguments: object) -> tuple[int, dict]:
    status, lines, err = call("doctor", "--json", *arguments)
    assert err == ""
    return status, json.loads("\n".join(lines))


def test_the_document_has_all(call, tmp_path):
    status, found = document(call, tmp_path)
    assert (status, found["schema"], found["command"]) == (0, 1, "doctor")
    assert found["package"]["rocksdb"] == _core.ROCKSDB_VERSION
    assert re.fullmatch(r"\d+\.\d+\.\d+", _core.ROCKSDB_VERSION)
    assert found["package"]["instruction_sets"] == list(_core.INSTRUCTION_SETS)
    assert found["package"]["instruction_sets"][-1] == "plain"
    assert found["package"]["onnx_kernels"]["loads"] is True
    assert found["environment"]["versions"].items() >= versions.installed().items()
    assert found["environment"]["state"] in ("fits", "untested")
    assert len(found["environment"]["tested"]) == len(versions.SUPPORTED)
    assert found["disk"]["path"] == str(tmp_path)
    assert found["disk"]["free_bytes"] <= found["disk"]["total_bytes"]
    assert found["limits"]["cores_usable"] == len(os.sched_getaffinity(0))


def test_the_text_has_the_same(call, tmp_path):
    status, lines, _ = call("doctor", "--no-reads", tmp_path)
    assert status == 0
    text = "\n".join(lines)
    assert f"RocksDB             {_core.ROCKSDB_VERSION}\n" in text
    assert f"instruction set     {_core.INSTRUCTION_SETS[0]}, of " in text
    assert "random reads        not measured: not asked for\n" in text
    for trio in versions.SUPPORTED:
        assert f"torch {trio.torch}, torchrec {trio.torchrec}, FBGEMM {trio.fbgemm}" in text
    trio = versions.fitting(versions.installed())
    for cuda in (False, True):
        for uv in (False, True):
            assert f": {trio.command(cuda, uv)}\n" in text


def test_random_reads_are_measured_and_nothing_is_left(call, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "SCRATCH_BYTES", disk._LEAST_SCRATCH_BYTES)
    monkeypatch.setattr(disk, "_SECONDS", 0.05)
    reads = document(call, tmp_path)[1]["disk"]["random_reads"]
    assert list(tmp_path.iterdir()) == []
    if reads is not None:  # where there is direct I/O
        assert reads["file_bytes"] == disk._LEAST_SCRATCH_BYTES
        assert reads["one_thread_per_second"] > 0
        assert reads["threads_per_second"] > 0
        assert reads["median_microseconds"] > 0


def test_where_reads_cannot_be_measured_it_says_why(call, tmp_path):
    with pytest.raises(OSError, match="1000 bytes are free: too few"):
        disk.measured_reads(tmp_path, free=1000)
    place = disk.describe(tmp_path, measure=False)
    assert (place["random_reads"], place["not_measured"]) == (None, "not asked for")


def test_a_store_that_is_yet_to_be_made_lies_on_the_disk_of_the_folder_above(call, tmp_path):
    assert document(call, "--no-reads", tmp_path / "runs" / "store")[1]["disk"]["path"] == str(tmp_path)


def test_a_path_that_is_no_directory_is_wrong_usage(call, tmp_path):
    (tmp_path / "file").touch()
    status, lines, err = call("doctor", tmp_path / "file")
    assert (status, lines) == (2, [])
    assert err == f"damo-torchrec: {tmp_path / 'file'} is no directory\n"


def test_without_torch_it_is_said_what_needs_it(call, tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "installed", dict)
    monkeypatch.setattr(doctor, "_import_fault", lambda: "damo_torchrec needs torch")
    status, found = document(call, "--no-reads", tmp_path)
    assert (status, found["environment"]["state"]) == (0, "missing")  # as where models are served
    assert found["advice"][0] == "damo_torchrec needs torch"
    assert found["environment"]["commands"]["pip, without a GPU"] == versions.PINNED.command()


def test_what_cannot_be_imported_has_a_status_of_its_own(call, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_import_fault", lambda: "Could not load this library: fbgemm_gpu_py.so")
    status, found = document(call, "--no-reads", tmp_path)
    assert (status, found["environment"]["state"]) == (1, "broken")
    assert "fbgemm_gpu_py.so" in found["advice"][0]


def test_versions_that_no_test_has_met_are_said(call, tmp_path, monkeypatch):
    newer = {"torch": "2.99.0", "torchrec": "1.99.0", "fbgemm-gpu-cpu": "1.99.0"}
    monkeypatch.setattr(versions, "installed", lambda: newer)
    status, found = document(call, "--no-reads", tmp_path)
    assert (status, found["environment"]["state"]) == (0, "untested")
    assert "no test has met them together" in found["advice"][0]


def test_kernels_that_cannot_be_loaded_are_said(call, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "operators_file", lambda: tmp_path / "absent.so")
    status, found = document(call, "--no-reads", tmp_path)
    assert status == 1
    assert found["package"]["onnx_kernels"]["loads"] is False
    assert "absent.so" in found["package"]["onnx_kernels"]["error"]


@pytest.mark.slow
def test_the_trial_imports_what_training_needs(monkeypatch):
    monkeypatch.undo()
    assert doctor._import_fault() is None
    monkeypatch.setattr(doctor, "_TRIAL", f"import sys; sys.modules['fbgemm_gpu'] = None; {doctor._TRIAL}")
    fault = doctor._import_fault()
    assert fault is not None
    assert fault.startswith("damo_torchrec needs torch, TorchRec and FBGEMM in versions that fit each other")


MOUNTS = r"""22 27 0:21 / /proc rw - proc proc rw
27 1 254:0 / / rw - ext4 /dev/vda rw
30 27 0:30 / /data rw - nfs4 host:/data rw
31 30 8:1 / /data/local\040disk rw shared:1 - xfs /dev/sda1 rw
32 27 0:40 / /over rw - overlay overlay rw
33 32 0:41 / /over rw - tmpfs none rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", ("ext4", "/dev/vda")),
        ("/database", ("ext4", "/dev/vda")),  # whose name begins as another's
        ("/data/x", ("nfs4", "host:/data")),
        ("/data/local disk/store", ("xfs", "/dev/sda1")),
        ("/over", ("tmpfs", "none")),  # the last that was mounted there
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(path, expected):
    assert disk.mounted_at(MOUNTS, Path(path)) == expected


def test_limits_of_a_container_are_the_least_of_all_that_are_around(tmp_path):
    inner = tmp_path / "kube" / "pod"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("8589934592\n")
    (inner / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    groups = [inner, inner.parent, tmp_path]
    assert limits.memory_limit(groups) == 8 << 30
    assert limits.core_limit(groups) == 1.5


def test_limits_of_version_1_are_read_too(tmp_path):
    (tmp_path / "memory.limit_in_bytes").write_text("4294967296\n")
    (tmp_path / "cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    assert limits.memory_limit([tmp_path]) == 4 << 30
    assert limits.core_limit([tmp_path]) == 0.5
    (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "cpu.cfs_quota_us").write_text("-1\n")
    assert limits.memory_limit([tmp_path]) is None
    assert limits.core_limit([tmp_path]) is None


SOUND = {
    "environment": {"message": None, "versions": {"onnxruntime": "1.32.0"}},
    "disk": {
        "path": "/data",
        "kind": "solid state",
        "free_bytes": 500 << 30,
        "total_bytes": 1000 << 30,
        "random_reads": {"threads_per_second": 90_000},
    },
    "limits": {
        "open_files": 1 << 20,
        "memory_bytes": 64 << 30,
        "memory_limit_bytes": None,
        "cores_usable": 16,
        "core_quota": None,
    },
}


@pytest.mark.parametrize(
    ("part", "changed", "advice"),
    [
        ("environment", {"message": "torch does not fit"}, "torch does not fit"),
        ("environment", {"versions": {"onnxruntime": None}}, "ONNX Runtime"),
        ("disk", {"kind": "network"}, "lies on a network"),
        ("disk", {"kind": "memory"}, "lies in memory"),
        ("disk", {"kind": "container layer"}, "mount a volume"),
        ("disk", {"random_reads": {"threads_per_second": 200}}, "waits 50 s for them"),
        ("disk", {"free_bytes": 50 << 30}, "50 GiB are free"),
        ("limits", {"memory_limit_bytes": 8 << 30}, "may use 8 GiB of the machine's 64 GiB"),
        ("limits", {"core_quota": 2.5}, "num_threads=2"),
        ("limits", {"open_files": 1024}, "1,024 files may be open"),
    ],
)
def test_advice_is_given_of_what_is_found(part, changed, advice):
    assert doctor_advice.advice(SOUND) == []
    (given,) = doctor_advice.advice({**SOUND, part: {**SOUND[part], **changed}})
    assert advice in given


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1000, "1000 B"), (1536, "1.5 KiB"), (250 << 30, "250 GiB"), (3 << 50, "3072 TiB")]
)
def test_sizes_are_said_as_people_read_them(count, text):
    assert doctor_advice.size(count) == text
