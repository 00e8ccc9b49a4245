"""Damo-Embedding's dumps into stores."""

import itertools
import os
import random
import struct

import pytest
import torch

import damo_torchrec as damo
from convert.dumps import EMBEDDINGS, FILE, PUSHES, ROWS, head, head_of_256, records
from damo_torchrec.convert import DamoDump, GroupDicts, convert_damo_dump


def rows_of(store):
    """Weights by group, then key."""
    with damo.EmbeddingStore(store, memory_budget="64MiB") as opened:
        tables = {int(name.split("_")[1]): table.to_torch() for name, table in opened.tables().items()}
    return {
        group: {int(key): row for key, row in zip(keys, weights.tolist(), strict=True)}
        for group, (keys, weights) in tables.items()
    }


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def converted(tmp_path):
    """Makes a store of a dump with these bytes: its directory."""

    def convert(content, **options):
        (tmp_path / "dump").write_bytes(content)
        convert_damo_dump(tmp_path / "dump", tmp_path / "store", memory_budget="64MiB", **options)
        assert names(tmp_path) == ["dump", "store"]
        return tmp_path / "store"

    return convert


@pytest.fixture
def refused(tmp_path):
    """Tries to: what it says."""

    def convert(content, **options):
        (tmp_path / "dump").write_bytes(content)
        with pytest.raises((damo.CorruptionError, ValueError)) as error:
            convert_damo_dump(tmp_path / "dump", tmp_path / "store", memory_budget="64MiB", **options)
        assert names(tmp_path) == ["dump"]
        return str(error.value)

    return convert


def test_what_1_1_12_has_dumped(converted):
    content = FILE.read_bytes()
    assert sorted(content[: len(head(ROWS))]) == sorted(head(ROWS))
    assert rows_of(converted(content)) == ROWS


@pytest.mark.slow
def test_what_1_1_12_dumps_today(damo_embedding, tmp_path):
    damo_embedding(EMBEDDINGS, PUSHES, tmp_path / "dump")
    assert (tmp_path / "dump").read_bytes() == FILE.read_bytes()


@pytest.mark.parametrize("make_head", [head, head_of_256])
@pytest.mark.parametrize("order", ["by group", "mixed"])
def test_both_layouts_in_any_order(converted, make_head, order):
    body = records(ROWS)
    if order == "mixed":
        random.Random(3).shuffle(body)
    assert rows_of(converted(make_head(ROWS) + b"".join(body))) == ROWS


def test_more_rows_than_are_read_at_a_time(converted):
    rows = {0: {key: [float(key), 0.5] for key in range(9000)}, 65535: {key: [float(key)] * 5000 for key in range(300)}}
    assert rows_of(converted(head(rows) + b"".join(records(rows)))) == rows


def test_a_program_goes_on_from_there(converted):
    store = converted(
        FILE.read_bytes(),
        groups={1: GroupDicts({"name": "sgd"}), 0: GroupDicts(initializer={"name": "ones"})},
        others=GroupDicts({"name": "ftrl"}, {"name": "zeros"}),
    )
    ones, adam = {"name": "ones"}, {"name": "adamw", "gamma": 0.5, "lambda": 0.0}
    model = torch.nn.ModuleList(
        [damo.Embedding(3, ones, adam), damo.Embedding(1, {}, {"name": "sgd"}), damo.Embedding(2, {}, {"name": "ftrl"})]
    )
    with damo.damo_embedding_init(model, store):
        assert model[0](torch.tensor([1, 2])).tolist() == [ROWS[0][1], [1.0] * 3]
        model[0](torch.tensor([1])).sum().backward()
        torch.testing.assert_close(model[0](torch.tensor([1])).detach(), torch.tensor([ROWS[0][1]]) - 0.5)
        assert model[2](torch.tensor([1, 9])).tolist() == [ROWS[2][1], [0.0] * 2]


def test_a_group_without_keys_has_a_table(converted):
    rows = {0: {1: [1.0]}, 1: {2: [1.0, 2.0]}}
    content = head(rows, keys=[1, 0]) + records(rows)[0]
    assert rows_of(converted(content)) == {0: {1: [1.0]}, 1: {}}


# ------------------------------------------------------------------ hostile files


@pytest.mark.parametrize("make_head", [head, head_of_256])
def test_every_truncation_is_refused(refused, tmp_path, make_head):
    content = make_head(ROWS) + b"".join(records(ROWS))
    for size in [*range(min(len(content), 300)), *range(len(content) - 40, len(content))]:
        (tmp_path / "dump").write_bytes(content[:size])
        with pytest.raises(damo.CorruptionError, match=r"dump is no dump of Damo-Embedding, or a damaged one: as one"):
            DamoDump(tmp_path / "dump")
    assert f"which make {len(content)} bytes, and the file has {len(content) - 1}" in refused(content[:-1])


