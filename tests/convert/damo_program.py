"""A program for a process of its own: what Damo-Embedding 1.1.12 makes of gradients, and what it dumps.

Called with two files: JSON of ``embeddings`` (its configuration, a group each), ``pushes`` (``[group, keys,
gradients]``, one after the other) and ``dump`` (a path, or null); and where the weights of the keys go, before and
after each push. It prints to stdout what it likes.
"""

import json
import sys
import tempfile
from pathlib import Path

import damo  # of the wheel, whose directory is in PYTHONPATH
import numpy as np


def main(source, target):
    given = json.loads(Path(source).read_text())
    with tempfile.TemporaryDirectory() as directory:
        configuration = {"dir": f"{directory}/rows", "ttl": 86400, "embeddings": given["embeddings"]}
        file = Path(directory) / "configuration.json"
        file.write_text(json.dumps(configuration))
        rows = damo.PyDamo(str(file))
        dims = {embedding["group"]: embedding["dim"] for embedding in given["embeddings"]}

        def pull(group, keys):
            weights = np.zeros(len(keys) * dims[group], dtype=np.float32)
            rows.pull(group, np.array(keys, dtype=np.int64), weights)
            return weights.reshape(len(keys), -1).tolist()

        results = []
        for step, (group, keys, gradients) in enumerate(given["pushes"], start=1):
            before = pull(group, keys)
            flat = np.array(gradients, dtype=np.float32).reshape(-1)
            rows.push(step, group, np.array(keys, dtype=np.int64), flat)
            results.append([before, pull(group, keys)])
        if given["dump"]:
            rows.dump(given["dump"])
        Path(target).write_text(json.dumps(results))


main(*sys.argv[1:])
