"""An exported model's files: put in place at once, or not at all."""

import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx

from damo_torchrec.files import check_replaceable, os_errors, sync_directory
from damo_torchrec.graph_card import sealed

LARGEST_FILE = 2**31 - 1  # of protobuf


def write_graph(
    file: Path, proto: onnx.ModelProto, fill: Callable[[Path], None], check: Callable[[bytes, Path], None] | None = None
) -> None:
    """Writes a graph to `file`, in the place of what was there once it is whole.

    `fill` gets a new directory beside it, ``STEM.data-XXXXXXXX``, for arrays that the graph refers to, and completes
    the graph. `check` gets the graph's bytes and `file`, while the arrays are where it will look for them. What earlier
    graphs of this name had is removed in the end. After an error, of these two also, everything is as it was.

    Raises:
        ValueError: the graph is larger than a file of ONNX may be.
        OutOfSpaceError, DamoError: the disk is full or refuses, or `file` is there and no regular file.
    """
    data = file.with_name(f"{file.stem}.data-{secrets.token_hex(4)}")
    highest_new = next((path for path in reversed([data, *data.parents]) if not path.exists()), data)
    staged = data / "graph"  # where nobody else can have put anything
    with os_errors(f"cannot write {file}"):
        check_replaceable(file)  # no link either: arrays lie beside the graph
        try:
            data.mkdir(parents=True)
            fill(data)
            if proto.ByteSize() > LARGEST_FILE:
                raise ValueError(f"the graph has {proto.ByteSize()} bytes: an ONNX file takes {LARGEST_FILE}")
            content = sealed(proto.SerializeToString())
            if check is not None:
                check(content, file)
            with staged.open("xb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            sync_directory(data)
            sync_directory(file.parent)
            os.replace(staged, file)
        except BaseException:
            shutil.rmtree(highest_new, ignore_errors=True)
            raise
        sync_directory(file.parent)
        earlier = re.compile(rf"{re.escape(file.stem)}\.data-[0-9a-f]{{8}}")
        for directory in [entry for entry in file.parent.iterdir() if earlier.fullmatch(entry.name)]:
            if directory != data or not any(data.iterdir()):
                shutil.rmtree(directory, ignore_errors=True)
