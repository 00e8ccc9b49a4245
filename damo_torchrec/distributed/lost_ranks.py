"""What torch raises where another rank is gone, as an error of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from damo_torchrec.errors import DamoError


@contextmanager
def others_are_there(when: str) -> Iterator[None]:
    """Has a collective raise DamoError, which says when it was, if a rank has ended or does not answer in time."""
    try:
        yield
    except (RuntimeError, ValueError, EOFError) as error:  # torch has no one exception for that
        raise DamoError(f"a rank has ended, or does not answer, {when}: {error}") from error
