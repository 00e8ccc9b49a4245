"""What becomes of a traced graph: one with rows, or one that is given what its lookups would find."""

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from damo_torchrec.onnx.arguments import Arguments
from damo_torchrec.onnx.card import About, dense_card, full_card, set_card
from damo_torchrec.onnx.lowering import Layout, lower_to_inputs, lower_to_rows
from damo_torchrec.onnx.rows import RowFilter, RowGroup, RowWriter
from damo_torchrec.onnx.samples import any_rows
from damo_torchrec.onnx.sizes import batches_like
from damo_torchrec.onnx.trace_model import Traced
from damo_torchrec.onnx.trial import (
    Answers,
    DifferentAnswerError,
    DifferentShapeError,
    ask_model,
    check_graph,
    stored_rows,
)
from damo_torchrec.progress import Progress, counting, reporting
from damo_torchrec.store.table import Table

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowOptions:
    """Those options of `export` that are about rows, as the model's card has them.

    `unseen` and `top_n` are by table, `max_length` is by feature.
    """

    dtype: str
    unseen: dict[str, str]
    max_length: dict[str, int]
    min_count: int
    expire: int | None
    top_n: dict[str, int]

    @property
    def all_rows(self) -> bool:
        """Whether each row is exported."""
        return self.min_count == 0 and self.expire is None and not self.top_n


class DenseGraph:
    """A graph that is given what its lookups would find; made in place of the traced one."""

    def __init__(self, traced: Traced, arguments: Arguments, about: About, options: RowOptions) -> None:
        self._traced = traced
        self._arguments = arguments
        self._about = about
        self._options = options
        self._inputs: Sequence[Sequence[str]] = ()

    def make(self) -> None:
        """Makes inputs of what lookups give."""
        self._inputs = lower_to_inputs(self._traced.proto, self._traced.calls)
        set_card(self._traced.proto, dense_card(self._about, self._inputs, self._options.unseen))

    def check(self, content: bytes, file: Path) -> None:
        """Runs it on the arguments, with rows that are made up. Errors are of `check_graph`."""
        traced, names = self._traced, self._inputs
        expected = _answers(self._arguments, {}, lambda inputs: ask_model(traced, inputs, any_rows, names))
        _tell(check_graph(content, file, expected), file)


class FullGraph:
    """A graph with rows; made in place of the traced one."""

    def __init__(
        self, traced: Traced, arguments: Arguments, about: About, options: RowOptions, tables: Sequence[Table]
    ) -> None:
        self._traced = traced
        self._arguments = arguments
        self._about = about
        self._options = options
        self._tables = tables
        self._expected: dict[str, Answers] = {}

    def ask_model(self) -> None:
        """Notes what the model answers now, for `check`."""
        self._expected = self._answers()

    def make(self, directory: Path, memory_bytes: int, progress: Progress | bool, layout: Layout) -> None:
        """Writes rows into `directory`, which goes beside the graph; those of a single file into that, then.

        Raises:
            ValueError: rows are too many for a single file.
        """
        options, traced = self._options, self._traced
        filters = {
            t.name: RowFilter(options.min_count, options.expire, options.top_n.get(t.name)) for t in self._tables
        }
        with reporting(progress) as tell:
            advance = counting(tell, f"rows exported to {directory.parent}", sum(map(len, self._tables)))
            threads = self._about.store.session.options.threads()
            writer = RowWriter(directory, options.dtype, filters, options.unseen, memory_bytes, threads, advance)
            groups = writer.write(self._tables)
        jagged = [*self._arguments.features, *self._arguments.jagged]
        _warn_of_faint_rows(groups.values(), options.dtype)
        lower_to_rows(traced.proto, jagged, traced.calls, groups, options.unseen, options.max_length, layout)
        set_card(traced.proto, full_card(self._about, groups, asdict(options), layout.directory))

    def check(self, content: bytes, file: Path) -> None:
        """Runs it on the arguments, beside what the model answered before. Errors are of `check_graph`."""
        try:
            _tell(check_graph(content, file, self._expected), file)
        except DifferentShapeError:
            raise
        except DifferentAnswerError:
            now = self._answers()
            if all(now[asked].is_of_rows_of(answers) for asked, answers in self._expected.items()):
                raise
            _log.warning("%s is not compared with the model, which was trained while it was exported", file)

    def _answers(self) -> dict[str, Answers]:
        options, traced = self._options, self._traced
        rows = stored_rows({table.name: table for table in self._tables}, options.unseen, options.dtype)
        comparable = options.all_rows
        return _answers(
            self._arguments,
            options.max_length,
            lambda inputs: ask_model(traced, inputs, rows, comparable=comparable),
        )


def _answers(
    arguments: Arguments, longest: Mapping[str, int], ask: Callable[[Mapping[str, torch.Tensor]], Answers]
) -> dict[str, Answers]:
    """What a model answers to its arguments, and to batches of other sizes that it takes: by these, in words."""
    answers = {"args": ask(arguments.shortened(longest))}
    for size, inputs in batches_like(arguments, longest):
        try:
            answers[f"a batch of {size} of the samples in args"] = ask(inputs)
        except RuntimeError as error:
            _log.info("the model does not take %d samples, and its graph is not tried with so many: %s", size, error)
    return answers


def _warn_of_faint_rows(groups: Iterable[RowGroup], dtype: str) -> None:
    faint = {name: rows for group in groups for name, rows in group.faint_rows.items() if rows}
    if faint:
        warnings.warn(
            f"{dtype} keeps little or nothing of {sum(faint.values())} rows, whose weights are all near zero: by table "
            f"{faint}. dtype='float32' keeps them",
            stacklevel=5,
        )


def _tell(differing: Sequence[str], file: Path) -> None:
    if differing:
        _log.warning(
            "%s: the outputs %s, which are no fractions, differ from the model's in some places. So they may where "
            "scores are equal, and the runtime chooses another order",
            file,
            list(differing),
        )
