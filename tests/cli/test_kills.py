"""A kill (SIGKILL) at any change of the disk that ``prune`` and ``drop-table`` make leaves a store that is whole."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import damo_torchrec as damo
from damo_torchrec.cli import main as cli

# Runs the tool in a process of its own for each place, which is killed there: at so manyth change of the file system,
# or not at all where there are no more. Prints how each ended.
EACH = """
import json, os, signal, sys
sys.argv[0] = "damo-torchrec"
from damo_torchrec.cli import main
import damo_torchrec.store.embedding_store

def changes(event, arguments):
    if event == "open":
        mode = arguments[1]
        return isinstance(mode, str) and mode.strip("rbt") != ""
    return event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")

def kill_at(place):
    left = place
    def look(event, arguments):
        nonlocal left
        if changes(event, arguments):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(look)

for line in sys.argv[1:]:
    place, words = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        kill_at(place)
        os._exit(main.main(words))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
PLACES = 60


@pytest.mark.slow
@pytest.mark.parametrize("words", [["prune", "--keep", "1"], ["drop-table", "half"]], ids=["prune", "drop-table"])
def test_a_kill_anywhere_leaves_a_whole_store(words, trained, tmp_path, call):
    command, *rest = words
    if command == "prune":
        with damo.EmbeddingStore(trained, memory_budget="64MiB", options=damo.StoreOptions(keep_checkpoints=None)) as s:
            for _ in range(3):
                s.table("t").delete([5])
                s.table("t").set([5], s.table("t").get([9]))
                s.checkpoint()
    stores = [tmp_path / f"store-{place}" for place in range(1, PLACES + 1)]
    lines = []
    for place, store in enumerate(stores, start=1):
        shutil.copytree(trained, store)
        lines.append(json.dumps([place, [command, str(store), *rest, "--yes", "-q"]]))
    done = subprocess.run([sys.executable, "-c", EACH, *lines], capture_output=True, text=True, check=True)
    statuses = [int(status) for status in done.stdout.split()]
    killed = statuses.count(-9)
    assert statuses == [-9] * killed + [0] * (PLACES - killed)
    assert killed > 3
    for store in stores[: killed + 1]:
        check_whole(store, command, rest, call)


def check_whole(store: Path, command: str, rest: list[str], call) -> None:
    """What is there is sound, it is as before or as after, and the same command gets it done."""
    assert call("verify", store)[0] == 0
    _, lines, _ = call("info", store, "--json")
    document = json.loads(lines[0])
    assert document["unreadable"] == []
    tables = [set(checkpoint["tables"]) for checkpoint in document["checkpoints"]]
    assert tables[-1] in ({"t", "half"}, {"t"})
    damo.EmbeddingStore(store, memory_budget="64MiB", restore="latest").close()
    status, _, err = call(command, store, *rest, "--yes")
    if command == "drop-table" and tables[-1] == {"t"}:  # it was done
        assert (status, "has no table 'half'" in err or "no table" in err) == (2, True)
    else:
        assert status == 0
    assert cli.main(["verify", str(store), "-q"]) == 0
    with damo.EmbeddingStore(store, memory_budget="64MiB", read_only=True, restore="latest") as opened:
        assert len(opened.table("t")) == 5
        assert set(opened.tables()) == ({"t"} if command == "drop-table" else {"t", "half"})