def test_bytes_after_the_end_are_refused(refused):
    assert f"and the file has {FILE.stat().st_size + 1}" in refused(FILE.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"keys": [4, 2, 2**62]}, "3 groups with 4611686018427387910 keys"),
        ({"keys": [4, 2, -1]}, "its head says -1 keys of group 2"),
        ({"dims": [3, 1, 2**25]}, "its head says dim 33554432 of group 2"),
        ({"dims": [3, 1, -2]}, "its head says dim -2 of group 2"),
        ({"dims": [3, 1, 0]}, "its head says dim 0 of group 2"),
        ({"groups": [0, 1, 1]}, "its head has group 1, expected each once"),
        ({"groups": [0, 1, -1]}, "its head has group -1, expected each once, in 0..65535"),
        ({"groups": [0, 1, 65536]}, "its head has group 65536"),
    ],
    ids=str,
)
def test_heads_that_lie_are_refused(refused, said, what):
    assert what in refused(head(ROWS, **said) + b"".join(records(ROWS)))


def test_counts_that_lie_in_sum_alone_are_refused(refused):
    """Of groups whose records are of one size: the file has the size that it says."""
    rows = {0: {1: [1.0], 2: [1.0]}, 1: {3: [2.0]}}
    said = refused(head(rows, keys=[1, 2]) + b"".join(records(rows)))
    assert "its head says that group 0 has 1 keys, but there are 2 records of it" in said


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_with_their_place(refused, weight):
    rows = {0: {1: [1.0, 2.0], -7: [1.0, weight]}}
    place = len(head(rows)) + 20
    assert f"in the record at byte {place}, weights of key -7 of group 0 are not finite" in refused(
        head(rows) + b"".join(records(rows))
    )


def test_a_group_that_the_head_does_not_have_is_refused_with_its_place(refused):
    body = b"".join(records({0: {1: [1.0]}})) + struct.pack("<qif", 2, 9, 1.0)
    said = refused(head({0: {1: [1.0], 2: [1.0]}}) + body)
    assert "in the record at byte 36, it is of group 9, which the head does not have" in said


def test_a_key_that_is_there_twice_is_refused(refused):
    rows = {0: {1: [1.0], 2: [1.0]}}
    body = records({0: {1: [1.0]}}) * 2
    assert "its 2 records of group 0 have 1 keys, some of them more than once" in refused(head(rows) + b"".join(body))


@pytest.mark.parametrize("content", [b"", b"\0" * 4, b"\xff" * 5000, os.urandom(100), b"\0" * 3072], ids=len)
def test_what_is_no_dump_is_refused(refused, content):
    assert "is no dump of Damo-Embedding" in refused(content)


@pytest.mark.parametrize("seed", range(4))
def test_a_byte_that_is_another_is_refused_or_a_number_of_another_value(tmp_path, seed):
    content = bytearray(FILE.read_bytes())
    flips = random.Random(seed)
    for number in range(60):
        changed = bytearray(content)
        changed[flips.randrange(len(content))] ^= 1 << flips.randrange(8)
        (tmp_path / "dump").write_bytes(changed)
        try:
            rows = list(DamoDump(tmp_path / "dump").read())
        except damo.CorruptionError:
            continue
        assert sum(len(keys) for _, keys, _ in rows) == 7, number


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "none"):
        with pytest.raises(OSError, match=r"no regular file|No such file"):
            convert_damo_dump(path, tmp_path / "store")


def test_a_file_that_becomes_shorter_is_refused(tmp_path):
    (tmp_path / "dump").write_bytes(FILE.read_bytes())
    dump = DamoDump(tmp_path / "dump")
    (tmp_path / "dump").write_bytes(FILE.read_bytes()[:-4])
    with pytest.raises(damo.CorruptionError, match=r"the file ends, which had \d+ bytes"):
        list(dump.read())


def test_a_store_that_is_there_stays(tmp_path):
    (tmp_path / "store").mkdir()
    with pytest.raises(ValueError, match="store exists already"):
        convert_damo_dump(FILE, tmp_path / "store")
    assert names(tmp_path) == ["store"]


def test_what_groups_are_made_with_has_to_be_known(refused):
    content = FILE.read_bytes()
    assert "has no groups [9]; it has [0, 1, 2]" in refused(content, groups={9: GroupDicts()})
    assert "an optimizer's name must be one of" in refused(content, others=GroupDicts({"name": "rmsprop"}))
    assert "an initializer's name must be one of" in refused(content, others=GroupDicts(initializer={"name": "he"}))


def test_an_error_in_the_middle_leaves_nothing(refused):
    rows = {0: dict(zip(range(300_000), itertools.repeat([1.0, 2.0])))}
    rows[0][299_999] = [1.0, float("nan")]
    assert "weights of key 299999 of group 0 are not finite" in refused(head(rows) + b"".join(records(rows)))
