"""`damo-torchrec convert`."""

import json

import pytest

from convert.dumps import EMBEDDINGS, FILE, ROWS
from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.manifest import Manifest

COUNTS = [
    f"table 'group_{group}_dim_{len(next(iter(rows.values())))}': {len(rows)} rows" for group, rows in ROWS.items()
]


def schemas(store):
    tables = Manifest.read(CheckpointLine.of_store(store).newest()).tables
    return [(table.schema.optimizer["name"], table.schema.initializer["name"]) for table in tables.values()]


def test_a_dump_becomes_a_store(call, tmp_path):
    status, lines, err = call("convert", "damo-dump", FILE, tmp_path / "store")
    assert (status, lines, err) == (0, [f"store {tmp_path / 'store'}", *COUNTS], "")
    assert schemas(tmp_path / "store") == [("ADAM", "Uniform")] * 3


def test_options_say_what_a_dump_does_not(call, tmp_path):
    initializer = '{"name": "truncate_normal", "stddev": 0.01}'
    options = ("--optimizer", "lion", "--initializer", initializer, "--seed", "3", "--memory-budget", "64MiB")
    assert call("convert", "damo-dump", FILE, tmp_path / "a", *options)[0] == 0
    assert schemas(tmp_path / "a") == [("LION", "TruncatedNormal")] * 3

    (tmp_path / "configure.json").write_text(json.dumps({"dir": "x", "ttl": 1, "embeddings": EMBEDDINGS[:2]}))
    options = ("--configure", tmp_path / "configure.json", "--optimizer", '{"name": "amsgrad"}')
    assert call("convert", "damo-dump", FILE, tmp_path / "b", *options)[0] == 0
    assert schemas(tmp_path / "b") == [("SGD", "Constant")] * 2 + [("AMSGRAD", "Uniform")]


@pytest.mark.parametrize(
    ("arguments", "status", "what"),
    [
        (("{file}", "{tmp}"), 2, "exists already: a store needs a new directory"),
        (("{tmp}/none", "{tmp}/store"), 2, "No such file"),
        (("{tmp}", "{tmp}/store"), 2, "is no regular file"),
        (("{file}", "{tmp}/store", "--seed", str(2**127)), 2, "seed must fit 128 bits"),
        (("{file}", "{tmp}/store", "--configure", "{tmp}"), 2, "Is a directory"),
        (("{tmp}/text", "{tmp}/store"), 1, "is no dump of Damo-Embedding"),
        (("{file}", "{tmp}/store", "--optimizer", "rmsprop"), 2, "optimizer's name must be one of"),
        (("{file}", "{tmp}/store", "--memory-budget", "1KiB"), 2, "memory_budget must be at least"),
        (("{file}", "{tmp}/store", "--configure", "{tmp}/text"), 2, "is not what get_damo_embedding_configure gives"),
        (("{file}", "{tmp}/store", "--configure", "{tmp}/none"), 2, "No such file"),
    ],
)
def test_what_cannot_be_converted_says_why(call, tmp_path, arguments, status, what):
    (tmp_path / "text").write_text("{}")
    given = [argument.format(tmp=tmp_path, file=FILE) for argument in arguments]
    returned, lines, err = call("convert", "damo-dump", *given)
    assert (returned, lines) == (status, [])
    assert what in err
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_a_dict_that_is_no_json_is_wrong_usage(call, tmp_path):
    with pytest.raises(SystemExit) as left:
        call("convert", "damo-dump", FILE, tmp_path / "store", "--optimizer", "{adam}")
    assert left.value.code == 2
