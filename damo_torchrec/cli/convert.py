"""``damo-torchrec convert``: rows of other packages into a new store."""

import argparse
import json
from pathlib import Path
from typing import Any

from damo_torchrec import versions
from damo_torchrec.cli.command import Command, absolute_path
from damo_torchrec.cli.convert_tables import add_kinds
from damo_torchrec.cli.ending import SOUND, after
from damo_torchrec.cli.output import add_common_options, print_json, shown_progress


def _named(text: str) -> dict[str, Any]:
    """A dict of Damo-Embedding's, as JSON or by its name alone."""
    if not text.lstrip().startswith("{"):
        return {"name": text}
    try:
        given: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a name nor JSON: {error}") from None
    return given


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    dump = kinds.add_parser(
        "damo-dump",
        help="what Damo-Embedding's dump wrote",
        description="Makes a store of the weights in a dump: tables group_G_dim_D, as damo.Embedding has them. "
        "Optimizer state begins anew.",
    )
    add_common_options(dump, defaults=False)
    dump.add_argument("file", type=Path, metavar="FILE", help="the dump")
    dump.add_argument("store", type=absolute_path, metavar="STORE", help="the new store's directory")
    dump.add_argument(
        "--optimizer",
        type=_named,
        default={"name": "adam"},
        metavar="NAME",
        help="what the rows are trained with from now on: a name of Damo-Embedding's (by default adam, which does for "
        'adamw, too) or its dict as JSON, {"name": ...}',
    )
    dump.add_argument(
        "--initializer",
        type=_named,
        metavar="NAME",
        help="of rows that are not in the dump: a name, or a dict as JSON (by default uniform)",
    )
    dump.add_argument(
        "--configure",
        type=Path,
        metavar="JSON",
        help="a file with both by group, as get_damo_embedding_configure gives them",
    )
    dump.add_argument("--memory-budget", default="1GiB", metavar="BYTES", help="as of EmbeddingStore; by default 1GiB")
    dump.add_argument(
        "--seed", type=int, default=None, help="of the store's initial weights, of at most 128 bits; by default 0"
    )

    dump.set_defaults(convert=_convert_dump)
    add_kinds(kinds)


def _run(options: argparse.Namespace) -> int:
    rows: dict[str, int] = options.convert(options)
    with after(f"the store {options.store} is made"):
        if options.json:
            print_json(options, {"store": options.store, "tables": {name: {"rows": n} for name, n in rows.items()}})
        else:
            print(f"store {options.store}")
            for name, count in rows.items():
                print(f"table {name!r}: {count} rows")
    return SOUND


def _convert_dump(options: argparse.Namespace) -> dict[str, int]:
    # These need torch, which the other commands do not.
    with versions.explained():
        from damo_torchrec.convert.damo_store import GroupDicts, convert_damo_dump, read_configure

    with shown_progress(options) as bar:
        return convert_damo_dump(
            options.file,
            options.store,
            groups=read_configure(options.configure) if options.configure else None,
            others=GroupDicts(options.optimizer, options.initializer),
            memory_budget=options.memory_budget,
            seed=options.seed,
            progress=bar,
        )


COMMAND = Command(
    name="convert",
    help="make a store of another package's rows",
    description="Makes a new store of rows that another package has written, whole or not at all.",
    add_arguments=_add_arguments,
    run=_run,
)
