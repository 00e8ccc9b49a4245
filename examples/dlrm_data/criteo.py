"""Criteo's click logs, read as they come, plain or compressed (`.gz`, `.bz2`, `.zst`).

Tab-separated as `train.txt` of the display-advertising challenge and `day_N` of the terabyte logs,
or comma-separated with a header line. A line is a label, 13 integers and 26 categories; an empty
field is a missing value. The files are streamed, so memory does not depend on their size. They are
ordered by time and are not shuffled.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from torchrec.datasets.utils import Batch

from dlrm_data.samples import Samples, rebatch

LABEL = "label"
INTEGERS = tuple(f"I{number}" for number in range(1, 14))
CATEGORIES = tuple(f"C{number}" for number in range(1, 27))
COLUMNS = (LABEL, *INTEGERS, *CATEGORIES)
MISSING_CATEGORY = -1  # the others are 32-bit hashes, so none of them is negative
TEST_EVERY = 10
BLOCK_BYTES = 1 << 20


class MalformedFileError(ValueError):
    """A line is not as Criteo writes it; the message says which, and why."""


class Criteo:
    """One or more Criteo files in the given order; every tenth line is held out for the test."""

    feature_names = CATEGORIES
    dense_features = len(INTEGERS)
    expected_ids = 1_000_000
    train_size = None

    def __init__(self, files: Sequence[Path], batch_size: int) -> None:
        self._files = files
        self._batch_size = batch_size

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        return islice(self._batches(test=False), first, None)

    def test_batches(self) -> Iterator[Batch]:
        return self._batches(test=True)

    def _batches(self, test: bool) -> Iterator[Batch]:
        for samples in rebatch(self._samples(test), self._batch_size):
            yield samples.batch(self.feature_names)

    def _samples(self, test: bool) -> Iterator[Samples]:
        count = 0
        for path in self._files:
            for chunk in read_criteo(path):
                held_out = np.arange(count, count + len(chunk)) % TEST_EVERY == TEST_EVERY - 1
                count += len(chunk)
                yield chunk[held_out == test]


def read_criteo(path: Path) -> Iterator[Samples]:
    """Streams a file in chunks of about a megabyte of text.

    An integer x becomes sign(x)·log(1 + |x|), a missing one 0. A category's id is its hexadecimal
    number, a missing one's is -1. Raises MalformedFileError.
    """
    with pa.input_stream(path) as file:
        first_line = file.read(4096).split(b"\n")[0]
    has_header = first_line.startswith(LABEL.encode())
    line = 2 if has_header else 1
    try:
        with pa.csv.open_csv(
            path,
            read_options=pa.csv.ReadOptions(
                column_names=COLUMNS,
                skip_rows=int(has_header),
                block_size=BLOCK_BYTES,
                use_threads=False,  # with threads, errors come without the line number
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter="\t" if b"\t" in first_line else ",",
                quote_char=False,
                ignore_empty_lines=False,
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types={name: pa.float32() for name in (LABEL, *INTEGERS)}
                | {name: pa.string() for name in CATEGORIES},
                null_values=[""],
                strings_can_be_null=True,
            ),
        ) as reader:
            for chunk in reader:
                yield _samples(chunk, path, line)
                line += len(chunk)
    except pa.ArrowInvalid as error:
        raise _explained(error, path) from error


def _samples(chunk: pa.RecordBatch, path: Path, line: int) -> Samples:
    """Converts one chunk, whose first line has number `line` in the file."""
    labels = chunk[LABEL].to_numpy(zero_copy_only=False)
    _require(np.isin(labels, (0, 1)), chunk[LABEL], path, line, "the label must be 0 or 1")
    dense = np.empty((len(chunk), len(INTEGERS)), dtype=np.float32)
    for index, name in enumerate(INTEGERS):
        numbers = chunk[name].fill_null(0).to_numpy(zero_copy_only=False)
        _require(np.isfinite(numbers), chunk[name], path, line, f"{name} must be an integer")
        dense[:, index] = np.copysign(np.log1p(np.abs(numbers)), numbers)
    ids = np.empty((len(chunk), len(CATEGORIES)), dtype=np.int64)
    for index, name in enumerate(CATEGORIES):
        is_hash = pc.match_substring_regex(chunk[name], "^[0-9a-fA-F]{1,8}$").fill_null(True)
        _require(
            is_hash.to_numpy(zero_copy_only=False),
            chunk[name],
            path,
            line,
            f"{name} must have one to eight hexadecimal digits",
        )
        hashes = pc.binary_join_element_wise("0x", chunk[name], "").cast(pa.int64())
        ids[:, index] = hashes.fill_null(MISSING_CATEGORY).to_numpy()
    return Samples(dense, ids, labels)


def _require(valid: np.ndarray, column: pa.Array, path: Path, line: int, rule: str) -> None:
    if not valid.all():
        row = int(np.argmin(valid))
        value = column[row].as_py()
        raise MalformedFileError(
            f"{path}, line {line + row}: {rule}, got {'nothing' if value is None else repr(value)}"
        )


def _explained(error: pa.ArrowInvalid, path: Path) -> MalformedFileError:
    """The reader's error with the file and the line, and the column by its name."""
    place = re.search(r"(?:In CSV column #(\d+): )?Row #(\d+): (.*)", str(error), re.DOTALL)
    if place is None:
        return MalformedFileError(f"{path}: {error}")
    column, line, problem = place.groups()
    where = f"{path}, line {line}" + (f", {COLUMNS[int(column)]}" if column else "")
    return MalformedFileError(f"{where}: {problem}")
