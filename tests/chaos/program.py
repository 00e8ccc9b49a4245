"""Kills a training process again and again, at random instants, and checks each time that nothing is lost or mixed.

    PYTHONPATH=tests python -m chaos.program --minutes 60 --seed 0 --directory DIR

What is killed is tests/chaos/training.py: by SIGKILL for the most part, sometimes by SIGTERM or SIGINT. The next
process opens the store. What it finds must be the last checkpoint that was reported complete, or the one that was under
way, to the last bit of rows, dense weights, optimizers, losses and random numbers, as a training that nothing disturbs
has them. A training that comes to its end makes place for one with the next seed.

Ends with status 1, and leaves the directory as it is, if something is wrong.
"""

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from chaos.model import STEPS
from chaos.run import Plan, Run, Tally, undisturbed_training


def chaos(directory: Path, seed: int, enough: Callable[[Tally], bool]) -> Tally:
    """Trains and kills until `enough` says so, then lets the training come to its end.

    Raises:
        AssertionError: something is wrong; `directory` holds the store.
    """
    dice = random.Random(seed)
    tally = Tally()
    for number in itertools.count(seed):
        if enough(tally):
            break
        path = directory / f"run_{number}"
        with undisturbed_training(number) as undisturbed:
            run = Run(path, number, undisturbed, tally)
            while not run.finished and not enough(tally):
                run.live(Plan.draw(dice), dice.getrandbits(32))
            for _ in range(2):  # to its end, and from there
                run.live(Plan.NOTHING, dice.getrandbits(32))
            assert run.finished, "a training that nothing disturbs has not come to its end"
        tally.runs += 1
        shutil.rmtree(path)
    return tally


def in_words(tally: Tally) -> str:
    """What was done, in a table by phase and signal and a few lines."""
    signals = sorted({signal for signal, _ in tally.hits})
    phases = {phase: [tally.hits[signal, phase] for signal in signals] for _, phase in sorted(tally.hits)}
    again = tally.steps - STEPS * tally.runs
    return "\n".join(
        [
            f"{'':12}" + "".join(f"{signal:>10}" for signal in signals),
            *(f"{phase:12}" + "".join(f"{count:10,}" for count in counts) for phase, counts in phases.items()),
            "",
            f"{tally.hits.total():,} signals; {tally.openings:,} openings, {tally.compared:,} states compared whole",
            f"{tally.saved:,} checkpoints with a dense part, {tally.closed:,} of rows at closing",
            f"{tally.runs:,} trainings of {STEPS} steps; {again:,} more steps after a checkpoint, made again",
            "lost or mixed: nothing",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of trainings and kills (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="for the stores (default: a temporary one)")
    arguments = parser.parse_args()
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="damo-chaos-"))
    end = time.monotonic() + 60 * arguments.minutes
    try:
        tally = chaos(directory, arguments.seed, lambda _: time.monotonic() >= end)
    except AssertionError as error:
        print(f"{error}\nFAILED with --seed {arguments.seed}; the store is in {directory}", file=sys.stderr)
        return 1
    print(in_words(tally))
    if arguments.directory is None:
        directory.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
