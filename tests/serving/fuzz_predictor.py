"""Forged deltas, cards and graphs, each tried by a predictor; in a process that may crash: test_hostile_files.py.

By hand, for hours::

    HYPOTHESIS_PROFILE=long python -m pytest tests/serving/fuzz_predictor.py
"""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

import damo_torchrec as damo
from damo_torchrec.graph_card import CARD
from damo_torchrec.serving.dense import DensePart
from forging import forge_delta, forge_file
from mutations import changed_json, edited, edits
from served_training import REQUESTS, Training

# A predictor takes a while to open.
FEW = settings(max_examples=max(settings.default.max_examples // 6, 1))
refusals = contextlib.suppress(damo.DamoError, ValueError)


def with_card(graph: bytes, change: Callable[[Any], Any]) -> bytes:
    proto = onnx.ModelProto.FromString(graph)
    for entry in proto.metadata_props:
        if entry.key == CARD:
            entry.value = json.dumps(change(json.loads(entry.value)))
    return proto.SerializeToString()


def card_of(graph: bytes) -> Any:
    proto = onnx.ModelProto.FromString(graph)
    return next(json.loads(entry.value) for entry in proto.metadata_props if entry.key == CARD)


def try_out(checkpoint: Path, *deltas: Path) -> None:
    """Whatever is served answers requests, or refuses them, and what is refused changes nothing."""
    with refusals, damo.serving.Predictor(checkpoint, memory_budget="64MiB", num_threads=1) as predictor:
        for delta in deltas:
            before = predictor.predict(REQUESTS[1])
            try:
                predictor.apply_delta(delta)
            except (damo.DamoError, ValueError):
                for name, array in predictor.predict(REQUESTS[1]).items():
                    np.testing.assert_array_equal(array, before[name])
        for request in REQUESTS:
            with refusals:
                assert all(isinstance(array, np.ndarray) for array in predictor.predict(request).values())


def test_graphs(training: Training) -> None:
    content = (training.path / "served" / "dense.onnx").read_bytes()
    file = training.path / "dense.onnx"

    @given(what=edits())
    def run(what: Any) -> None:
        file.write_bytes(edited(content, what))
        with refusals:
            part = DensePart(file, file.read_bytes(), 1)
            part.run({name: np.zeros((2, 3), np.float32) for name in part.inputs})

    run()


def test_cards(training: Training) -> None:
    checkpoint = training.path / "served"
    graph = (checkpoint / "dense.onnx").read_bytes()

    @FEW
    @given(changed=changed_json(card_of(graph)))
    def run(changed: Any) -> None:
        forge_file(checkpoint, "dense.onnx", with_card(graph, lambda _: changed))
        try_out(checkpoint)

    run()


def test_deltas(training: Training) -> None:
    training.step()
    delta = training.delta()
    copy = training.path / "copy"
    body = json.loads((delta / "delta.json").read_text())["delta"]
    graph = (delta / "dense.onnx").read_bytes()
    arrays = sorted(file.name for file in delta.glob("*.npy"))

    @FEW
    @given(
        kind=st.sampled_from(["bytes", "manifest", "card"]),
        file=st.sampled_from(arrays),
        what=edits(),
        manifest=changed_json(body),
        card=changed_json(card_of(graph)),
    )
    def run(kind: str, file: str, what: Any, manifest: Any, card: Any) -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(delta, copy)
        if kind == "bytes":
            (copy / file).write_bytes(edited((delta / file).read_bytes(), what))
        if kind == "card":
            (copy / "dense.onnx").write_bytes(with_card(graph, lambda _: card))
        forge_delta(copy, lambda now: (now.clear(), now.update(manifest)) if kind == "manifest" else None)
        try_out(training.path / "served", copy)

    run()
