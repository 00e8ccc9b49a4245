"""Which versions of torch, TorchRec and FBGEMM fit each other, and what is said where those installed do not.

The package depends on none of the three: pip would install builds over those that are there. Nothing is imported here
but what comes with Python, so that this is known where they are missing.
"""

import importlib.metadata
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Trio:
    """Versions that were built for each other, and that the tests have met."""

    torch: str
    torchrec: str
    fbgemm: str

    def command(self, cuda: bool = False, uv: bool = False) -> str:
        """What a shell installs it with, in an environment of its own: with an NVIDIA GPU or without, by pip or uv."""
        trio = f"torch=={self.torch} torchrec=={self.torchrec}"
        if cuda:
            return f"{'uv ' if uv else ''}pip install {trio} 'fbgemm-gpu=={_series(self.fbgemm)}.*'"
        if uv:  # told that there is no CUDA build of FBGEMM
            override = "--override <(echo 'fbgemm-gpu; python_version < \"3\"')"
            return f"uv pip install {override} {trio} fbgemm-gpu-cpu=={self.fbgemm}"
        # TorchRec asks for FBGEMM's CUDA build, which would overwrite the files of the other: it comes without what it
        # asks for, which comes before it, with torch.
        needed = "tensordict torchmetrics==1.0.3 tqdm pyre-extensions iopath"
        return (
            f"pip install torch=={self.torch} fbgemm-gpu-cpu=={self.fbgemm} {needed} && "
            f"pip install --no-deps torchrec=={self.torchrec}"
        )


# Oldest first. docs/versions.md has the same, with the Pythons that each has builds for.
SUPPORTED = (
    Trio("2.9.1", "1.4.0", "1.4.2"),
    Trio("2.10.0", "1.5.1", "1.5.0"),
    Trio("2.11.0", "1.6.1", "1.6.0"),
    Trio("2.12.1", "1.7.0", "1.7.0"),
    Trio("2.13.0", "1.8.0", "1.8.0"),
    Trio("2.14.1", "1.9.2", "1.9.0"),
)
# That of the set-up, which every change is tested with.
PINNED = SUPPORTED[4]

_FBGEMM = ("fbgemm-gpu-cpu", "fbgemm-gpu")


@contextmanager
def explained() -> Iterator[None]:
    """Around imports: what cannot be imported is said with what is installed, and what to install instead.

    Raises:
        ImportError: torch, TorchRec or FBGEMM is missing, too old, or does not fit the others.
    """
    found = installed()
    for name, least in (("torch", SUPPORTED[0].torch), ("torchrec", SUPPORTED[0].torchrec)):
        if name in found and _numbers(found[name]) < _numbers(_series(least)):
            raise ImportError(_message(f"{name} {found[name]} is older than {_series(least)}", found))
    try:
        yield
    except (ImportError, OSError) as error:  # OSError: FBGEMM's library, where it was built for another torch
        if str(error).startswith("damo_torchrec"):  # says what to do already
            raise
        raise ImportError(_message(str(error), found)) from error


def installed() -> dict[str, str]:
    """The versions of torch, torchrec and FBGEMM's two builds, of those that are there."""
    versions = {}
    for name in ("torch", "torchrec", *_FBGEMM):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@cache
def warn_of_misfit() -> None:
    """Once in a process: warns where the versions that are installed work together, but no test has met them so."""
    if (reason := misfit(installed())) is not None:
        warnings.warn(reason, stacklevel=3)


def misfit(found: Mapping[str, str]) -> str | None:
    """What to warn of where versions work together, but no test has met them so; None where one has, or who knows."""
    trio = _trio_of(found)
    fbgemm = [found[name] for name in _FBGEMM if name in found]
    if not fbgemm or "torchrec" not in found or "torch" not in found:
        return None  # builds of somebody's own, under other names
    others = {_series(version) for version in fbgemm}
    if trio is not None and _series(found["torchrec"]) == _series(trio.torchrec) and others == {_series(trio.fbgemm)}:
        return None
    return _message("no test has met them together", found)


def fitting(found: Mapping[str, str]) -> Trio:
    """The trio to install: that of the torch that is there, if one has it, else that of the set-up."""
    return _trio_of(found) or PINNED


def _trio_of(found: Mapping[str, str]) -> Trio | None:
    """The one that has the torch that was found."""
    return next((trio for trio in SUPPORTED if _series(trio.torch) == _series(found.get("torch", ""))), None)


def _message(reason: str, found: Mapping[str, str]) -> str:
    trio = fitting(found)
    names = ("torch", "torchrec", *(name for name in _FBGEMM if name in found)) if found else ()
    versions = ", ".join(f"{name} {found.get(name, 'none')}" for name in names) or "none of them"
    if names and not any(name in found for name in _FBGEMM):
        versions += ", FBGEMM none"
    both = ""
    if all(name in found for name in _FBGEMM):
        both = " fbgemm-gpu and fbgemm-gpu-cpu overwrite each other's files: uninstall both first."
    return (
        f"damo_torchrec needs torch, TorchRec and FBGEMM in versions that fit each other ({reason}). Installed: "
        f"{versions}. Tested together, of torch {_series(SUPPORTED[0].torch)} to {_series(SUPPORTED[-1].torch)}: torch "
        f"{trio.torch}, torchrec {trio.torchrec}, FBGEMM {trio.fbgemm}.{both} Without a GPU: `{trio.command()}`; with "
        f"an NVIDIA GPU: `{trio.command(cuda=True)}`; docs/versions.md has the others"
    )


def _series(version: str) -> str:
    """Its first two numbers: releases that differ in the third alone fit the same others."""
    return ".".join(map(str, _numbers(version)))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
