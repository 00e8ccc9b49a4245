"""`damo-torchrec convert` of state dicts, safetensors and dynamicemb's files."""

import json

import numpy as np
import pytest
import torch
import torchrec

import damo_torchrec as damo
from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.manifest import Manifest
from support import config

RULE = ("--optimizer", "ROWWISE_ADAGRAD")


def rows(store, table):
    with damo.EmbeddingStore(store, memory_budget="64MiB", read_only=True) as opened:
        return opened.table(table).to_torch()


def schemas(store):
    return Manifest.read(CheckpointLine.of_store(store).newest()).tables


@pytest.fixture
def model():
    torch.manual_seed(0)
    ebc = torchrec.EmbeddingBagCollection(tables=[config("t_a", 4), config("t_b", 3, num_embeddings=7)])
    return torch.nn.ModuleDict({"sparse": ebc, "user": torch.nn.Embedding(5, 2), "dense": torch.nn.Linear(3, 2)})


@pytest.mark.parametrize("wrapped", [None, "model", "state_dict"])
def test_torchrecs_tables_are_found_in_state_dicts(model, tmp_path, call, wrapped):
    state = model.state_dict()
    torch.save({wrapped: state, "step": 3} if wrapped else state, tmp_path / "model.pt")
    status, lines, err = call("convert", "state-dict", tmp_path / "model.pt", tmp_path / "store", *RULE)
    expected = ["table 't_a': 100 rows", "table 't_b': 7 rows"]
    assert (status, lines, err) == (0, [f"store {tmp_path / 'store'}", *expected], "")
    for name in ("t_a", "t_b"):
        ids, weights = rows(tmp_path / "store", name)
        assert ids.tolist() == list(range(len(ids)))
        assert torch.equal(weights, state[f"sparse.embedding_bags.{name}.weight"])
    assert schemas(tmp_path / "store")["t_a"].schema.initializer == {"name": "Uniform", "low": -0.1, "high": 0.1}


def test_other_tensors_are_tables_by_their_keys(model, tmp_path, call):
    torch.save(model.bfloat16().state_dict(), tmp_path / "model.pt")
    options = ("--table", "user.weight=t_user", "--table", "dense.weight", "--num-embeddings", 10000)
    assert call("convert", "state-dict", tmp_path / "model.pt", tmp_path / "store", *RULE, *options)[0] == 0
    tables = schemas(tmp_path / "store")
    assert sorted(tables) == ["dense", "t_user"]
    assert (tables["t_user"].schema.row_dtype, tables["t_user"].schema.initializer["high"]) == ("bfloat16", 0.01)
    assert torch.equal(rows(tmp_path / "store", "t_user")[1], model["user"].weight.detach().float())


def test_safetensors_have_the_same_tables(model, tmp_path, call):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({key: tensor.half() for key, tensor in model.state_dict().items()}, tmp_path / "model.safetensors")
    assert call("convert", "safetensors", tmp_path / "model.safetensors", tmp_path / "store", *RULE)[0] == 0
    expected = model.state_dict()["sparse.embedding_bags.t_a.weight"].half().float()
    assert torch.equal(rows(tmp_path / "store", "t_a")[1], expected)
    assert schemas(tmp_path / "store")["t_a"].schema.row_dtype == "float16"
    (tmp_path / "text").write_text("text")
    status, _, err = call("convert", "safetensors", tmp_path / "text", tmp_path / "other", *RULE)
    assert (status, "is no file of safetensors" in err) == (1, True)


class Evil:
    def __reduce__(self):
        return (print, ("evil",))


