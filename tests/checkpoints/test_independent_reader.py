"""Another program's RocksDB reads the rows of a checkpoint, by docs/format.md alone."""

import hashlib
import json
import struct

import pytest
import torch
import torchrec

import damo_torchrec as damo
from damo_torchrec.checkpoints.manifest import Manifest
from mixed_run import INT64_MAX, INT64_MIN, MixedRun, SmallModel, collection, look_up, update
from raw_records import decode_key, opened
from support import payloads

DELETED = 1 << 31


def test_the_rows_of_a_closed_store_are_those_that_rocksdict_reads(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store", options=damo.StoreOptions(cache_bytes=100_000)) as store:
        MixedRun(store).train(0, 10)
        expected = {name: payloads(store, name) for name in store.tables()}
        weights = {name: torch.cat([w for _, w in table.items()]) for name, table in store.tables().items()}
        iters = {name: table.iter for name, table in store.tables().items()}
    newest = tmp_path / "store" / "checkpoints" / "step_10"
    tables = Manifest.read(newest).tables
    names = {record.number: name for name, record in tables.items()}
    found: dict[str, dict[int, bytes]] = {name: {} for name in expected}
    with opened(newest, tmp_path) as rows:
        for key, value in rows.items():
            number, row_id = decode_key(key)
            assert value[0] == 1
            found[names[number]][row_id] = value[1:]
    assert found == expected
    for name, rows_by_id in found.items():
        assert list(rows_by_id) == sorted(rows_by_id), "keys are not in the order of signed ids"
        assert len(rows_by_id) == tables[name].rows
        assert tables[name].iter == iters[name] == 10
        dim = tables[name].schema.dim
        read = torch.tensor([struct.unpack_from(f"<{dim}f", row) for row in rows_by_id.values()])
        assert torch.equal(read, weights[name])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam])
def test_a_rows_value_is_weights_state_last_step_and_count(tmp_path, optimizer):
    """The state of each rule, after two updates with known gradients, at the place where it should be."""
    with damo.EmbeddingStore(tmp_path / "store") as store:
        ebc = collection(store, "t", dim=3, initial=1.0, optimizer=optimizer, lr=0.5)
        update(ebc, {"t": [[9]]}, 2.0)
        update(ebc, {"t": [[]]})
        update(ebc, {"t": [[9]]}, 4.0)
        weights = store.table("t").get([9])[0].tolist()
        path = store.checkpoint()
    m, v = 0.9 * (0.1 * 2.0) + 0.1 * 4.0, 0.999 * (0.001 * 4.0) + 0.001 * 16.0
    state = {torch.optim.SGD: [], torch.optim.Adagrad: [20.0] * 3, torch.optim.Adam: [m] * 3 + [v] * 3}[optimizer]
    with opened(path, tmp_path) as rows:
        ((key, value),) = rows.items()
    assert decode_key(key) == (1, 9)
    version, *numbers, last_step, count = struct.unpack(f"<B{3 + len(state)}fII", value)
    assert (version, last_step, count) == (1, 3, 2)
    assert numbers[:3] == weights
    assert numbers[3:] == pytest.approx(state, rel=1e-6)


def test_keys_sort_by_table_then_by_signed_id(tmp_path):
    ids = [INT64_MIN, INT64_MIN + 1, -(2**32), -1, 0, 1, 255, 256, 2**32, INT64_MAX]
    with damo.EmbeddingStore(tmp_path / "store") as store:
        collection(store, *(f"t{i}" for i in range(300)), dim=1)
        for name in ("t0", "t254", "t255", "t299"):  # table numbers of one byte and of two
            store.table(name).set(ids, torch.ones(len(ids), 1))
        path = store.checkpoint()
    with opened(path, tmp_path) as rows:
        keys = list(rows.keys())
    assert [decode_key(key) for key in keys] == [(number, i) for number in (1, 255, 256, 300) for i in ids]
    assert keys == sorted(keys)
    assert keys[0] == bytes.fromhex("00000001" + "0000000000000000")
    assert keys[3] == bytes.fromhex("00000001" + "7fffffffffffffff")
    assert keys[-1] == bytes.fromhex("0000012c" + "ffffffffffffffff")


def test_a_deletion_leaves_a_record_of_its_step(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        ebc = collection(store, "t", dim=2)
        for _ in range(5):
            update(ebc, {"t": [[-1], [4], [5]]})
        store.table("t").delete([-1, 4, 77])
        update(ebc, {"t": [[4]]})  # there again, and its record stays
        path = store.checkpoint()
    with opened(path, tmp_path) as rows:
        found = {decode_key(key): value for key, value in rows.items()}
    assert found.keys() == {(1, 4), (1, 5), (1 | DELETED, -1), (1 | DELETED, 4)}
    assert found[1 | DELETED, -1] == found[1 | DELETED, 4] == struct.pack("<BQ", 1, 5)


def test_the_state_of_row_wise_adagrad_is_one_float(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        ebc = collection(store, "t", dim=2, initial=0.0, optimizer=torchrec.optim.RowWiseAdagrad)
        look_up(ebc, {"t": [[1]]}).backward(torch.tensor([[3.0, 1.0]]))
        path = store.checkpoint()
    with opened(path, tmp_path) as rows:
        (value,) = rows.values()
    assert struct.unpack("<BfffII", value)[3:] == ((3.0**2 + 1.0**2) / 2, 1, 1)


def test_the_manifest_names_and_checks_every_other_file(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store", seed=3) as store:
        model = SmallModel(store)
        model.step()
        path = damo.save_model(model)
    document = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    manifest = document["manifest"]
    assert document["format_version"] == 4
    assert document["sha256"] == hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    assert (manifest["seed"], manifest["step"], manifest["next_table_number"]) == (3, 1, 2)
    first = json.loads((path.with_name("step_0") / "manifest.json").read_text(encoding="utf-8"))["manifest"]
    assert 10**15 < first["sequence"] < manifest["sequence"]
    others = {str(f.relative_to(path)): f for f in path.rglob("*") if f.is_file() and f.name != "manifest.json"}
    assert manifest["files"] == {
        name: {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for name, file in others.items()
    }
    dense = torch.load(path / "model.pt", weights_only=True)
    assert dense.keys() == {
        *("checkpoint_id", "step", "extra"),
        *("model", "optimizer", "parameter_names", "learning_rates", "schedulers", "random", "unpicklable"),
    }
    assert dense["checkpoint_id"] == manifest["id"]
    assert dense["model"].keys() == {"dense.weight", "dense.bias"}
