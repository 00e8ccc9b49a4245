"""How far tuples in a pickle may be nested, told from its opcodes, before anything is made of it.

torch's restricted unpickler makes any tuple, and hashes those that are keys: which takes a time and a stack that grow
with what they hold, counted once for each place where it is, however small the file.
"""

import pickletools
from collections.abc import Sequence
from typing import Any

_DEEPEST = 64
_MOST_ITEMS = 1 << 20
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_MARK = None

# How many items a value has if it is a tuple, those of tuples in it too, and how deep they are nested.
_Size = tuple[int, int]
_PLAIN: _Size = (1, 0)


def check_tuples(pickled: bytes) -> None:
    """Raises ValueError if a tuple is nested too deep, or has too many items, or if it is no pickle."""
    stack: list[_Size | None] = []
    memo: dict[int, _Size | None] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = _top(stack)
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = _top(stack)
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument, _PLAIN))
        elif opcode.name == "MARK":
            stack.append(_MARK)
        elif opcode.name == "DUP":
            stack.append(_top(stack))
        else:
            taken = _take(stack, opcode.stack_before)
            if opcode.name in _TUPLES:
                stack.append(_tuple_of(taken))
            else:
                stack += [_PLAIN] * len(opcode.stack_after)


def _top(stack: Sequence[_Size | None]) -> _Size | None:
    return stack[-1] if stack else _PLAIN


def _take(stack: list[_Size | None], before: Sequence[pickletools.StackObject]) -> list[_Size]:
    """Pops what an opcode takes."""
    taken: list[_Size] = []
    if pickletools.markobject in before:
        while stack and (item := stack.pop()) is not _MARK:
            taken.append(item)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        item = stack.pop() if stack else _PLAIN
        taken.append(item or _PLAIN)
    return taken


def _tuple_of(items: Sequence[_Size]) -> _Size:
    size = 1 + sum(n for n, _ in items), 1 + max((depth for _, depth in items), default=0)
    if size[0] > _MOST_ITEMS or size[1] > _DEEPEST:
        raise ValueError(f"it has a tuple of {size[0]} items, nested {size[1]} deep")
    return size
