"""What lookups are in an exported graph: functions of standard operators, opset 18.

Each is a function of the domain ``damo_torchrec`` with a body that any runtime can run. A runtime that has a kernel of
the same name (csrc/onnxruntime_ops/) runs that instead: results are the same but for the order in which rows of a bag
are summed. The bodies are texts of ONNX's own syntax.
"""

import functools
from collections.abc import Iterable

import onnx
import onnx.parser

from damo_torchrec.graph_check import DOMAIN
from damo_torchrec.onnx.hash_functions import initial_rows, perfect_hash
from damo_torchrec.onnx.jagged_functions import (
    CHECK_JAGGED,
    CHECK_LENGTHS,
    LIMIT_LENGTHS,
    SEGMENTS,
    SELECT_KEYS,
)
from damo_torchrec.onnx.lookup_functions import embedding_bags, embedding_rows
from damo_torchrec.onnx.vocabulary import OPSET, REFUSALS, VERSION, Lookup


def functions_for(lookups: Iterable[Lookup]) -> list[onnx.FunctionProto]:
    """The functions that a graph with these lookups needs, and those that it may put before them."""
    wanted = list(dict.fromkeys(lookups))
    drawn = sorted({lookup.rows.dim for lookup in wanted if lookup.initial})
    texts = [
        *(SEGMENTS, CHECK_LENGTHS, CHECK_JAGGED, LIMIT_LENGTHS, SELECT_KEYS, perfect_hash()),
        *(initial_rows(dim) for dim in drawn),
        *(embedding_bags(lookup) if lookup.pooled else embedding_rows(lookup) for lookup in wanted),
    ]
    return [_parse(text) for text in dict.fromkeys(texts)]  # most are the same for all dims


@functools.cache
def _parse(text: str) -> onnx.FunctionProto:
    head = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}, "{DOMAIN}" : {VERSION}]>'
    function = onnx.parser.parse_function(head + text)
    for node in function.node:
        node.name = f"{function.name}/{REFUSALS.get(node.output[0], node.output[0])}"
    return function
