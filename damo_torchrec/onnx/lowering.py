"""From a traced graph to one that looks rows up itself, or to one that is given them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from onnx.inliner import inline_local_functions

from damo_torchrec.graph_check import DOMAIN
from damo_torchrec.lookup_plan import LookupKind
from damo_torchrec.onnx.arguments import JaggedInput
from damo_torchrec.onnx.functions import functions_for
from damo_torchrec.onnx.graph_files import LARGEST_FILE
from damo_torchrec.onnx.jagged_functions import CHECK, LIMIT, SELECT
from damo_torchrec.onnx.names import rename_read
from damo_torchrec.onnx.rows import RowGroup
from damo_torchrec.onnx.stand_ins import NODE, NUMBER, LookupCall
from damo_torchrec.onnx.vocabulary import IR_VERSION, REFUSALS, Lookup


@dataclass(frozen=True)
class Layout:
    """How a graph lies in its files.

    Args:
        directory: that the graph's file will be in.
        single_file: whether it has all arrays in itself.
        inline: whether it has no functions of its own.
    """

    directory: Path
    single_file: bool = False
    inline: bool = False


def lower_to_rows(
    proto: onnx.ModelProto,
    features: Sequence[JaggedInput],
    calls: Sequence[LookupCall],
    groups: Mapping[int, RowGroup],
    unseen: Mapping[str, str],
    max_length: Mapping[str, int],
    layout: Layout,
) -> None:
    """Has a graph look up rows in row groups, by functions of standard operators.

    Args:
        proto: traced, with a node for each lookup.
        features: its KeyedJaggedTensors and JaggedTensors.
        calls: its lookups.
        groups: by dim.
        unseen: by table, what ids without a row read as.
        max_length: by feature, what a longer bag than that is refused at.
        layout: of the graph's file.
    """
    used: dict[Lookup, None] = {}
    nodes = _checks(proto.graph, features)
    arrays: dict[int, set[str]] = {dim: set() for dim in groups}
    for node in proto.graph.node:
        if node.domain != DOMAIN or node.op_type != NODE:
            nodes.append(node)
            continue
        number = _number(node)
        lowered = _Lowered(node, calls[number], f"lookup_{number}", groups, unseen, max_length)
        nodes += lowered.nodes
        proto.graph.initializer.extend(lowered.initializers)
        used.update(dict.fromkeys(lowered.lookups))
        for dim, shared in lowered.arrays:
            arrays[dim].update(shared)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.functions.extend(functions_for(used))
    proto.ir_version = IR_VERSION
    if layout.inline:
        proto.CopyFrom(inline_local_functions(proto))
        _remove_domain(proto)
    size = sum(groups[dim].size(sorted(names)) for dim, names in arrays.items())
    if layout.single_file and size > LARGEST_FILE:
        raise ValueError(f"single_file takes at most {LARGEST_FILE} bytes, and these rows have {size}")
    for dim, names in arrays.items():
        proto.graph.initializer.extend(
            groups[dim].initializers(sorted(names), layout.directory, embedded=layout.single_file)
        )


def _checks(graph: onnx.GraphProto, features: Sequence[JaggedInput]) -> list[onnx.NodeProto]:
    """Nodes that check the jagged tensors of which anything but a lookup reads a part; all then read what they give."""
    others = [node for node in graph.node if node.domain != DOMAIN or node.op_type != NODE]
    outputs = {output.name for output in graph.output}
    read = outputs.union(*map(_read_by, others))
    # Lookups get lengths by way of a Reshape, which is no use of its own.
    read = outputs.union(*(_read_by(node) for node in others if node.op_type != "Reshape" or node.output[0] in read))
    checks: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    for feature in features:
        if read.isdisjoint(feature.inputs):
            continue
        checked = [f"{name}/checked" for name in feature.inputs]
        checks.append(
            helper.make_node(CHECK, feature.inputs[:2], checked[:2], name=f"{feature.name}/check", domain=DOMAIN)
        )
        if feature.weighted:
            shape, refusal = f"{feature.name}/shape", f"{feature.name}/{REFUSALS['checked_weights']}"
            weights = [feature.inputs[2], shape]
            checks.append(helper.make_node("Shape", checked[:1], [shape], name=shape, end=1))
            checks.append(helper.make_node("Reshape", weights, checked[2:], name=refusal, allowzero=1))
        renamed.update(zip(feature.inputs, checked, strict=True))
    rename_read(graph, renamed)
    return checks


class _Lowered:
    """What takes the place of one node."""

    def __init__(
        self,
        node: onnx.NodeProto,
        call: LookupCall,
        name: str,
        groups: Mapping[int, RowGroup],
        unseen: Mapping[str, str],
        max_length: Mapping[str, int],
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.lookups: list[Lookup] = []
        self.arrays: list[tuple[int, list[str]]] = []
        self._call = call
        self._outputs = call.plan.outputs
        self._name = name
        self._groups = groups
        self._unseen = unseen
        if call.plan.kind is LookupKind.ROWS:
            self._embedding(node)
            return
        inputs = list(node.input)
        inputs[1] = self._limit(inputs[1], max_length)
        if call.plan.kind is LookupKind.POOLED:
            self._bags(inputs, node.output[0])
        else:
            self._sequences(inputs, list(node.output))

    def _bags(self, inputs: list[str], output: str) -> None:
        """One pooled lookup for each dim, and their columns in the outputs' order."""
        by_dim: dict[int, list[int]] = {}
        for i, dim in enumerate(self._call.plan.dims):
            by_dim.setdefault(dim, []).append(i)
        if len(by_dim) == 1:
            self._lookup(inputs, range(len(self._outputs)), output, pooled=True)
            return
        columns = [""] * len(self._outputs)
        for dim, members in by_dim.items():
            pooled = f"{self._name}/{dim}/pooled"
            self._lookup(inputs, members, pooled, pooled=True)
            for i in members:
                columns[i] = f"{self._name}/{i}"
            self._node("Split", [pooled], [columns[i] for i in members], axis=1, num_outputs=len(members))
        self._node("Concat", columns, [output], axis=1)

    def _sequences(self, inputs: list[str], outputs: list[str]) -> None:
        """One lookup of rows, which has one dim, and its rows by output."""
        if len(outputs) == 1:
            self._lookup(inputs, [0], outputs[0], pooled=False)
            return
        rows, sizes = f"{self._name}/rows", f"{self._name}/sizes"
        lengths = self._lookup(inputs, range(len(outputs)), rows, pooled=False)
        self._node("ReduceSum", [lengths, self._ints("second_axis", [1])], [sizes], keepdims=0)
        self._node("Split", [rows, sizes], outputs, axis=0)

    def _embedding(self, node: onnx.NodeProto) -> None:
        ids, rows = node.input[0], f"{self._name}/rows"
        flat, count, lengths, shape = (f"{self._name}/{part}" for part in ("ids", "count", "lengths", "shape"))
        self._node("Reshape", [ids, self._ints("flat", [-1])], [flat])
        self._node("Size", [ids], [count])
        self._node("Unsqueeze", [count, self._ints("axes", [0, 1])], [lengths])
        self._lookup([flat, lengths], [0], rows, pooled=False)
        ids_shape = f"{self._name}/ids_shape"
        self._node("Shape", [ids], [ids_shape])
        self._node("Concat", [ids_shape, self._ints("dim", [self._outputs[0].dim])], [shape], axis=0)
        self._node("Reshape", [rows, shape], [node.output[0]], allowzero=1)

    def _lookup(self, inputs: list[str], members: Sequence[int], result: str, pooled: bool) -> str:
        """A lookup of these outputs, by number, all of one dim. Returns the name of their lengths."""
        outputs = [self._outputs[i] for i in members]
        group = self._groups[outputs[0].dim]
        name = f"{self._name}/{group.dim}"
        keys = [self._call.positions[i] for i in members]
        if keys != list(range(self._call.num_keys)):
            selected, lengths, position = (f"{name}/{part}" for part in ("values", "lengths", "position"))
            self._node(
                SELECT, [*inputs[:2], self._ints(f"{group.dim}/keys", keys)], [selected, lengths, position], DOMAIN
            )
            weights = [f"{name}/weights"] if len(inputs) > 2 else []
            if weights:
                shape, checked = f"{name}/values_shape", f"{name}/checked_weights"
                self._node("Shape", [inputs[0]], [shape])
                self._node("Reshape", [inputs[2], shape], [checked], allowzero=1)
                self._node("GatherElements", [checked, position], weights)
            inputs = [selected, lengths, *weights]
        numbers = [group.tables[output.table] for output in outputs]
        lookup = Lookup(
            rows=group.rows,
            pooled=pooled,
            weighted=len(inputs) > 2,
            means=pooled and any(output.mean for output in outputs),
            initial=any(self._unseen[output.table] == "initial" for output in outputs),
            mean_rows=any(self._unseen[output.table] == "mean" for output in outputs),
        )
        own = {
            "tables": np.array(numbers, dtype=np.int64),
            "means": np.array([output.mean for output in outputs]),
        }
        arguments = list(inputs)
        shared = []
        for array in lookup.inputs[len(inputs) :]:
            if array in own:
                arguments.append(self._array(f"{group.dim}/{array}", own[array]))
            else:
                shared.append(array)
                arguments.append(group.initializer(array))
        self.arrays.append((group.dim, shared))
        self.lookups.append(lookup)
        self._node(lookup.name, arguments, [result], DOMAIN)
        return inputs[1]

    def _limit(self, lengths: str, max_length: Mapping[str, int]) -> str:
        limits = {key: max_length.get(o.feature) for key, o in zip(self._call.positions, self._outputs, strict=True)}
        if not any(limit is not None for limit in limits.values()):
            return lengths
        most = [limits.get(key) for key in range(self._call.num_keys)]
        limit = np.array([[2**62 if m is None else m] for m in most], dtype=np.int64)
        limited = f"{self._name}/limited"
        self._node(LIMIT, [lengths, self._array("limit", limit)], [limited], DOMAIN)
        return limited

    def _node(self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> None:
        refusal = REFUSALS.get(outputs[0].rpartition("/")[2], "")
        name = f"{self._name}/{kind}_{len(self.nodes)}{refusal and f': {refusal}'}"
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))

    def _ints(self, name: str, values: Sequence[int]) -> str:
        return self._array(name, np.array(values, dtype=np.int64))

    def _array(self, name: str, array: npt.NDArray[Any]) -> str:
        name = f"{self._name}/{name}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name


