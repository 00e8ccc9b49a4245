"""Has two directories of one file system trade names, at once where the system can."""

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux's
_NOT_THERE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def exchange(one: Path, other: Path) -> None:
    """Has two directories trade names: nobody ever finds that one of them is not there.

    A kernel or file system that cannot do that takes three steps. A crash between them leaves what was `other` beside
    it, whole, with a name that ends in ``.exchanged``.

    Raises:
        OSError: the system refuses; both are as they were.
    """
    if _exchange_at_once(one, other):
        return
    aside = other.with_name(other.name + ".exchanged")
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except OSError:
        os.rename(aside, other)
        raise
    os.rename(aside, one)


def _exchange_at_once(one: Path, other: Path) -> bool:
    """Returns whether that is possible here."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_THERE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
