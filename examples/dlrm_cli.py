"""The command line of dlrm.py."""

import argparse
import importlib.util
import shlex
import sys
from pathlib import Path
from typing import Any

DESCRIPTION = """\
Trains TorchRec's DLRM on raw 64-bit ids, with the embeddings in a damo_torchrec store: rows in
RocksDB in the store's directory, cached within a memory budget. No vocabulary is built and no
table has a fixed size.

A second run goes on where the last one ended. Ctrl-C (or SIGTERM) ends a run with a checkpoint,
and the run that resumes it ends in the same bits as one that was never stopped.
"""

EPILOG = """\
data sets:
  census     Census Income, included: 32,561 people to train on and 16,281 to test. 8 categories
             and their 28 pairs are hashed to 36 ids. Takes seconds; test AUC about 0.904.
  criteo     Criteo's click logs, streamed in constant memory: train.txt of the display-advertising
             challenge or day_N of the terabyte logs (tab-separated: label, 13 integers, 26
             hexadecimal categories), or with commas and a header line; .gz is read as it is.
             Every tenth line is held out for the test. The order is that of the files, unshuffled.
  synthetic  clicks with Zipf-distributed ids, to see the store at any size. The labels depend on
             the dense features alone.

examples:
  python examples/dlrm.py
  python examples/dlrm.py --epochs 5        # two more epochs, if three are done
  python examples/dlrm.py --fresh --dim 32
  python examples/dlrm.py --data criteo examples/data/criteo_sample.csv
  python examples/dlrm.py --data criteo day_0.gz day_1.gz --memory-budget 4GiB
  python examples/dlrm.py --data synthetic --rows-per-table 100000000 --memory-budget 512MiB
"""

SHOWN = "(default: %(default)s)"

# Where the data sets differ in what they take for granted.
DEFAULTS = {
    "census": {"epochs": 3, "batch_size": 256, "checkpoint_every": 100},
    "criteo": {"epochs": 1, "batch_size": 2048, "checkpoint_every": 1000},
    "synthetic": {"epochs": 1, "batch_size": 2048, "checkpoint_every": 500},
}

# What the parts of a run that was stopped and resumed must have in common.
RUN = ["data", "files", "batch_size", "dim", "lr", "dense_lr", "seed"]
RUN += ["tables", "rows_per_table", "steps", "zipf"]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="with --data criteo: what to read")
    parser.add_argument("--data", choices=DEFAULTS, default="census", help=f"the data set {SHOWN}")
    _add_training(parser)
    _add_store(parser)
    _add_synthetic(parser)

    arguments = parser.parse_args(argv)
    if (arguments.data == "criteo") != bool(arguments.files):
        parser.error("--data criteo needs at least one FILE, and only it takes any")
    for name, value in DEFAULTS[arguments.data].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.store is None:
        arguments.store = Path("examples-store", arguments.data)
    if arguments.export is None and arguments.data == "census" and importlib.util.find_spec("onnxruntime"):
        arguments.export = arguments.store.with_name(f"{arguments.store.name}-onnx")
    return arguments


def run_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a checkpoint remembers of its run's arguments; files by name, so that they may move."""
    run = {name: getattr(arguments, name) for name in RUN}
    return run | {"files": [Path(file).name for file in arguments.files]}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each argument that is not what it was, in the spelling of the command line."""
    return [
        f"{'FILE' if name == 'files' else '--' + name.replace('_', '-')}"
        f" was {_spelled(before.get(name))}, now {_spelled(value)}"
        for name, value in now.items()
        if before.get(name) != value
    ]


def resume_command() -> str:
    """The command that goes on with the run that this process was started for."""
    return shlex.join(["python", *(word for word in sys.argv if word != "--fresh")])


def _add_training(parser: argparse.ArgumentParser) -> None:
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=_count, help=_default("times through the data", "epochs"))
    training.add_argument("--batch-size", type=_count, help=_default("samples in a step", "batch_size"))
    training.add_argument("--dim", type=_count, default=16, help=f"columns of every table {SHOWN}")
    training.add_argument(
        "--lr",
        type=float,
        default=0.02,
        help=f"learning rate of the embeddings, by row-wise Adagrad {SHOWN}",
    )
    training.add_argument(
        "--dense-lr",
        type=float,
        default=0.001,
        help=f"learning rate of the dense layers, by Adam {SHOWN}",
    )
    training.add_argument("--seed", type=int, default=0, help=f"of weights, order and synthetic data {SHOWN}")


def _add_store(parser: argparse.ArgumentParser) -> None:
    store = parser.add_argument_group("store")
    store.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="the store's directory (default: examples-store/DATA in the current directory)",
    )
    store.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="at the end, write the model with its rows there as an ONNX file, and ask it about one sample (default: "
        "STORE-onnx for census, if onnxruntime is installed; else no file)",
    )
    store.add_argument(
        "--memory-budget",
        default="256MiB",
        metavar="SIZE",
        help=f"what the store may take of memory, all in all {SHOWN}",
    )
    store.add_argument(
        "--checkpoint-every",
        type=_count,
        metavar="STEPS",
        help=_default("steps between two checkpoints", "checkpoint_every"),
    )
    store.add_argument(
        "--fresh",
        action="store_true",
        help="start from nothing; a store that is there is renamed, not deleted",
    )


def _add_synthetic(parser: argparse.ArgumentParser) -> None:
    synthetic = parser.add_argument_group("with --data synthetic")
    synthetic.add_argument("--tables", type=_count, default=26, help=f"number of tables {SHOWN}")
    synthetic.add_argument("--rows-per-table", type=_count, default=1_000_000, help=f"distinct ids {SHOWN}")
    synthetic.add_argument("--steps", type=_count, default=1000, help=f"steps an epoch {SHOWN}")
    synthetic.add_argument(
        "--zipf",
        type=float,
        default=1.05,
        metavar="EXPONENT",
        help=f"how unequal the ids are: 0 draws all alike, 1.2 hardly the rare ones {SHOWN}",
    )


def _spelled(value: Any) -> str:
    return " ".join(value) or "none" if isinstance(value, list) else str(value)


def _default(text: str, name: str) -> str:
    values = ", ".join(f"{data} {defaults[name]}" for data, defaults in DEFAULTS.items())
    return f"{text} (default: {values})"


def _count(text: str) -> int:
    number = int(text.replace("_", ""))
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