def lower_to_inputs(proto: onnx.ModelProto, calls: Sequence[LookupCall]) -> list[list[str]]:
    """Makes inputs of what a graph's lookups give; returns their names by call, "" for what is of no use.

    Nodes and inputs that are of no use then are gone.
    """
    nodes = []
    names: dict[int, list[str]] = {}
    for node in proto.graph.node:
        if node.domain != DOMAIN or node.op_type != NODE:
            nodes.append(node)
            continue
        number = _number(node)
        path = _path(calls, number)
        names[number] = _input_names(calls[number], path)
        for output, name, shape in zip(node.output, names[number], _shapes(calls[number], path), strict=True):
            nodes.append(helper.make_node("Identity", [name], [output]))
            proto.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    _remove_unused(proto)
    _remove_domain(proto)
    proto.ir_version = IR_VERSION
    used = {value.name for value in proto.graph.input}
    return [[name if name in used else "" for name in names.get(number, [])] for number in range(len(calls))]


def _path(calls: Sequence[LookupCall], number: int) -> str:
    """What the inputs of a call are named by: its collection, and which of its calls it is but for the first."""
    path = calls[number].path
    nth = 1 + sum(call.path == path for call in calls[:number])
    return (path or "lookup") + (f"#{nth}" if nth > 1 else "")


