"""`damo_torchrec.checkpoints.layout`: names are told apart as they are made."""

import os

import pytest

from damo_torchrec.checkpoints import layout

ROWS_OF_A_CHECKPOINT = ["000008.sst", "000009.log", "CURRENT", "MANIFEST-000005", "OPTIONS-000007"]


def test_files_of_rows_are_told_apart():
    def those(kind):
        return [name for name in ROWS_OF_A_CHECKPOINT if kind(name)]

    assert those(layout.is_table_file) == ["000008.sst"]
    assert those(layout.is_log) == ["000009.log"]
    assert those(layout.holds_rows) == ["000008.sst", "000009.log"]
    assert those(layout.selects_rows) == ["000009.log", "CURRENT", "MANIFEST-000005"]
    assert layout.is_log("rows/000009.log")


def test_logs_come_in_the_order_of_their_numbers(tmp_path):
    for name in ("1000000.log", "000010.log", "999999.log", "000011.sst"):
        (tmp_path / name).touch()
    assert [log.name for log in layout.logs(tmp_path)] == ["000010.log", "999999.log", "1000000.log"]


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("Corruption: block checksum mismatch in /a/b/000008.sst offset 4096", "000008.sst"),
        ("IO error: No such file or directory: /a/b/000008.ldb", "000008.sst"),
        ("Corruption: no meta-nextfile entry in descriptor", None),
    ],
)
def test_the_table_file_that_a_message_names(message, name):
    assert layout.table_file_in(message) == name


def test_what_is_unfinished_is_not_complete(tmp_path):
    names = ["step_1", layout.checkpoint_name(1, 2), layout.staged_name("step_2"), layout.removed_name("step_0")]
    assert names == ["step_1", "step_1.2", f".step_2.{os.getpid()}.0.damo-staged", ".step_0.0.damo-removed"]
    for name in names:
        (tmp_path / name).mkdir()
    assert {path.name for path in layout.complete_entries(tmp_path)} == set(names[:2])
    assert {path.name for path in layout.unfinished_entries(tmp_path)} == set(names[2:])
