"""Features whose strings training hashes: the card says which, a predictor hashes them, and no other takes strings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from serve_cases import with_client
from serving_cases import SGD, train
from support import kjt, small_store

pytest.importorskip("xxhash")
hash_strings = damo.ids.hash_strings
SALT = 7
REQUEST = {"word": [["a", "b"], []], "user": [[5], [6]]}


class Words(nn.Module):
    """One feature of strings, and one of integers; weighted."""

    def __init__(self, store: damo.EmbeddingStore, salts: dict[str, int | None], permuted: bool = False) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(name=f"t_{key}", embedding_dim=4, num_embeddings=9, feature_names=[key])
            for key in ("word", "user")
        ]
        options = {f"t_{key}": damo.TableOptions(string_salt=salt) for key, salt in salts.items()}
        self.ebc = damo.EmbeddingBagCollection(tables, is_weighted=True, store=store, table_options=options, **SGD)
        self.permuted = permuted

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.ebc(features.permute([1, 0]) if self.permuted else features).values()


def features(salt: int = SALT) -> KeyedJaggedTensor:
    word = [hash_strings(bag, salt).tolist() for bag in REQUEST["word"]]
    return kjt({"word": word, "user": REQUEST["user"]}, [1.0, 2.0, 1.0, 1.0])


WEIGHTS = {"word": [[1.0, 2.0], []], "user": [[1.0], [1.0]]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Words, Path]]:
    path = tmp_path_factory.mktemp("words")
    with small_store(path / "store") as store:
        model = Words(store, {"word": SALT})
        train(model, (features(),))
        yield model, damo.serving.export(model, (features(),), path / "served")


@pytest.fixture
def predictor(served: Any) -> Iterator[damo.serving.Predictor]:
    with damo.serving.Predictor(served[1], memory_budget="64MiB", num_threads=1) as opened:
        yield opened


def test_strings_ids_and_tensors_get_the_answer_of_the_model(served: Any, predictor: damo.serving.Predictor) -> None:
    with torch.no_grad():
        expected = served[0](features()).numpy()
    assert predictor.string_salts == {"features": {"word": SALT}}
    of_a, of_b = hash_strings(["a", "b"], SALT).tolist()
    forms: list[Any] = [
        {"features": features()},
        {"features": REQUEST, "features.weights": WEIGHTS},
        {"features": {**REQUEST, "word": ([of_a, b"b"], ())}, "features.weights": WEIGHTS},
        {"features": {**REQUEST, "word": [np.array([of_a, of_b]), np.array([], int)]}, "features.weights": WEIGHTS},
        {"features": REQUEST, "features.weights": [1.0, 2.0, 1.0, 1.0]},
    ]
    for form in forms:
        np.testing.assert_array_equal(predictor.predict(form)["output"], expected)


def test_the_server_hashes_them(served: Any) -> None:
    async def use(client: Any) -> None:
        response = await client.post("/predict", json={"features": REQUEST, "features.weights": WEIGHTS})
        with torch.no_grad():
            np.testing.assert_array_equal(np.float32(response.json()["output"]), served[0](features()).numpy())
        wrong = {"features": {**REQUEST, "user": [["5"], [6]]}, "features.weights": WEIGHTS}
        response = await client.post("/predict", json=wrong)
        assert response.status_code == 422
        assert "features.user must hold integers, got the string '5'" in response.text

    with_client(served[1], use)


BAD: dict[str, tuple[Any, Any, str]] = {
    "strings where none is hashed": ({**REQUEST, "user": [["5"], [6]]}, WEIGHTS, "features.user must hold integers"),
    "a feature less": ({"word": [[], []]}, WEIGHTS, r"must have the features \['word', 'user'\], got \['word'\]"),
    "no lists": ({**REQUEST, "word": ["a", "b"]}, WEIGHTS, "features.word must be a list of lists"),
    "samples": ({**REQUEST, "word": [["a"]]}, WEIGHTS, "one list for each sample in every feature"),
    "weights": (REQUEST, {**WEIGHTS, "user": [[1.0], []]}, "must have a weight for each id of features"),
    "null": ({**REQUEST, "user": [[None], [6]]}, WEIGHTS, "features.values must be integers, got NoneType"),
    "no weights": (REQUEST, None, "features.weights'] are missing"),
}


@pytest.mark.parametrize(("bags", "weights", "message"), BAD.values(), ids=BAD)
def test_wrong_bags_are_refused(predictor: damo.serving.Predictor, bags: Any, weights: Any, message: str) -> None:
    request = {"features": bags} | ({"features.weights": weights} if weights else {})
    with pytest.raises((TypeError, ValueError), match=message):
        predictor.predict(request)


@pytest.mark.parametrize("permuted", [False, True])
def test_the_card_of_an_onnx_file_has_the_salts(tmp_path: Path, permuted: bool) -> None:
    with small_store(tmp_path / "store") as store:
        model = Words(store, {"word": SALT, "user": None}, permuted)
        damo.onnx.export(model, (features(),), tmp_path / "m")
    card = damo.onnx.model_card(tmp_path / "m")
    assert card["features"] == {"features": {"keys": ["word", "user"], "weighted": True, "string_salts": {"word": 7}}}


def test_tables_that_differ_about_a_feature_are_refused(tmp_path: Path) -> None:
    tables = [
        EmbeddingBagConfig(name=name, embedding_dim=4, num_embeddings=9, feature_names=["word"]) for name in ("t", "u")
    ]
    with small_store(tmp_path / "store") as store:
        options = {"t": damo.TableOptions(string_salt=7)}
        model = damo.EmbeddingBagCollection(tables, store=store, table_options=options, **SGD)
        with pytest.raises(ValueError, match=r"differ in the string_salt of feature 'word': \{'t': 7, 'u': None\}"):
            damo.serving.export(model, (kjt({"word": [[1]]}),), tmp_path / "served")


def test_a_delta_of_another_salt_is_refused(served: Any, predictor: damo.serving.Predictor, tmp_path: Path) -> None:
    model = served[0]
    again = Words(damo.modules.store_of(model), {"word": SALT + 1})
    store = damo.modules.store_of(model)
    publisher = damo.serving.DeltaPublisher(store, tmp_path, model=again, args=(features(8),), every_steps=1)
    train(again, (features(8),))
    delta = publisher.publish()
    assert delta is not None
    with pytest.raises(damo.SchemaMismatchError, match="features"):
        predictor.apply_delta(delta)


def test_a_salt_is_an_unsigned_integer() -> None:
    with pytest.raises(ValueError, match=r"salt must be in 0..2\^64 - 1, got -1"):
        damo.TableOptions(string_salt=-1)