def _input_names(call: LookupCall, path: str) -> list[str]:
    if call.plan.kind is LookupKind.POOLED:
        return [f"{path}.pooled"]
    if call.plan.kind is LookupKind.ROWS:
        return [f"{path}.rows"]
    return [f"{path}.{name}" for name in call.plan.names]


def _shapes(call: LookupCall, path: str) -> list[list[str | int] | None]:
    if call.plan.kind is LookupKind.POOLED:
        return [["batch", call.plan.width]]
    if call.plan.kind is LookupKind.ROWS:
        return [None]
    return [[f"{path}.{output.feature}.ids", output.dim] for output in call.plan.outputs]


def _remove_domain(proto: onnx.ModelProto) -> None:
    """Of a graph that has none of this package's operators."""
    for domain in [d for d in proto.opset_import if d.domain == DOMAIN]:
        proto.opset_import.remove(domain)


def _remove_unused(proto: onnx.ModelProto) -> None:
    needed = {output.name for output in proto.graph.output}
    kept = []
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_read_by(node))
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(kept))
    for values in (proto.graph.input, proto.graph.initializer):
        used = [value for value in values if value.name in needed]
        del values[:]
        values.extend(used)


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """What a node and its subgraphs read, and some names of their own."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from _read_by(inner)
            yield from (output.name for output in attribute.g.output)


def _number(node: onnx.NodeProto) -> int:
    return int(next(a.i for a in node.attribute if a.name == NUMBER))
