"""What holds for every command: Ctrl-C, a closed pipe, wrong arguments, damage, a document, and its page."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import damo_torchrec as damo
from convert.dumps import FILE
from damage import flip
from damo_torchrec.cli import main as cli
from support import WITHOUT_ONNXRUNTIME

# What each is called with here. {store} is a store, {then} an earlier checkpoint of it, {out} a path that is not there.
ARGUMENTS = {
    "info": "{store}",
    "head": "{store} t",
    "get": "{store} t 5 -7",
    "stats": "{store}",
    "top": "{store} t",
    "diff": "{then} {store}",
    "export": "{store} t {out}.parquet",
    "import": "{store} u {rows}",
    "verify": "{store}",
    "repair": "{store} {out}",
    "expired": "{store} t --since then",
    "prune": "{store} --keep 1 --yes",
    "delete": "{store} t 5 --yes",
    "drop-table": "{store} t --yes",
    "rename-table": "{store} t u",
    "compact": "{store}",
    "forget": "{store} t 5",
    "convert": f"damo-dump {FILE} {{out}}",
    "serve": "{export} --dry-run --memory-budget 64MiB",
    "doctor": "{store} --no-reads",
    "bench": "{directory} --rows 4000 --batch-size 64 --seconds 0.05 --budget 64MiB",
    "advise": "{store}",
    "report": "{store} -o {out}.html",
}
TRIED = [command for command in ARGUMENTS if command != "serve" or not WITHOUT_ONNXRUNTIME]
OF_STORES = [command for command in TRIED if command not in ("doctor", "bench")]
CHANGE = {
    "import",
    "prune",
    "delete",
    "drop-table",
    "rename-table",
    "compact",
    "forget",
}  # the store, or remove something of it
READ_ROWS = {"head", "stats", "top", "diff", "export", "expired", "delete", "compact", "report"}
NEW = {"convert"}  # where there may be nothing before
PAGE = Path(__file__).parents[2] / "docs" / "command_line.md"


@pytest.fixture(autouse=True, scope="module")
def rows(trained_once, tmp_path_factory) -> Path:
    """A file of rows."""
    pytest.importorskip("pyarrow")
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    assert cli.main(["export", str(trained_once), "t", str(file)]) == 0
    arguments.rows = file
    return file


@pytest.fixture(autouse=True, scope="module")
def export(request) -> Path | None:
    """An export of a model, where there is an ONNX Runtime."""
    arguments.export = None if WITHOUT_ONNXRUNTIME else request.getfixturevalue("served")[1] / "one"
    return arguments.export


def arguments(command: str, store: Path, out: Path) -> list[str]:
    names = {"store": store, "then": store / "checkpoints" / "then", "out": out, "rows": arguments.rows}
    names["directory"] = store.parent
    names["export"] = arguments.export if store.exists() else store
    return [command, *(word.format(**names) for word in ARGUMENTS[command].split())]


def test_all_commands_are_tried_and_told_of():
    assert {command.name for command in cli.COMMANDS} == ARGUMENTS.keys()
    assert re.findall(r"^### `([a-z-]+)", PAGE.read_text(), re.M) == list(ARGUMENTS)


@pytest.mark.parametrize("command", TRIED)
def test_one_document_has_what_a_command_says(command, trained, tmp_path, call):
    status, lines, _ = call(*arguments(command, trained, tmp_path / "out"), "--json", "-q")
    document = json.loads("\n".join(lines))
    assert status == 0
    assert (document["schema"], document["command"]) == (1, command)
    named = set(re.findall(r"`(\w+)`", PAGE.read_text().split(f"\n### `{command}")[1].split("\n### ")[0]))
    assert document.keys() - {"schema", "command"} <= named


@pytest.mark.parametrize("command", OF_STORES)
def test_wrong_arguments_are_wrong_usage(command, call, tmp_path, capsys):
    for wrong in ([command], [command, *arguments(command, tmp_path, tmp_path)[1:], "--no-such-option"]):
        with pytest.raises(SystemExit) as left:
            call(*wrong)
        assert left.value.code == 2
        assert capsys.readouterr().out == ""
    nowhere = tmp_path / "nowhere"
    if command not in NEW:
        status, lines, err = call(*arguments(command, nowhere, tmp_path / "out"))
        assert (status, lines) == (2, [])
        assert err.startswith("damo-torchrec: ")
        assert "nowhere" in err
        assert not nowhere.exists()


@pytest.mark.parametrize("command", sorted(READ_ROWS))
def test_damage_has_the_status_of_damage(command, trained, tmp_path, call):
    newest = max((trained / "checkpoints").glob("step_*"))
    for file in (newest / "rows").glob("*.sst"):
        flip(file, 40)
    status, _, err = call(*arguments(command, trained, tmp_path / "out"))
    assert status == 1
    assert "damaged" in err or "checksum" in err


# Runs the tool once for each line of JSON in argv, each in a process of its own, and prints how these ended.
EACH = """
import json, os, signal, sys, warnings
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # from Python 3.12 on, of the threads that torch has
sys.argv[0] = "damo-torchrec"
from damo_torchrec.cli import main
import damo_torchrec.store.embedding_store, damo_torchrec.inspection.comparison, damo_torchrec.convert.arrow_files
import damo_torchrec.serving.predictor
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started with it ignored
signal.signal(signal.SIGPIPE, signal.SIG_IGN)

