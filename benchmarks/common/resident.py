"""Resident memory of this process: anonymous, of files, and shared (RssAnon + RssFile + RssShmem), and threads.

Linux only.
"""

from pathlib import Path


def resident_bytes() -> int:
    """Now."""
    return _bytes("VmRSS")


def anonymous_bytes() -> int:
    """Now, without what is a file's."""
    return _bytes("RssAnon")


def peak_bytes() -> int:
    """At most, since `reset_peak`."""
    return _bytes("VmHWM")


def reset_peak() -> None:
    """Has `peak_bytes` begin anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def threads() -> int:
    """How many the process has."""
    return int(_status("Threads"))


def _bytes(field: str) -> int:
    return int(_status(field).split()[0]) * 1024


def _status(field: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value
    raise LookupError(f"/proc/self/status has no {field}")
