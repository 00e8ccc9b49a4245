#!/usr/bin/env python3
"""A shop's days: each is predicted, trained on, saved and published by a job of its own, while a server answers.

The days are Parquet files of users, items and clicks, of the stream of online_stream.py; users and items are strings.
The job, in a new process each day, is daily_job.py; this program has it run, and is the server meanwhile: a Predictor
that is asked with the strings, and follows by deltas. It prints the AUC of each day, as predicted before training on
it, of

  ours        damo_torchrec: a row for each string that has come, in its job
  served      the same, as the server answers the evening before
  vocabulary  TorchRec's EmbeddingBagCollection with a row for each string of all days, which no shop knows beforehand
  hashed      the same, as many rows, which strings share by their hash
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

import damo_torchrec as damo
from daily_training import SALT, Trainee, auc, batches, day_file, peers, write_day
from online_models import TABLES
from online_stream import StreamOptions, stream

FULL = StreamOptions(users=4000, items=1000, impressions=30_000)
QUICK = StreamOptions(users=300, items=100, impressions=2000)
JOB = Path(__file__).with_name("daily_job.py")


def run_job(directory: Path, day: int) -> dict[str, float]:
    done = subprocess.run([sys.executable, JOB, directory, str(day)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def strings_of_all_days(directory: Path, days: int) -> dict[str, np.ndarray]:
    """Their ids, in order."""
    tables = [pq.read_table(day_file(directory, day)) for day in range(1, days + 1)]
    return {
        name: np.unique(np.concatenate([damo.ids.hash_strings(table[name], SALT) for table in tables]))
        for name in TABLES
    }


def ask(predictor: damo.serving.Predictor, directory: Path, day: int) -> float:
    """The AUC of what a server says of a day, asked with its strings."""
    table = pq.read_table(day_file(directory, day)).to_pydict()
    request = {name: [[string] for string in table[name]] for name in TABLES}
    return auc(batches(day_file(directory, day)), predictor.predict({"features": request})["output"])


def one_day(trainee: Trainee, directory: Path, day: int) -> float:
    data = batches(day_file(directory, day))
    score = auc(data, trainee.predict(data))
    trainee.train(data)
    return score


def main(directory: Path, days: int, options: StreamOptions) -> None:
    torch.set_num_threads(1)  # batches are small
    for day in stream(options, days, seed=0):
        write_day(directory, day)
    known = strings_of_all_days(directory, days)
    compared = peers(known)
    print(f"{sum(len(ids) for ids in known.values()):,} users and items in {days} days\n")
    print(" day      ours    served" + "".join(f"{name:>12}" for name in compared) + "     rows of ours")
    run_job(directory, 1)
    for trainee in compared.values():
        one_day(trainee, directory, 1)
    with damo.serving.Predictor(directory / "served", memory_budget="64MiB", num_threads=1) as predictor:
        for day in range(2, days + 1):
            served = ask(predictor, directory, day)
            ours = run_job(directory, day)
            for delta in sorted((directory / "deltas").iterdir())[predictor.stats().deltas_applied :]:
                predictor.apply_delta(delta)
            others = "".join(f"{one_day(trainee, directory, day):12.4f}" for trainee in compared.values())
            print(f"{day:4}{ours['auc']:10.4f}{served:10.4f}{others}{sum(ours['rows'].values()):17,}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, help="default: 12; 3 with --quick")
    parser.add_argument("--quick", action="store_true", help="a small stream")
    arguments = parser.parse_args()
    number = arguments.days or (3 if arguments.quick else 12)
    if number < 2:
        parser.error(f"--days must be at least 2: the first has nothing to predict from; got {number}")
    with tempfile.TemporaryDirectory(prefix="daily-") as scratch:
        main(Path(scratch), number, QUICK if arguments.quick else FULL)
