"""Tries the damo_torchrec that is installed, as a user would: no test of pytest's, but a program for wheels.

    python tests/wheel_smoke.py                                # trains, saves, exports and serves
    python tests/wheel_smoke.py --without-torch                # what needs no torch
    python tests/wheel_smoke.py --beside rocksdict,pyarrow     # also with these at work in the same process

It needs nothing that is only in the source tree but the sample stores in tests/golden. What cannot be tried is said.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import damo_torchrec as damo

PROJECT = Path(__file__).resolve().parents[1]
GOLDEN = PROJECT / "tests" / "golden"
STEPS, BATCH, DIM = 60, 256, 8
LEAST_BUDGET = "64MiB"


def say(text: str) -> None:
    print(text, flush=True)


def mapped(name: str) -> set[Path]:
    """The files of this process's libraries whose name begins with it."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {path for line in lines if "/" in line and (path := Path(line[line.index("/") :])).name.startswith(name)}


def check_place(must_bundle: bool) -> None:
    """It is the installed package, with its own RocksDB if it was repaired, and with the kernels for ONNX Runtime."""
    from damo_torchrec import _core
    from damo_torchrec.cli import main  # noqa: F401  # the tool needs no more than numpy and tqdm

    package = Path(damo.__file__).parent
    assert package.parent != PROJECT, f"this is the source tree's package: {package}"
    libraries = mapped("librocksdb")
    bundled = {path for path in libraries if path.parent == package.parent / "damo_torchrec.libs"}
    assert libraries, "no RocksDB is loaded"
    assert libraries == bundled or not must_bundle, f"RocksDB is not the wheel's: {libraries}"
    assert (package / "libdamo_onnxruntime_ops.so").is_file()
    say(f"ok    damo_torchrec {damo.__version__} of {package}")
    say(f"ok    RocksDB {_core.ROCKSDB_VERSION} of {', '.join(map(str, sorted(libraries)))}")


def tool(*arguments: object) -> str:
    """What the command prints; it has to find everything sound."""
    command = [sys.executable, "-m", "damo_torchrec", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path.home())
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def use_the_tool(work: Path) -> None:
    """The machine is looked at, and what another RocksDB wrote is read by this one."""
    from damo_torchrec import _core

    report = json.loads(tool("doctor", "--json", work))
    assert report["schema"] == 1
    assert report["package"]["rocksdb"] == _core.ROCKSDB_VERSION
    assert report["package"]["onnx_kernels"]["loads"], report["package"]
    checkpoints = sorted(GOLDEN.glob("format_*/"))
    for checkpoint in checkpoints:
        tool("info", checkpoint)
        files = _core.list_table_files(str(checkpoint / "rows"))
        assert files
        for file in checkpoint.glob("rows/*.sst"):
            _core.verify_table_file(str(file))
    say(f"ok    doctor; info and table files of {', '.join(path.name for path in checkpoints)}")


def repair_sample(work: Path) -> None:
    """All rows that another RocksDB wrote are written anew by this one."""
    newest = max(GOLDEN.glob("format_*/"), key=lambda path: int(path.name.split("_")[1]))
    tool("verify", newest)
    tool("repair", newest, work / "repaired")
    tool("verify", work / "repaired")
    say(f"ok    verify and repair of {newest.name}")


def model_of(store: damo.EmbeddingStore) -> Any:
    import torch
    import torchrec

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            table = torchrec.EmbeddingBagConfig(
                name="t", embedding_dim=DIM, num_embeddings=1000, feature_names=["user", "item"]
            )
            self.bags = damo.EmbeddingBagCollection([table], torchrec.optim.RowWiseAdagrad, {"lr": 0.1}, store=store)
            self.top = torch.nn.Sequential(torch.nn.Linear(2 * DIM, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))

        def forward(self, features: torchrec.KeyedJaggedTensor) -> torch.Tensor:
            return self.top(self.bags(features).values())

    torch.manual_seed(0)
    return Model()


def sample(rng: np.random.Generator) -> tuple[Any, Any]:
    """Ids from all of int64; a user likes items of his own parity."""
    import torch
    from torchrec import KeyedJaggedTensor

    ids = rng.integers(0, 50, (2, BATCH))
    labels = torch.from_numpy((ids[0] % 2 == ids[1] % 2).astype(np.float32))
    ids = ids * 2**57 + np.iinfo(np.int64).min
    features = KeyedJaggedTensor(
        ["user", "item"], torch.from_numpy(ids.ravel()), lengths=torch.ones(2 * BATCH, dtype=torch.int64)
    )
    return features, labels


def train(model: Any, optimizer: Any, rng: np.random.Generator, steps: int) -> list[float]:
    from torch.nn.functional import binary_cross_entropy_with_logits

    losses = []
    for _ in range(steps):
        features, labels = sample(rng)
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(model(features).squeeze(-1), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def train_and_save(work: Path) -> None:
    """A training that learns, a checkpoint, and a second store that goes on from it with the same numbers."""
    import torch

    with damo.EmbeddingStore(work / "store", memory_budget=LEAST_BUDGET) as store:
        model = model_of(store)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        losses = train(model, optimizer, np.random.default_rng(0), STEPS)
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5]), losses
        damo.save_model(model, path=work / "checkpoint", optimizer=optimizer)
        went_on = train(model, optimizer, np.random.default_rng(1), 3)
    with damo.EmbeddingStore(work / "second", memory_budget=LEAST_BUDGET) as store:
        model = model_of(store)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        damo.load_model(work / "checkpoint", model, optimizer=optimizer)
        assert train(model, optimizer, np.random.default_rng(1), 3) == went_on
    for path in (work / "store", work / "checkpoint"):
        tool("verify", path)
    say(f"ok    training: loss {losses[0]:.3f} to {losses[-1]:.3f}; checkpoint, restored to the same numbers; verify")


