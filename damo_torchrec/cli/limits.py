"""What the system lets a process have: files, memory and processors, also inside of a container."""

import os
import resource
from pathlib import Path
from typing import Any

_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60  # what cgroups of version 1 have for "no limit" is a little less than 2^63


def limits() -> dict[str, Any]:
    """A document: how many files may be open, and what there is of memory and processors.

    ``memory_limit_bytes`` and ``core_quota``, which may be a fraction, are those of the container, None without one;
    ``cores_usable`` is what the process may run on.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    groups = _own_cgroups()
    return {
        "open_files": soft,
        "open_files_most": hard,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "memory_limit_bytes": memory_limit(groups),
        "cores": os.cpu_count() or 1,
        "cores_usable": len(os.sched_getaffinity(0)),
        "core_quota": core_limit(groups),
    }


def memory_limit(folders: list[Path]) -> int | None:
    """The least limit of these cgroups, of either version, in bytes."""
    found = [
        int(text)
        for folder in folders
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(folder / name)) is not None and text.isdecimal()
    ]
    return min((limit for limit in found if limit < _UNLIMITED), default=None)


def core_limit(folders: list[Path]) -> float | None:
    """The least share of processors that these cgroups have, as 2.5."""
    found = []
    for folder in folders:
        words = (_read(folder / "cpu.max") or "").split()
        words = words or [_read(folder / "cpu.cfs_quota_us") or "", _read(folder / "cpu.cfs_period_us") or ""]
        if len(words) == 2 and all(word.isdecimal() for word in words):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def _own_cgroups() -> list[Path]:
    """The folders of this process's groups and of those around them."""
    folders = []
    for line in (_read(Path("/proc/self/cgroup")) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and not {"memory", "cpu"} & set(controllers.split(",")):
            continue
        root = _CGROUPS / controllers
        group = root / path.lstrip("/")
        folders += [group, *(parent for parent in group.parents if root in (parent, *parent.parents))]
        folders.append(root)  # where a container sees its own group
    return folders


def _read(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None