def interrupt(calls):
    left = calls
    def count(frame, event, argument):
        nonlocal left
        if event == "call" and f"damo_torchrec{os.sep}checkpoints" in frame.f_code.co_filename:
            left -= 1
            if left == 0:
                sys.setprofile(None)
                os.kill(os.getpid(), signal.SIGINT)
    sys.setprofile(count)

how = sys.argv[1]
for line in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        if how == "interrupt":
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            interrupt(3)
        else:
            read, write = os.pipe()
            os.close(read)
            os.dup2(write, 1)
        status = main.main(json.loads(line))
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, flush=True)
"""


def run_each(how: str, lines: list[list[str]]) -> tuple[list[int], str]:
    command = [sys.executable, "-c", EACH, how, *map(json.dumps, lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(status) for status in done.stdout.split()], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("how", "status", "said"), [("interrupt", -2, "interrupted"), ("pipe", 141, None)])
def test_an_interrupt_and_a_closed_pipe_end_it_without_a_traceback(how, status, said, trained, tmp_path, call):
    lines = []
    for command in OF_STORES:
        shutil.copytree(trained, tmp_path / command)
        lines.append(arguments(command, tmp_path / command, tmp_path / f"out-{command}"))
    statuses, err = run_each(how, lines)
    assert dict(zip(OF_STORES, statuses, strict=True)) == dict.fromkeys(OF_STORES, status)
    assert [line for line in err.splitlines() if line != f"damo-torchrec: {said}"] == []
    for command in CHANGE:  # which leave a store that is whole
        assert call("verify", tmp_path / command)[0] == 0


@pytest.mark.parametrize("command", sorted(CHANGE - {"import", "prune", "compact"}))
def test_a_dry_run_changes_nothing(command, trained, tmp_path, call):
    before = {file: file.read_bytes() for file in trained.rglob("*") if file.is_file() and file.name != "LOCK"}
    status, lines, _ = call(*arguments(command, trained, tmp_path), "--dry-run")
    assert status == 0
    assert any("would be" in line for line in lines)
    assert {file: file.read_bytes() for file in trained.rglob("*") if file.is_file() and file.name != "LOCK"} == before


@pytest.mark.parametrize("command", sorted(CHANGE))
def test_a_store_that_is_open_is_left_alone(command, trained, tmp_path, call):
    with damo.EmbeddingStore(trained, memory_budget="64MiB"):
        status, lines, err = call(*arguments(command, trained, tmp_path))
    assert (status, lines) == (2, [])
    assert "is open already" in err


@pytest.mark.parametrize("command", ["prune", "delete", "drop-table"])
def test_without_a_terminal_a_deletion_needs_yes(command, trained, tmp_path, call, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    words = [word for word in arguments(command, trained, tmp_path) if word != "--yes"]
    status, lines, err = call(*words)
    assert (status, lines) == (2, [])
    assert "There is no terminal to answer on: give --yes, or --dry-run" in err


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 2), ("", 2)])
@pytest.mark.parametrize("command", ["prune", "delete", "drop-table"])
def test_a_terminal_is_asked(command, trained, tmp_path, call, monkeypatch, answer, status):
    checkpoints = len([*(trained / "checkpoints").iterdir()])
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    words = [word for word in arguments(command, trained, tmp_path) if word != "--yes"]
    returned, _, err = call(*words)
    assert returned == status
    assert "? [y/N] " in err
    assert ("nothing was done" in err) == (status != 0)
    if status:
        assert len([*(trained / "checkpoints").iterdir()]) == checkpoints