SERVE = """
import sys
sys.modules.update(torch=None, torchrec=None, fbgemm_gpu=None)
import numpy as np, damo_torchrec as damo
given = np.load(sys.argv[1] + "/request.npz")
request = {name: given[name] for name in given.files if name != "expected"}
answer, = damo.onnx.session(sys.argv[1] + "/exported").run(None, request)
np.testing.assert_allclose(answer, given["expected"], atol=1e-5)
with damo.serving.Predictor(sys.argv[1] + "/served", memory_budget="64MiB") as predictor:
    np.testing.assert_allclose(predictor.predict(request)["output"], given["expected"], atol=1e-5)
"""


def export_and_serve(work: Path) -> None:
    """An ONNX file run by this package's kernels, and a predictor, in a process that has no torch."""
    import torch

    if not all(importable(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        say("SKIP  exports and serving")
        return
    with damo.EmbeddingStore(work / "exporting", memory_budget=LEAST_BUDGET) as store:
        model = model_of(store)
        damo.load_model(work / "checkpoint", model, optimizer=torch.optim.Adam(model.parameters()))
        model.eval()
        features, _ = sample(np.random.default_rng(2))
        damo.onnx.export(model, (features,), work / "exported")
        damo.serving.export(model, (features,), work / "served")
        with torch.no_grad():
            expected = model(features)
    request = {"features.values": features.values(), "features.lengths": features.lengths().view(2, BATCH)}
    np.savez(work / "request.npz", expected=expected, **request)
    subprocess.run([sys.executable, "-c", SERVE, str(work)], check=True, cwd=work)
    tool("verify", work / "exported")
    say("ok    exported; served without torch, by damo_torchrec's kernels in ONNX Runtime and by a predictor")


def importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a library of the system's that it needs
        say(f"SKIP  {name}: {error}")
        return False
    return True


def use_rocksdict(work: Path) -> None:
    import rocksdict

    other = rocksdict.Rdict(str(work / "rocksdict"))
    for key in range(5000):
        other[key] = bytes(100)
    assert other[4999] == bytes(100)
    other.flush()
    other.close()


def use_pyarrow(work: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"id": np.arange(100_000), "weight": np.random.default_rng(0).random(100_000)})
    parquet.write_table(table, work / "table.parquet", compression="zstd")
    assert parquet.read_table(work / "table.parquet").equals(table)


def use_faiss(work: Path) -> None:
    import faiss

    vectors = np.random.default_rng(0).random((5000, DIM), dtype=np.float32)
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    index.search(vectors, 5)


def use_lightgbm(work: Path) -> None:
    import lightgbm

    rng = np.random.default_rng(0)
    inputs = rng.random((2000, 5))
    settings = {"objective": "binary", "verbose": -1}
    lightgbm.train(settings, lightgbm.Dataset(inputs, inputs[:, 0] > 0.5), num_boost_round=10)


NEIGHBOURS: dict[str, Callable[[Path], None]] = {
    "rocksdict": use_rocksdict,
    "pyarrow": use_pyarrow,
    "faiss": use_faiss,
    "lightgbm": use_lightgbm,
}


def work_beside(names: list[str], work: Path) -> None:
    """They and a training at work at the same time, in threads of one process."""
    errors: list[str] = []

    def repeat(name: str) -> None:
        try:
            for number in range(3):
                place = work / f"{name}-{number}"
                place.mkdir()
                NEIGHBOURS[name](place)
        except BaseException as error:
            errors.append(f"{name}: {error!r}")

    threads = [threading.Thread(target=repeat, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    train_and_save(work)
    for thread in threads:
        thread.join()
    assert not errors, errors
    say(f"ok    beside {', '.join(names) or 'nothing'}, in one process")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without-torch", action="store_true", help="try what needs no torch, and no more")
    parser.add_argument("--unrepaired", action="store_true", help="RocksDB may be the system's")
    parser.add_argument(
        "--beside", type=lambda text: text.split(","), default=[], metavar="A,B", help=f"of {', '.join(NEIGHBOURS)}"
    )
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    # Before this package is used: would their libraries take the place of ours?
    beside = [name for name in options.beside if importable(name)]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        check_place(must_bundle=not options.unrepaired)
        use_the_tool(work)
        if options.without_torch:
            say("SKIP  training, exports, serving: asked to do without torch")
            return
        repair_sample(work)
        (work / "alone").mkdir()
        train_and_save(work / "alone")
        export_and_serve(work / "alone")
        if options.beside:
            (work / "beside").mkdir()
            work_beside(beside, work / "beside")


if __name__ == "__main__":
    main()
