"""A model that is served over HTTP, requests to it, and a client."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec.server.application import make_app
from damo_torchrec.server.served_model import Metrics, Settings
from serving_cases import SGD
from support import kjt, small_store

KEYS = ("user", "clicks")


class Clicks(nn.Module):
    """Two weighted features and a number."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(name=f"t_{key}", embedding_dim=4, num_embeddings=9, feature_names=[key]) for key in KEYS
        ]
        self.ebc = damo.EmbeddingBagCollection(tables, is_weighted=True, store=store, **SGD)
        self.layer = nn.Linear(9, 1)

    def forward(self, dense: torch.Tensor, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.layer(torch.cat([dense, self.ebc(features).values()], dim=1))


def body(batch: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng((batch, seed))
    ids = {key: [rng.integers(-9, 9, rng.integers(0, 4)).tolist() for _ in range(batch)] for key in KEYS}
    weights = {key: [[0.5 * i for i in range(len(sample))] for sample in of_key] for key, of_key in ids.items()}
    return {"dense": rng.standard_normal((batch, 1)).tolist(), "features": ids, "features.weights": weights}


def expected_answer(model: nn.Module, request: dict[str, Any]) -> Any:
    weights = [w for key in KEYS for sample in request["features.weights"][key] for w in sample]
    features = kjt({key: request["features"][key] for key in KEYS}, weights)
    with torch.no_grad():
        return model(torch.tensor(request["dense"]), features).numpy()


def settings_of(path: Path, **options: Any) -> Settings:
    return Settings(checkpoint=path, memory_budget="64MiB", num_threads=1, **options)


@contextlib.asynccontextmanager
async def client_of(path: Path, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(settings_of(path, **options), Metrics())
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as c,
    ):
        yield c


def with_client(path: Path, use: Callable[[httpx.AsyncClient], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with client_of(path, **options) as client:
            await asyncio.wait_for(use(client), 300)

    asyncio.run(main())


@contextlib.contextmanager
def served_twice(path: Path) -> Iterator[tuple[nn.Module, Path, list[Any]]]:
    """A model, and two checkpoints of it: ``one`` and ``two``, which has other weights."""
    with small_store(path / "store") as store:
        model = Clicks(store)
        for table in store.tables().values():
            table.set(torch.arange(-9, 9), torch.randn(18, 4))
        args = (torch.ones(2, 1), kjt({key: [[1], [2]] for key in KEYS}, [1.0] * 4))
        damo.serving.export(model, args, path / "one")
        answers = [expected_answer(model, body(3))]
        with torch.no_grad():
            model.layer.weight.add_(1.0)
        damo.serving.export(model, args, path / "two")
        answers.append(expected_answer(model, body(3)))
        yield model.eval(), path, answers
