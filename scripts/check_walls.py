#!/usr/bin/env python3
"""Has every file of the core and of the package use only what its room may see.

The build and import-linter hold most of that. What they cannot see is here: headers that only a higher room includes,
paths that climb out of a room, libraries that belong to one room, and imports of the package by itself.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE, PACKAGE = ROOT / "csrc", ROOT / "damo_torchrec"

# Headers of others' libraries, and the rooms that they belong to.
OWNED = {"rocksdb/": {"storage_rocksdb"}, "pybind11/": {"python"}, "onnxruntime_": {"onnxruntime_ops"}}


def seen_by_room() -> dict[str, set[str]]:
    """What each room of the core sees, by csrc/CMakeLists.txt."""
    seen: dict[str, set[str]] = {}
    for room, sees in re.findall(
        r"^damo_add_room\((\w+)(?: SEES ([\w ]+))?\)", (CORE / "CMakeLists.txt").read_text(), re.M
    ):
        seen[room] = {room}.union(*(seen[below] for below in sees.split()))
    # What is put together of rooms.
    seen["python"] = {"python"}.union(*seen.values())
    seen["onnxruntime_ops"] = {"onnxruntime_ops"} | seen["serving"]
    return seen


def wrong_includes() -> Iterator[tuple[Path, int, str]]:
    seen = seen_by_room()
    for path in sorted(p for p in CORE.rglob("*") if p.suffix in (".h", ".cc")):
        room = path.relative_to(CORE).parts[0]
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if not (include := re.match(r'\s*#\s*include\s*(["<])([^">]+)', line)):
                continue
            name = include[2]
            if include[1] == '"' and name.split("/")[0] not in seen[room]:
                yield path, number, f"{room}/ does not see {name}"
            for prefix, rooms in OWNED.items():
                if include[1] == "<" and name.startswith(prefix) and room not in rooms:
                    yield path, number, f"<{name}> belongs to {', '.join(sorted(rooms))}/"


def wrong_imports() -> Iterator[tuple[Path, int, str]]:
    parts = {p.stem if p.suffix == ".py" else p.name for p in PACKAGE.iterdir()} | {"_core"}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import) and any(alias.name == PACKAGE.name for alias in node.names):
                yield path, node.lineno, "the package imports its parts, not itself"
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != PACKAGE.name:
                continue
            for name in (alias.name for alias in node.names):
                if node.module == PACKAGE.name and name not in parts:
                    yield path, node.lineno, f"{name} is to be imported from the module that it is in"
                if node.module != PACKAGE.name and name.startswith("_"):
                    yield path, node.lineno, f"{name} belongs to {node.module} alone"


def main() -> int:
    """Prints what is wrong; returns the exit status."""
    found = [*wrong_includes(), *wrong_imports()]
    for path, number, what in found:
        print(f"{path.relative_to(ROOT)}:{number}: {what}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
