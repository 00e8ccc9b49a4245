"""`damo-torchrec`: what all of its commands share."""

import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from convert.dumps import FILE
from damo_torchrec.cli import main as cli

# The program where torch, TorchRec and FBGEMM are not installed.
WITHOUT_TORCH = """
import sys
import types
sys.modules.update(torch=None, torchrec=None, fbgemm_gpu=None)
sys.argv[0] = "damo-torchrec"
from damo_torchrec.cli.main import main
sys.exit(main())
"""


def run_without_torch(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_wrong_usage_has_a_status_of_its_own(sample, call, tmp_path):
    for arguments in [
        ("info", tmp_path),
        ("verify", tmp_path / "absent"),
        ("repair", tmp_path, tmp_path / "out"),
        ("repair", sample.store, tmp_path),
    ]:
        status, lines, err = call(*arguments)
        assert (status, lines) == (2, [])
        assert err.startswith(f"damo-torchrec: {tmp_path}")
    for arguments in [[], ["verify"], ["mend", "x"]]:
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert left.value.code == 2


def test_the_entry_point_is_the_tool():
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert '[project.scripts]\ndamo-torchrec = "damo_torchrec.cli.main:main"\n' in project.read_text()


def test_rows_are_looked_after_without_torch(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB"):
        pass
    assert run_without_torch("info", tmp_path / "store")[0] == 0
    status, out, _ = run_without_torch("verify", tmp_path / "store")
    assert status == 0
    assert "checkpoints are sound" in out
    assert run_without_torch("repair", tmp_path / "store", tmp_path / "repaired")[0] == 0
    status, _, err = run_without_torch("forget", tmp_path / "store", "t", 1)
    assert status == 2
    assert "no table 't'" in err
    status, out, err = run_without_torch("convert", "damo-dump", FILE, tmp_path / "converted")
    assert (status, out) == (2, "")
    assert err.startswith("damo-torchrec: damo_torchrec needs torch, TorchRec and FBGEMM in versions that fit")


def test_the_dense_part_needs_torch_and_says_so(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        model = torch.nn.ModuleList([damo.Embedding(4, store=store), torch.nn.Linear(2, 1)])
        damo.save_model(model, path=tmp_path / "checkpoint")
    assert run_without_torch("info", tmp_path / "checkpoint")[0] == 0
    status, _, err = run_without_torch("verify", tmp_path / "checkpoint")
    assert status == 2
    assert err.startswith("damo-torchrec: damo_torchrec needs torch, TorchRec and FBGEMM in versions that fit")


def test_a_conversion_needs_torch_and_says_so(tmp_path):
    status, _, err = run_without_torch("convert", "damo-dump", tmp_path / "dump", tmp_path / "store")
    assert status == 2
    assert err.startswith("damo-torchrec: damo_torchrec needs torch, TorchRec and FBGEMM in versions that fit")


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "damo_torchrec", *map(str, arguments)]


@pytest.mark.parametrize("missing", ["numpy", "tqdm", "damo_torchrec._core"])
def test_a_package_that_is_missing_ends_the_program_with_a_sentence(missing):
    command = [sys.executable, "-c", f"import sys; sys.modules[{missing!r}] = None\n{WITHOUT_TORCH}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("damo-torchrec: ")
    assert missing in done.stderr


@pytest.mark.parametrize("arguments", [("verify",), ("info",), ("--help",)])
def test_a_reader_that_has_enough_is_no_damage(sample, arguments):
    arguments = arguments if arguments == ("--help",) else (*arguments, sample.store)
    with subprocess.Popen(program(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (128 + signal.SIGPIPE, "")


def test_output_that_cannot_be_written_is_no_damage(sample, tmp_path):
    store = tmp_path / "store"
    for arguments, done in [
        (("info", sample.store), ""),
        (("convert", "damo-dump", FILE, store), f"; the store {store} is made"),
    ]:
        with open("/dev/full", "w") as full:
            ended = subprocess.run(program(*arguments), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert ended.returncode == 2
        reason = "[Errno 28] No space left on device"
        assert ended.stderr == f"damo-torchrec: cannot write to standard output: {reason}{done}\n"
        with open("/dev/full", "w") as full:
            assert subprocess.run(program("info", tmp_path), stderr=full, check=False).returncode == 2
    assert store.is_dir()


def test_what_the_output_has_no_characters_for_is_escaped(trained):
    assert cli.main(["rename-table", str(trained), "t", "\u00fc"]) == 0
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = program("drop-table", trained, "\u00fc", "--yes")
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("table '\\xfc', with ")


INTERRUPTED = """
import os, signal, sys
from damo_torchrec.cli import info, main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started with it ignored
def interrupted(path):
    os.kill(os.getpid(), signal.SIGINT)
info.checkpoints_of = interrupted
sys.exit(main.main(["info", "store"]))
"""


def test_an_interrupt_ends_the_program_without_a_traceback():
    script = f"import sys; sys.argv[0] = 'damo-torchrec'\n{INTERRUPTED}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "damo-torchrec: interrupted\n")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (damo.OutOfSpaceError("full"), 2),
        (damo.CorruptionError("damaged"), 1),
        (PermissionError(13, "refused"), 2),
        (OSError(5, "unreadable"), 1),
    ],
)
def test_only_damage_has_the_status_of_damage(monkeypatch, call, error, status):
    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr("damo_torchrec.cli.info.checkpoints_of", fail)
    assert call("info", "store") == (status, [], f"damo-torchrec: {error}\n")


def test_its_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert (left.value.code, capsys.readouterr().out) == (0, f"damo-torchrec {damo.__version__}\n")


def test_completion_is_shtabs(capsys, monkeypatch):
    def complete(parser, shell):
        return f"{parser.prog} in {shell}"

    monkeypatch.setitem(sys.modules, "shtab", types.SimpleNamespace(complete=complete))
    with pytest.raises(SystemExit) as left:
        cli.main(["--print-completion", "zsh"])
    assert (left.value.code, capsys.readouterr().out) == (0, "damo-torchrec in zsh\n")


def test_completion_without_shtab_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as left:
        cli.main(["--print-completion", "bash"])
    assert left.value.code == 2
    assert "pip install shtab" in capsys.readouterr().err


def test_completion_is_a_script_that_bash_takes(capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit):
        cli.main(["--print-completion", "bash"])
    subprocess.run(["bash", "-n"], input=capsys.readouterr().out, text=True, check=True)


@pytest.mark.parametrize("command", ["head", "get", "stats", "top", "diff", "expired"])
def test_rows_are_read_without_torch(trained_once, command):
    more = {"get": ["t", 5], "stats": [], "diff": [trained_once], "expired": ["t", "--since", "then"]}.get(
        command, ["t"]
    )
    status, out, err = run_without_torch(command, trained_once, *more)
    assert (status, err) == (0, "")
    assert out


def test_rows_come_and_go_without_torch(trained, tmp_path):
    pytest.importorskip("pyarrow")
    file = tmp_path / "rows.parquet"
    for arguments in [
        ("export", trained, "t", file, "--state", "--counts"),
        ("import", trained, "u", file),
        ("delete", trained, "t", 5, "--yes"),
        ("drop-table", trained, "t", "--yes"),
        ("rename-table", trained, "u", "t"),
        ("compact", trained),
        ("prune", trained, "--keep", 1, "--yes"),
    ]:
        status, out, err = run_without_torch(*arguments)
        assert (status, err) == (0, "")
        assert out
