"""What packages have at its first use: so that who needs a part of them waits for, and installs, no more than that."""

import importlib
import sys
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from damo_torchrec import versions

# TorchRec's modules import each other in circles: threads that enter one at different places would wait for each other.
_importing = threading.RLock()


def module(name: str) -> ModuleType:
    """Imports a module, one at a time of all that are imported so. Not called while another is being imported."""
    with _importing:
        return importlib.import_module(name)


def attributes(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``. What cannot be imported is said as `versions.explained` does.

    Args:
        package: its name.
        homes: by what it has, the module inside it where that is defined. None of these is called as a module is that
            lies directly in the package, which would take its place.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(module(f"{package}.{homes[name]}"), name)
        except ImportError as error:
            with versions.explained():
                raise error
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names
