"""Resident memory of this process: anonymous, of files, and shared (RssAnon + RssFile + RssShmem). Linux only."""

from pathlib import Path


def resident_bytes() -> int:
    """Now."""
    return _status("VmRSS")


def anonymous_bytes() -> int:
    """Now, without what is a file's."""
    return _status("RssAnon")


def peak_bytes() -> int:
    """At most, since `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Has `peak_bytes` begin anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")
