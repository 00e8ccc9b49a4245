"""An exported model's files: put in place at once, or not at all."""

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx

from damo_torchrec.files import os_errors, sync_directory

_LARGEST_FILE = 2**31 - 1  # of protobuf


def write_graph(file: Path, proto: onnx.ModelProto, fill: Callable[[Path], None]) -> None:
    """Writes a graph to `file`, in the place of what was there once it is whole.

    `fill` gets a new directory beside it, ``STEM.data-XXXXXXXX``, for arrays that the graph refers to, and completes
    the graph. What earlier graphs of this name had is removed in the end. After an error everything is as it was.

    Raises:
        ValueError: the graph is larger than a file of ONNX may be.
        OutOfSpaceError, DamoError: the disk is full or refuses.
    """
    data = file.with_name(f"{file.stem}.data-{secrets.token_hex(4)}")
    highest_new = next((path for path in reversed([data, *data.parents]) if not path.exists()), data)
    staged = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with os_errors(f"cannot write {file}"):
        try:
            data.mkdir(parents=True)
            fill(data)
            if proto.ByteSize() > _LARGEST_FILE:
                raise ValueError(f"the graph has {proto.ByteSize()} bytes: an ONNX file takes {_LARGEST_FILE}")
            staged.unlink(missing_ok=True)  # of an interrupted call, or what somebody put there
            with staged.open("xb") as opened:
                opened.write(proto.SerializeToString())
                opened.flush()
                os.fsync(opened.fileno())
            sync_directory(data)
            sync_directory(file.parent)
            os.replace(staged, file)
        except BaseException:
            staged.unlink(missing_ok=True)
            shutil.rmtree(highest_new, ignore_errors=True)
            raise
        sync_directory(file.parent)
        for directory in file.parent.glob(f"{file.stem}.data-*"):
            if directory != data or not any(data.iterdir()):
                shutil.rmtree(directory, ignore_errors=True)
