"""Graphs that read other files, or have other operators, are refused before a session opens them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import damo_torchrec as damo
from damo_torchrec import onnx_runtime
from damo_torchrec.graph_check import check_dense_graph, check_exported_graph

BYTES = 31


def external(location: str, **more: str) -> TensorProto:
    tensor = TensorProto(name="leak", data_type=TensorProto.UINT8, dims=[BYTES], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "length": str(BYTES), **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(nodes: Any, initializers: Any = (), name: str = "g") -> onnx.GraphProto:
    output = helper.make_tensor_value_info("y", TensorProto.UINT8, [BYTES])
    return helper.make_graph(nodes, name, [], [output], initializers)


def model(main: onnx.GraphProto, functions: Any = ()) -> onnx.ModelProto:
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(main, opset_imports=domains, ir_version=8, functions=functions)


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["y"], value=tensor)


def branches(branch: onnx.GraphProto) -> onnx.GraphProto:
    """A graph with it as a subgraph."""
    condition = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    return graph([condition, helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)])


def in_initializer(tensor: TensorProto) -> onnx.ModelProto:
    return model(graph([helper.make_node("Identity", ["leak"], ["y"])], [tensor]))


def in_subgraph(tensor: TensorProto) -> onnx.ModelProto:
    return model(branches(graph([constant(tensor)], name="branch")))


def in_initializer_of_subgraph(tensor: TensorProto) -> onnx.ModelProto:
    return model(branches(graph([helper.make_node("Identity", ["leak"], ["y"])], [tensor], name="branch")))


def in_function(tensor: TensorProto) -> onnx.ModelProto:
    function = helper.make_function("own", "f", [], ["y"], [constant(tensor)], [helper.make_opsetid("", 18)])
    return model(graph([helper.make_node("f", [], ["y"], domain="own")]), [function])


def in_sparse_initializer(tensor: TensorProto) -> onnx.ModelProto:
    proto = model(graph([helper.make_node("Identity", ["leak"], ["y"])]))
    indices = numpy_helper.from_array(np.arange(BYTES, dtype=np.int64), "indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [BYTES]))
    return proto


def in_training_info(tensor: TensorProto) -> onnx.ModelProto:
    proto = model(graph([constant(numpy_helper.from_array(np.zeros(BYTES, np.uint8)))]))
    proto.training_info.add().initialization.initializer.append(tensor)
    return proto


PLACES = [
    in_initializer,
    lambda tensor: model(graph([constant(tensor)])),
    in_subgraph,
    in_initializer_of_subgraph,
    in_function,
    in_sparse_initializer,
    in_training_info,
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Of a graph, with files that it may read, and links to one outside that it may not."""
    (tmp_path / "outside").write_bytes(b"x" * BYTES)
    found = tmp_path / "m"
    (found / "model.data-1").mkdir(parents=True)
    (found / "model.data-1" / "rows").write_bytes(b"r" * BYTES)
    (found / "link").symlink_to(tmp_path / "outside")
    (found / "links").symlink_to(tmp_path)
    os.mkfifo(found / "pipe")
    return found


@pytest.mark.parametrize("place", PLACES)
def test_data_in_other_files_are_found_wherever_they_are(place: Callable[..., Any], directory: Path) -> None:
    file = directory / "model.onnx"
    file.write_bytes(place(external("model.data-1/rows")).SerializeToString())
    with pytest.raises(damo.CorruptionError, match="'leak' has its values in another file"):
        check_dense_graph(file.read_bytes(), file)
    check_exported_graph(file)
    file.write_bytes(place(external("../outside")).SerializeToString())
    with pytest.raises(damo.CorruptionError, match="outside of the graph's directory"):
        check_exported_graph(file)


@pytest.mark.parametrize(
    ("location", "more", "message"),
    [
        ("/etc/passwd", {}, "outside of the graph's directory"),
        ("model.data-1/../../outside", {}, "outside of the graph's directory"),
        ("..\\outside", {}, "outside of the graph's directory"),
        ("", {}, "outside of the graph's directory"),
        (".", {}, "outside of the graph's directory"),
        ("link", {}, "which is a link"),
        ("links/outside", {}, "which is a link"),
        ("pipe", {}, "which is no file"),
        ("model.data-1", {}, "which is no file"),
        ("nothing", {}, "No such file"),
        ("*/_ORT_MEM_ADDR_/*", {"offset": "140000000000000"}, "No such file"),
        ("n" * 5000, {}, "File name too long"),
        ("a\0b", {}, "null"),
        ("model.data-1/rows", {"offset": "1"}, "is beyond the 31 bytes"),
        ("model.data-1/rows", {"length": "32"}, "is beyond the 31 bytes"),
        ("model.data-1/rows", {"offset": "18446744073709551615"}, "has the offset"),
        ("model.data-1/rows", {"offset": "-1"}, "has the offset '-1'"),
        ("model.data-1/rows", {"length": "٣"}, "has the length"),
        ("model.data-1/rows", {"other": "1"}, "is said to be at"),
    ],
)
def test_exported_graphs_read_their_own_files_alone(
    location: str, more: dict[str, str], message: str, directory: Path
) -> None:
    file = directory / "model.onnx"
    file.write_bytes(in_initializer(external(location, **more)).SerializeToString())
    with pytest.raises(damo.CorruptionError, match=message) as error:
        damo.onnx.session(directory)
    assert str(file) in str(error.value)


def test_an_entry_given_twice_is_refused(directory: Path) -> None:
    tensor = external("model.data-1/rows")
    tensor.external_data.add(key="location", value="../outside")
    (directory / "model.onnx").write_bytes(in_initializer(tensor).SerializeToString())
    with pytest.raises(damo.CorruptionError, match="is said to be at"):
        damo.onnx.session(directory)


