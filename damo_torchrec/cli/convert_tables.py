"""Kinds of ``damo-torchrec convert`` with the same options: state dicts, safetensors and dynamicemb's files."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from damo_torchrec import versions
from damo_torchrec.cli.command import absolute_path, positive
from damo_torchrec.cli.output import add_common_options, note, shown_progress

if TYPE_CHECKING:
    from damo_torchrec.convert.new_store import SourceTable


def add_kinds(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds them to the kinds of what is converted."""
    for name, what, description in (
        (
            "state-dict",
            "a state dict of torch.save",
            "what torch.save wrote of a state dict, or of a dict with one",
        ),
        ("safetensors", "a file of safetensors", "a file of safetensors; needs pip install safetensors"),
    ):
        kind = kinds.add_parser(
            name,
            help=f"tables in {what}",
            description=f"Makes a store of matrices in {description}: row i is that of id i. By default those of "
            "TorchRec's EmbeddingBagCollection and EmbeddingCollection, by their names.",
        )
        _add_options(kind, "FILE")
        kind.add_argument(
            "--table",
            action="append",
            default=[],
            metavar="KEY[=NAME]",
            help="a tensor that is a table, such as nn.Embedding's user.weight, and the table's name; may be repeated",
        )
        kind.set_defaults(convert=_convert_state_dict if name == "state-dict" else _convert_safetensors)
    dynamicemb = kinds.add_parser(
        "dynamicemb",
        help="what dynamicemb's DynamicEmbDump wrote",
        description="Makes a store of the weights in files that DynamicEmbDump wrote, of all ranks. Scores, counters "
        "and optimizer state are passed over.",
    )
    _add_options(dynamicemb, "DIRECTORY")
    dynamicemb.set_defaults(convert=_convert_dynamicemb)


def _add_options(parser: argparse.ArgumentParser, metavar: str) -> None:
    add_common_options(parser, defaults=False)
    parser.add_argument("source", type=absolute_path, metavar=metavar, help="what is converted")
    parser.add_argument("store", type=absolute_path, metavar="STORE", help="the new store's directory")
    parser.add_argument(
        "--optimizer",
        required=True,
        metavar="RULE",
        help="what the rows are trained with from now on: an update rule, as ADAM or ROWWISE_ADAGRAD",
    )
    parser.add_argument("--row-dtype", choices=("float32", "float16", "bfloat16"), help="by default what weights are")
    parser.add_argument(
        "--num-embeddings",
        type=positive,
        metavar="N",
        help="how many ids are expected: rows to come begin in ±1/√N; by default the rows of the table",
    )
    parser.add_argument(
        "--memory-budget", default="1GiB", metavar="BYTES", help="as of EmbeddingStore; by default 1GiB"
    )
    parser.add_argument("--seed", type=int, help="of the store's initial weights, of at most 128 bits; by default 0")


def _wanted(options: argparse.Namespace) -> dict[str, str | None]:
    wanted: dict[str, str | None] = {}
    for text in options.table:
        key, _, name = text.partition("=")
        if not key or key in wanted:
            raise ValueError(f"--table takes each KEY once, got {text!r}")
        wanted[key] = name or None
    return wanted


def _convert_state_dict(options: argparse.Namespace) -> dict[str, int]:
    with versions.explained():
        from damo_torchrec.convert.matrices import state_dict_tables

    return _make(options, state_dict_tables(options.source, _wanted(options)))


def _convert_safetensors(options: argparse.Namespace) -> dict[str, int]:
    with versions.explained():
        from damo_torchrec.convert.matrices import safetensors_tables

    with safetensors_tables(options.source, _wanted(options)) as tables:
        return _make(options, tables)


def _convert_dynamicemb(options: argparse.Namespace) -> dict[str, int]:
    from damo_torchrec.convert.dynamicemb_dump import dynamicemb_tables

    tables = dynamicemb_tables(options.source)
    note(options, "scores, counters and optimizer state are passed over: state begins anew")
    return _make(options, tables)


def _make(options: argparse.Namespace, tables: Sequence["SourceTable"]) -> dict[str, int]:
    from damo_torchrec.convert.new_store import make_store

    with shown_progress(options) as bar:
        return make_store(
            options.store,
            tables,
            optimizer=options.optimizer,
            row_dtype=options.row_dtype,
            num_embeddings=options.num_embeddings,
            memory_budget=options.memory_budget,
            seed=options.seed,
            progress=bar,
        )
