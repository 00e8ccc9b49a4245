"""``damo-torchrec doctor``: what is installed, whether it fits, and what the machine has."""

import argparse
import ctypes
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from damo_torchrec import _core, versions
from damo_torchrec.cli import disk
from damo_torchrec.cli.command import Command, absolute_path
from damo_torchrec.cli.doctor_advice import advice, size
from damo_torchrec.cli.ending import DAMAGED, SOUND
from damo_torchrec.cli.limits import limits
from damo_torchrec.cli.output import print_json
from damo_torchrec.onnx_kernels import operators_file

# In another process: what is imported here stays, and a library that does not fit may end a process.
_TRIAL = "import damo_torchrec; damo_torchrec.EmbeddingBagCollection"
_TRIAL_SECONDS = 300
_OTHERS = ("numpy", "onnxruntime", "onnx", "onnxscript")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=absolute_path,
        nargs="?",
        default=".",
        metavar="PATH",
        help="where stores lie, or are to lie: whose disk is looked at; by default the working directory",
    )
    parser.add_argument(
        "--no-reads",
        action="store_true",
        help="leave out the measurement of random reads, for which a file without a name is written there, of "
        f"{disk.SCRATCH_BYTES >> 20} MiB and of a tenth of the free space at most",
    )


def _run(options: argparse.Namespace) -> int:
    directory = disk.existing(options.path)
    document: dict[str, Any] = {
        "package": _package(),
        "environment": _environment(),
        "disk": disk.describe(directory, measure=not options.no_reads),
        "limits": limits(),
    }
    document["advice"] = advice(document)
    if options.json:
        print_json(options, document)
    else:
        print("\n".join(_lines(document)))
    broken = document["environment"]["state"] == "broken" or not document["package"]["onnx_kernels"]["loads"]
    return DAMAGED if broken else SOUND


def _package() -> dict[str, Any]:
    kernels = operators_file()
    try:
        ctypes.CDLL(str(kernels))
        fault = None
    except OSError as error:
        fault = str(error)
    return {
        "version": importlib.metadata.version("damo-torchrec"),
        "path": str(Path(__file__).parents[1]),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "rocksdb": _core.ROCKSDB_VERSION,
        "instruction_sets": list(_core.INSTRUCTION_SETS),
        "onnx_kernels": {"path": str(kernels), "loads": fault is None, "error": fault},
    }


def _environment() -> dict[str, Any]:
    found = versions.installed()
    message = versions.misfit(found)
    state = "untested" if message else "fits"
    if (fault := _import_fault()) is not None:
        state, message = "broken" if "torch" in found else "missing", fault
    trio = versions.fitting(found)
    return {
        "versions": {**{name: found.get(name) for name in ("torch", "torchrec")}, **found, **_versions(_OTHERS)},
        "state": state,
        "message": message,
        "tested": [{"torch": t.torch, "torchrec": t.torchrec, "fbgemm": t.fbgemm} for t in versions.SUPPORTED],
        "commands": {
            f"{tool}, {machine}": trio.command(cuda=machine != "without a GPU", uv=tool == "uv")
            for machine in ("without a GPU", "with an NVIDIA GPU")
            for tool in ("pip", "uv")
        },
    }


def _versions(names: tuple[str, ...]) -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(names)
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _import_fault() -> str | None:
    """Why the modules over torch, TorchRec and FBGEMM cannot be imported; None where they can."""
    command = [sys.executable, "-W", "ignore", "-c", _TRIAL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        return f"torch, TorchRec and FBGEMM were not imported within {_TRIAL_SECONDS} seconds"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1].removeprefix("ImportError: ") if lines else f"importing them ended with status {done.returncode}"


def _lines(document: dict[str, Any]) -> list[str]:
    package, environment, storage, limit = (document[name] for name in ("package", "environment", "disk", "limits"))
    kernels = package["onnx_kernels"]
    reads = storage["random_reads"]
    quota = limit["core_quota"]
    rows = [
        ("damo-torchrec", f"{package['version']} in {package['path']}"),
        ("Python", f"{package['python']} on {package['system']}"),
        ("RocksDB", package["rocksdb"]),
        ("instruction set", f"{package['instruction_sets'][0]}, of {', '.join(package['instruction_sets'])}"),
        ("ONNX kernels", kernels["path"] if kernels["loads"] else f"cannot be loaded: {kernels['error']}"),
        *((name, version or "none") for name, version in environment["versions"].items()),
        ("torch and TorchRec", _STATES[environment["state"]]),
        ("disk", f"{storage['kind']}, {storage['file_system']} of {storage['device']}, at {storage['path']}"),
        ("free space", f"{size(storage['free_bytes'])} of {size(storage['total_bytes'])}"),
        (
            "random reads",
            f"{reads['one_thread_per_second']:,} a second by one thread ({reads['median_microseconds']:,} µs each), "
            f"{reads['threads_per_second']:,} by {reads['threads']}, of 4 KiB in {size(reads['file_bytes'])}"
            if reads
            else f"not measured: {storage['not_measured']}",
        ),
        ("memory", size(limit["memory_limit_bytes"] or limit["memory_bytes"])),
        ("cores", f"{limit['cores_usable']}" + (f", of which a quota leaves {quota:g}" if quota else "")),
        ("open files", f"{limit['open_files']:,}"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {text}" for name, text in rows]
    lines += ["", "Tested together:"]
    lines += [f"  torch {t['torch']}, torchrec {t['torchrec']}, FBGEMM {t['fbgemm']}" for t in environment["tested"]]
    lines += ["What installs those that fit, in an environment of its own:"]
    lines += [f"  {name}: {command}" for name, command in environment["commands"].items()]
    lines += ["", *(f"- {text}" for text in document["advice"])]
    return lines if document["advice"] else [*lines, "Nothing to improve was found."]


_STATES = {
    "fits": "fit each other",
    "untested": "can be imported, but no test has met these versions together",
    "missing": "not installed: training and exporting need them, serving and this tool do not",
    "broken": "cannot be imported",
}

COMMAND = Command(
    name="doctor",
    help="what is installed, whether it fits, and what the machine has",
    description="Prints the versions of this package, torch, TorchRec and FBGEMM and whether they fit each other, the "
    "kernels in use, the disk with its random reads as measured, limits, and advice. The exit status is 1 where torch "
    "is installed and TorchRec cannot be imported, or the kernels for ONNX Runtime cannot be loaded.",
    add_arguments=_add_arguments,
    run=_run,
)
