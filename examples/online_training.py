#!/usr/bin/env python3
"""Learns a click stream day by day, in four ways, and says how well and at what size.

Each day is first predicted, by what was learned from the days before, and then trained on, once. Users and items
come and go (online_stream.py); the model is one (online_models.py), over

  fixed    TorchRec's EmbeddingBagCollection: a row for each id of the first day, and one for all others
  hashed   the same: ids share rows by their hash, as many rows as `bounded` may have
  ours     damo_torchrec's EmbeddingBagCollection: a row for every id
  bounded  the same, with admission, expiry and a limit of rows

Memory is that of the rows, weights and optimizer state; disk is that of the rows as saved. Ours grows on disk by
parts that are merged every few days, and shrinks then.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score

import damo_torchrec as damo
import online_plot
from online_models import BATCH, ROW_BYTES, Contestant, Fixed, Hashed, Ours
from online_stream import Day, StreamOptions, stream

QUICK = StreamOptions(users=1500, items=400, impressions=6000)
IDLE_DAYS = 7


@dataclass(frozen=True)
class Figures:
    """Of a contestant on a day: how well it predicted the day, and what it holds after training on it."""

    auc: float
    rows: Mapping[str, int]
    disk_bytes: int

    @property
    def all_rows(self) -> int:
        return sum(self.rows.values())

    @property
    def memory_bytes(self) -> int:
        return self.all_rows * ROW_BYTES


def row_limits(options: StreamOptions) -> dict[str, int]:
    """As many rows as there are users and items on any one day."""
    return {"user": options.users, "item": options.items}


def bounded(options: StreamOptions) -> dict[str, damo.TableOptions]:
    """A row at the second sighting, gone after a week without an update; a cut spares those that are used most."""
    steps_a_day = -(-options.impressions // BATCH)
    return {
        f"t_{name}": damo.TableOptions(
            admit=damo.Admit(sightings=2, within_steps=IDLE_DAYS * steps_a_day),
            expire=[damo.Idle(days=IDLE_DAYS)],
            max_rows=limit,
            credit=100,
            unseen_in_eval="mean",
        )
        for name, limit in row_limits(options).items()
    }


def contestants(
    options: StreamOptions, first: Day, seed: int, stores: Sequence[damo.EmbeddingStore]
) -> dict[str, Contestant]:
    """All begin with dense weights by the same seed."""
    unbounded = {f"t_{name}": damo.TableOptions(unseen_in_eval="mean") for name in row_limits(options)}
    made = {}
    for name, make in (
        ("fixed", lambda: Fixed(first)),
        ("hashed", lambda: Hashed(row_limits(options))),
        ("ours", lambda: Ours(stores[0], unbounded)),
        ("bounded", lambda: Ours(stores[1], bounded(options))),
    ):
        torch.manual_seed(seed)
        made[name] = make()
    return made


def compare(options: StreamOptions, days: int, seed: int) -> Iterator[dict[str, Figures]]:
    """The figures of each day, by contestant. Temporary files hold the rows meanwhile."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="online_training-")))
        stores = [
            stack.enter_context(damo.EmbeddingStore(scratch / name, memory_budget="64MiB", seed=seed))
            for name in ("ours", "bounded")
        ]
        models: dict[str, Contestant] = {}
        for day in stream(options, days, seed):
            models = models or contestants(options, day, seed, stores)
            yield {name: one_day(model, day, scratch) for name, model in models.items()}


def one_day(contestant: Contestant, day: Day, scratch: Path) -> Figures:
    auc = float(roc_auc_score(day.clicks, contestant.predict(day)))
    contestant.train(day)
    return Figures(auc, contestant.rows(), contestant.disk_bytes(scratch))


def print_head(names: list[str]) -> None:
    groups = ("AUC", "rows", "MB of rows", "MB on disk")
    print("    " + "".join(f" |{group:^{9 * len(names)}}" for group in groups))
    print(" day" + (" |" + "".join(f"{name:>9}" for name in names)) * len(groups), flush=True)


def print_day(number: int, day: Mapping[str, Figures]) -> None:
    groups = (
        [f"{figures.auc:9.4f}" for figures in day.values()],
        [f"{figures.all_rows:9,}" for figures in day.values()],
        [f"{figures.memory_bytes / 1e6:9.2f}" for figures in day.values()],
        [f"{figures.disk_bytes / 1e6:9.2f}" for figures in day.values()],
    )
    print(f"{number:4}" + "".join(" |" + "".join(group) for group in groups), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, help="default: 30; 5 with --quick")
    parser.add_argument("--quick", action="store_true", help="a small stream, in a few seconds")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw AUC and rows per day into a PNG file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.days is None:
        arguments.days = 5 if arguments.quick else 30
    if arguments.days < 2:
        parser.error(f"--days must be at least 2: the first has nothing to predict from; got {arguments.days}")
    if arguments.seed < 0:
        parser.error(f"--seed must not be negative, got {arguments.seed}")
    if arguments.plot is not None and (reason := online_plot.unable(arguments.plot)):
        parser.error(f"--plot {arguments.plot}: {reason}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)  # batches are small
    options = QUICK if arguments.quick else StreamOptions()
    days: list[dict[str, Figures]] = []
    for day in compare(options, arguments.days, arguments.seed):
        if not days:
            print_head(list(day))
        days.append(day)
        print_day(len(days), day)
    if arguments.plot is not None:
        online_plot.draw(days, arguments.plot)
        print(f"drawn: {arguments.plot}")


if __name__ == "__main__":
    main()