@pytest.mark.parametrize(
    ("content", "options", "status", "message"),
    [
        ({"a.weight": torch.ones(2, 2)}, (), 2, "has no tables of TorchRec"),
        ({"a.weight": torch.ones(2, 2)}, ("--table", "b"), 2, "'b' is not there; a table is one of ['a.weight']"),
        ({"a": torch.ones(2)}, ("--table", "a"), 2, "'a' is of the shape (2,)"),
        ({"a": torch.ones(2, 2, dtype=torch.int64)}, ("--table", "a"), 2, "weights must be floating point"),
        ({"a": torch.full((2, 2), torch.nan)}, ("--table", "a"), 2, "weight of id 0 is not finite"),
        ({"a": torch.ones(2, 2)}, ("--table", "a", "--table", "a"), 2, "takes each KEY once"),
        ({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, ("--table", "a=t", "--table", "b=t"), 2, "'t' comes more"),
        ({"a": torch.ones(2, 2)}, ("--table", "a", "--optimizer", "RMSPROP"), 2, "optimizer must be a class or one of"),
        ({"a": torch.ones(2, 2).to_sparse()}, ("--table", "a"), 2, "'a' is sparse"),
        ({"a": torch.empty(2, 2, device="meta")}, ("--table", "a"), 2, "or without content"),
        ({"a": torch.ones(2, 2)}, ("--table", "a", "--num-embeddings", 10**400), 2, "num_embeddings must be"),
        (torch.ones(2, 2), (), 2, "expected a state dict"),
        ({"a": Evil()}, (), 1, "is no state dict that torch.save wrote"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, call, content, options, status, message):
    torch.save(content, tmp_path / "model.pt")
    returned, lines, err = call("convert", "state-dict", tmp_path / "model.pt", tmp_path / "store", *RULE, *options)
    assert (returned, lines) == (status, [])
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def write_dump(folder, name, keys, weights, dtype="float32", ranks=2, meta=True):
    """As dynamicemb's documentation has it."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(ranks):
        ids, values = keys[rank::ranks], weights[rank::ranks]
        end = f"rank_{rank}.world_size_{ranks}"
        np.array(ids, "<i8").tofile(folder / f"{name}_emb_keys.{end}")
        values.to(getattr(torch, dtype)).contiguous().view(torch.uint8).numpy().tofile(
            folder / f"{name}_emb_values.{end}"
        )
        np.zeros(len(ids), "<u8").tofile(folder / f"{name}_emb_scores.{end}")
    if meta:
        document = {"embedding_dtype": f"torch.{dtype}", "embedding_dim": weights.shape[1], "lr": 0.1}
        (folder / f"{name}_opt_args.json").write_text(json.dumps(document))


KEYS = [5, -1, 2**62, 0, 7]


@pytest.mark.parametrize(
    ("dtype", "meta"), [("float32", False), ("float32", True), ("float16", True), ("bfloat16", True)]
)
def test_dynamicembs_files_of_all_ranks(tmp_path, call, dtype, meta):
    weights = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype)).float()
    write_dump(tmp_path / "dump" / "model.sparse", "t_item", KEYS, weights, dtype, meta=meta)
    status, lines, err = call("convert", "dynamicemb", tmp_path / "dump", tmp_path / "store", *RULE)
    assert (status, lines[1:]) == (0, ["table 't_item': 5 rows"])
    assert "optimizer state are passed over" in err
    ids, found = rows(tmp_path / "store", "t_item")
    assert dict(zip(ids.tolist(), found.tolist(), strict=True)) == dict(zip(KEYS, weights.tolist(), strict=True))
    assert schemas(tmp_path / "store")["t_item"].schema.row_dtype == dtype


def _without_a_rank(folder):
    (folder / "t_emb_keys.rank_1.world_size_2").unlink()


def _short_values(folder):
    file = folder / "t_emb_values.rank_1.world_size_2"
    file.write_bytes(file.read_bytes()[:-4])


def _short_keys(folder):
    file = folder / "t_emb_keys.rank_0.world_size_2"
    file.write_bytes(file.read_bytes()[:-1])


def _without_values(folder):
    (folder / "t_emb_values.rank_0.world_size_2").unlink()


def _wrong_meta(folder):
    (folder / "t_opt_args.json").write_text('{"embedding_dtype": "int8", "embedding_dim": 3}')


def _no_json(folder):
    (folder / "t_opt_args.json").write_text("[")


def _deep_json(folder):
    (folder / "t_opt_args.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    "damage", [_without_a_rank, _short_values, _short_keys, _without_values, _wrong_meta, _no_json, _deep_json]
)
def test_a_damaged_dump_of_dynamicemb_is_refused(tmp_path, call, damage):
    write_dump(tmp_path / "dump", "t", KEYS, torch.ones(5, 3))
    damage(tmp_path / "dump")
    status, lines, err = call("convert", "dynamicemb", tmp_path / "dump", tmp_path / "store", *RULE)
    assert (status, lines) == (1, [])
    assert "damaged" in err or "expected 1 to" in err
    assert not (tmp_path / "store").exists()


def test_what_is_no_dump_of_dynamicemb_is_wrong_usage(tmp_path, call):
    (tmp_path / "file").touch()
    for path, message in [(tmp_path, "has no files TABLE_emb_keys"), (tmp_path / "file", "is no directory")]:
        status, _, err = call("convert", "dynamicemb", path, tmp_path / "store", *RULE)
        assert (status, message in err) == (2, True)
    write_dump(tmp_path / "dump", "t", [1, 1], torch.ones(2, 3))
    status, _, err = call("convert", "dynamicemb", tmp_path / "dump", tmp_path / "store", *RULE)
    assert (status, "id 1 comes more than once" in err) == (2, True)