def test_values_of_its_own_files_are_read(directory: Path) -> None:
    (directory / "model.onnx").write_bytes(in_initializer(external("model.data-1/rows")).SerializeToString())
    (answer,) = damo.onnx.session(directory).run(None, {})
    assert bytes(answer) == b"r" * BYTES


@pytest.mark.parametrize("place", ["graph", "subgraph", "function"])
def test_operators_of_other_domains_are_refused(place: str, directory: Path) -> None:
    node = helper.make_node("Read", [], ["y"], domain="evil")
    if place == "graph":
        proto = model(graph([node]))
    elif place == "subgraph":
        proto = model(branches(graph([node], name="branch")))
    else:
        function = helper.make_function("own", "f", [], ["y"], [node], [helper.make_opsetid("", 18)])
        proto = model(graph([helper.make_node("f", [], ["y"], domain="own")]), [function])
    file = directory / "model.onnx"
    file.write_bytes(proto.SerializeToString())
    for check in (lambda: check_dense_graph(file.read_bytes(), file), lambda: damo.onnx.session(file)):
        with pytest.raises(damo.CorruptionError, match="'Read' of 'evil' is not an expected operator"):
            check()


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08" * 100, b"ORTM" * 100, b"\0\0\0\0ORTM" + b"\0" * 64])
def test_what_is_no_graph_is_refused(content: bytes, directory: Path) -> None:
    (directory / "model.onnx").write_bytes(content)
    with pytest.raises(damo.CorruptionError, match="is no graph"):
        damo.onnx.session(directory)


def test_an_onnxruntime_that_is_too_old_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "model.onnx").write_bytes(in_initializer(external("model.data-1/rows")).SerializeToString())
    for version in ("1.24.4", "1.9.0", "1.19.2+cu12"):
        monkeypatch.setattr(onnx_runtime.onnxruntime, "__version__", version)
        with pytest.raises(damo.DamoError, match=r"expected 1\.25 or later"):
            damo.onnx.session(directory)


@pytest.mark.parametrize("package", ["onnx", "serving"])
def test_nothing_is_sent_or_stored_about_what_runs(package: str, tmp_path: Path) -> None:
    """ONNX Runtime notes a device's number as soon as it is imported, unless it is told not to."""
    env = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    program = f"import damo_torchrec.{package}, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**env, "HOME": str(tmp_path), "XDG_CACHE_HOME": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1"]
    assert not list(tmp_path.rglob("*onnxruntime*"))


def linked(tmp_path: Path, layout: str, size: int = BYTES) -> Path:
    """A graph and its values as they lie in Hugging Face's cache, or in a volume that Kubernetes mounts."""
    graph_bytes = in_initializer(external("model.data-1/rows")).SerializeToString()
    if layout == "hugging face":
        blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "5b1c"
        blobs.mkdir(parents=True)
        (snapshot / "model.data-1").mkdir(parents=True)
        (blobs / "aa").write_bytes(graph_bytes)
        (blobs / "bb").write_bytes(b"r" * size)
        (snapshot / "model.onnx").symlink_to("../../blobs/aa")
        (snapshot / "model.data-1" / "rows").symlink_to("../../../blobs/bb")
        return snapshot
    volume = tmp_path / "volume"
    (volume / "..2026" / "model.data-1").mkdir(parents=True)
    (volume / "..2026" / "model.onnx").write_bytes(graph_bytes)
    (volume / "..2026" / "model.data-1" / "rows").write_bytes(b"r" * size)
    (volume / "..data").symlink_to("..2026")
    for name in ("model.onnx", "model.data-1"):
        (volume / name).symlink_to(f"..data/{name}")
    return volume


@pytest.mark.parametrize("layout", ["hugging face", "kubernetes"])
def test_links_that_stay_with_the_graph_are_followed(layout: str, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(linked(tmp_path, layout))
    for path in (linked_path := (tmp_path / "current").resolve(), tmp_path / "current"):
        (answer,) = damo.onnx.session(path).run(None, {})
        assert bytes(answer) == b"r" * BYTES
    (linked_path / "model.data-1" / "rows").resolve().write_bytes(b"r" * 5)
    with pytest.raises(damo.CorruptionError, match="is beyond the 5 bytes"):
        damo.onnx.session(linked_path)


@pytest.mark.parametrize("target", ["outside", "pipe", "directory"])
def test_links_that_lead_out_of_a_linked_layout_are_refused(target: str, tmp_path: Path) -> None:
    snapshot = linked(tmp_path, "hugging face")
    (tmp_path / "outside").write_bytes(b"x" * BYTES)
    os.mkfifo(tmp_path / "models--x" / "blobs" / "pipe")
    (tmp_path / "models--x" / "blobs" / "directory").mkdir()
    rows = snapshot / "model.data-1" / "rows"
    rows.unlink()
    rows.symlink_to(tmp_path / "outside" if target == "outside" else f"../../../blobs/{target}")
    with pytest.raises(damo.CorruptionError, match="a link out of" if target == "outside" else "which is no file"):
        damo.onnx.session(snapshot)


def test_a_blob_that_is_a_link_itself_is_refused(tmp_path: Path) -> None:
    snapshot = linked(tmp_path, "hugging face")
    (tmp_path / "outside").write_bytes(b"x" * BYTES)
    (tmp_path / "models--x" / "blobs" / "bb").unlink()
    (tmp_path / "models--x" / "blobs" / "bb").symlink_to(tmp_path / "outside")
    with pytest.raises(damo.CorruptionError, match="a link out of the graph's directory"):
        damo.onnx.session(snapshot)
