"""Names in a traced graph: those of the model, of its arguments and of its outputs, in place of torch's."""

from collections.abc import Collection, Mapping, Sequence

import onnx

from damo_torchrec.onnx.arguments import Arguments


def check_outputs(outputs: Sequence[str], inputs: Collection[str]) -> None:
    """Raises ValueError unless there are outputs, and each has a name that no other one and no input has."""
    if not outputs:
        raise ValueError("the model returns no tensor: its graph would have no output")
    if clashing := sorted({name for name in outputs if not name or outputs.count(name) > 1 or name in inputs}):
        raise ValueError(
            f"outputs must have names that no other output and no input has, got {clashing}: there are the outputs "
            f"{list(outputs)} and the inputs {sorted(inputs)}; output_names= gives others"
        )


def strip_prefix(proto: onnx.ModelProto, prefix: str, outputs: Collection[str]) -> None:
    """Calls parameters as the model does, but for those that an input or an output is called as."""
    taken = {value.name for value in proto.graph.input} | set(outputs)
    names = [i.name for i in proto.graph.initializer if i.name.startswith(prefix)]
    rename(proto, {name: short for name in names if (short := name.removeprefix(prefix)) not in taken})


def rename(proto: onnx.ModelProto, renamed: Mapping[str, str]) -> None:
    """Gives values that are no inputs other names."""
    for initializer in proto.graph.initializer:
        initializer.name = renamed.get(initializer.name, initializer.name)
    _rename_in_nodes(proto.graph, renamed, outputs=True)
    del proto.graph.value_info[:]


def rename_read(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Has nodes, and those of their subgraphs, read other names."""
    _rename_in_nodes(graph, renamed, outputs=False)


def _rename_in_nodes(graph: onnx.GraphProto, renamed: Mapping[str, str], outputs: bool) -> None:
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if outputs:
            node.output[:] = [renamed.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename_in_nodes(attribute.g, renamed, outputs=False)


def name_inputs(proto: onnx.ModelProto, names: Collection[str]) -> None:
    """Gives an input its name again that is an output, too: torch 2.9's exporter calls the output so instead."""
    renamed = {i.name: name for i, name in zip(proto.graph.input, names, strict=True) if i.name != name}
    renamed |= {name: f"{name}/output" for name in renamed.values()}
    rename(proto, renamed)
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = renamed.get(value.name, value.name)


def name_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """An output that is an input, or another output, is copied; what else has one of these names gets another."""
    own = {name for node in proto.graph.node for name in node.output} | {i.name for i in proto.graph.initializer}
    results = {output.name for output in proto.graph.output}
    rename(proto, {name: f"{name}/within" for name in own & set(names) - results})
    taken = {value.name for value in (*proto.graph.input, *proto.graph.initializer)}
    renamed: dict[str, str] = {}
    copies = []
    for output, name in zip(proto.graph.output, names, strict=True):
        if output.name in taken or output.name in renamed:
            copies.append((output.name, name))
        else:
            renamed[output.name] = name
        output.name = name
    rename(proto, renamed)
    for source, name in copies:
        proto.graph.node.append(onnx.helper.make_node("Identity", [renamed.get(source, source)], [name]))


def name_dimensions(proto: onnx.ModelProto, arguments: Arguments) -> None:
    """Calls sizes what they are instead of torch's ``s37``."""
    shapes = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.input}
    renamed: dict[str, str] = {}
    for jagged in (*arguments.features, *arguments.jagged):
        values, lengths, *_ = jagged.inputs
        renamed.setdefault(shapes[lengths][-1].dim_param, "batch")
        renamed.setdefault(shapes[values][0].dim_param, f"{jagged.name}.ids")
    for name in arguments.tensors:
        for axis in arguments.dynamic[name]:
            renamed.setdefault(shapes[name][axis].dim_param, "batch" if axis == 0 else f"{name}.{axis}")
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in renamed:
                dim.dim_param = renamed[dim.dim_param]
