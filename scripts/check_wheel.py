#!/usr/bin/env python3
"""Looks into wheels, as `check_wheel.py dist/*.whl`: whether all is in them, with licences and a README to be read.

Only what comes with Python is needed.
"""

import email.message
import email.parser
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# What installing it brings. Of torch, TorchRec and FBGEMM pip would choose builds that take the place of those there.
DEPENDENCIES = {"numpy", "tqdm"}
LICENCES = ["LICENSE", "rocksdb/LICENSE.Apache", "rocksdb/LICENSE.leveldb", "onnxruntime/LICENSE"]


def faults(wheel: zipfile.ZipFile) -> Iterator[str]:
    """What is wrong with it, a sentence each."""
    names = [PurePosixPath(name) for name in wheel.namelist()]
    info = next(name.parent for name in names if name.name == "METADATA")
    metadata = email.parser.HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode())
    yield from missing_files(names)
    yield from missing_licences({str(name) for name in names}, f"{info}/licenses", names)
    yield from wrong_metadata(metadata)


def missing_files(names: list[PurePosixPath]) -> Iterator[str]:
    for pattern in (
        "damo_torchrec/__init__.py",
        "damo_torchrec/py.typed",
        "damo_torchrec/_core.pyi",
        "damo_torchrec/_core.*.so",
        "damo_torchrec/libdamo_onnxruntime_ops.so",
        "damo_torchrec.libs/librocksdb-*",
    ):
        if not any(name.match(pattern) for name in names):
            yield f"there is no {pattern}"
    tops = {name.parts[0] for name in names if not name.parts[0].endswith(".dist-info")}
    if tops != {"damo_torchrec", "damo_torchrec.libs"}:
        yield f"it has {sorted(tops)}: expected the package and its libraries"


def missing_licences(present: set[str], folder: str, names: list[PurePosixPath]) -> Iterator[str]:
    for licence in LICENCES:
        if f"{folder}/{licence if licence == 'LICENSE' else f'licenses/{licence}'}" not in present:
            yield f"there is no licence {licence}"
    for name in names:
        if name.parent.name == "damo_torchrec.libs":
            library = re.split(r"[-.]", name.name)[0].removeprefix("lib")
            if not any(other.startswith(f"{folder}/licenses/{library}/") for other in present):
                yield f"{name.name} is in it, but no licence of {library}"


def wrong_metadata(metadata: email.message.Message) -> Iterator[str]:
    required = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    names = {re.split(r"[^\w-]", text)[0] for text in required}
    if names != DEPENDENCIES:
        yield f"installing it brings {sorted(names)}: expected {sorted(DEPENDENCIES)}"
    if not metadata.get_all("Project-URL"):
        yield "it names no project pages"
    links = re.findall(r"\]\(([^)\s]*)", metadata.get_payload())
    if not links:
        yield "its README has no links"
    for link in links:
        if not re.match(r"https?:|#", link):
            yield f"its README has a link that leads nowhere: {link}"


def main(paths: list[str]) -> int:
    if not paths:
        print("no wheel is named", file=sys.stderr)
        return 2
    status = 0
    for path in map(Path, paths):
        with zipfile.ZipFile(path) as wheel:
            found = list(faults(wheel))
        for fault in found:
            print(f"{path.name}: {fault}", file=sys.stderr)
        status |= bool(found)
        if not found:
            print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, complete, with licences")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
