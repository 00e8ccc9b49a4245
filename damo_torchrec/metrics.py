"""Sends a store's figures to what keeps and shows them: TensorBoard, OpenMetrics, MLflow, or a function."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from damo_torchrec.files import write_output
from damo_torchrec.stats import StoreStats
from damo_torchrec.store.embedding_store import EmbeddingStore

Send = Callable[[dict[str, float], int], object]


class MetricsLogger:
    """Sends `StoreStats.flat` of a store somewhere, every so many steps or seconds.

    ``update()`` is called after each step of training, and costs nothing but a comparison where nothing is due.

    Args:
        store: whose.
        to: a `torch.utils.tensorboard.SummaryWriter` or what else has ``add_scalar(name, value, step)``; the module
            `mlflow` or what else has ``log_metrics(dict, step=)``; a function of a dict and the store's step; or a
            path: the file is replaced, whole, by what `open_metrics` makes of it, as node_exporter's textfile collector
            wants it; a link stays, and what is no file is refused.
        every_steps: send at each of so many calls of `update`.
        every_seconds: send at a call of `update` so many seconds after the last; instead of `every_steps`.
        prefix: of all names, where `to` is no path.

    Raises:
        TypeError: `to` is none of these, `every_steps` is no int, or `every_seconds` no number.
        ValueError: both of `every_steps` and `every_seconds` are given, or one is not positive.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        to: object,
        *,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        prefix: str = "damo/",
    ) -> None:
        if every_steps is not None and every_seconds is not None:
            raise ValueError("give every_steps or every_seconds, not both")
        given: tuple[tuple[str, Any, type], ...] = (
            ("every_steps", every_steps, int),
            ("every_seconds", every_seconds, float),
        )
        for name, value, kind in given:
            if value is None:
                continue
            fits = isinstance(value, int | kind) and not isinstance(value, bool)
            if not fits:
                raise TypeError(f"{name} must be {'an int' if kind is int else 'a number'} or None, got {value!r}")
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self._store = store
        self._path = Path(to) if isinstance(to, str | os.PathLike) else None
        self._send = None if self._path is not None else _sender(to)
        self._prefix = prefix
        self._every_seconds = every_seconds
        self._every_steps = every_steps or (None if every_seconds else 100)
        self._calls = 0
        self._last = time.monotonic()

    def update(self) -> bool:
        """Says that a step was made. Returns whether figures were sent."""
        self._calls += 1
        if self._every_steps is not None:
            due = self._calls % self._every_steps == 0
        else:
            due = time.monotonic() - self._last >= (self._every_seconds or 0)
        if due:
            self.send()
        return due

    def send(self) -> None:
        """Sends figures now, as at the end of training. Raises what `to` raises."""
        self._last = time.monotonic()
        stats = self._store.stats()
        if self._path is not None:
            write_output(self._path, open_metrics(stats).encode())
        if self._send is not None:
            flat = {f"{self._prefix}{name}": value for name, value in stats.flat().items()}
            self._send(flat, self._store.step)


def _sender(to: Any) -> Send:
    if hasattr(to, "add_scalar"):

        def to_tensorboard(figures: Mapping[str, float], step: int) -> None:
            for name, value in figures.items():
                to.add_scalar(name, value, step)

        return to_tensorboard
    if hasattr(to, "log_metrics"):

        def to_mlflow(figures: Mapping[str, float], step: int) -> None:
            # MLflow takes no other signs in names.
            to.log_metrics({re.sub(r"[^\w\-. /]", "_", name): value for name, value in figures.items()}, step=step)

        return to_mlflow
    if callable(to):
        send: Send = to
        return send
    raise TypeError(
        "to must be a SummaryWriter (add_scalar), mlflow (log_metrics), a function of (figures, step), or a path, got "
        f"{to!r}"
    )


def open_metrics(stats: StoreStats, prefix: str = "damo_") -> str:
    """Figures as the text of OpenMetrics 1.0, all gauges, with tables as a label: what Prometheus reads.

    Args:
        stats: of a store.
        prefix: of all names.
    """
    families: dict[str, list[str]] = {}
    for name, table, value in stats.figures():
        family = prefix + re.sub(r"\W", "_", name)
        label = "" if table is None else f'{{table="{_escaped(table)}"}}'
        families.setdefault(family, []).append(f"{family}{label} {value!r}\n")
    return "".join(f"# TYPE {name} gauge\n{''.join(lines)}" for name, lines in families.items()) + "# EOF\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
