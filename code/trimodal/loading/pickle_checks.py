"""Looks at a pickle before Python's unpickler runs it, and at what came of it.

The unpickler would hash keys for hours (tuples of twice the same tuple, again and again; numbers of the same hash),
overflow its stack where they are nested deeply, and reserve memory for far places of its memo. A few bytes also make
containers that hold each other, which are small in memory and endless to read.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

MOST_VALUES = 2_000_000
"""Instructions of a pickle, items that it copies, and values that it holds, each counted as often as it is reached."""

DEPTH = 32
"""Most containers within each other."""

_BITS = 64  # of the largest number: longer ones can be made to have the same hash


class NotPlain(Exception):
    """A pickle would build something else than plain values, or too many of them; the text says what."""


_COMPOUND = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"})
_KEEPS = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})  # its first value is its result


def check_program(data: bytes) -> None:
    """Follows which values on the unpickler's stack are tuples, and refuses them as keys.

    The hash of a tuple goes through all that it holds, as often as it is reached, and anyone can make tuples whose
    hashes are equal.

    Raises:
        NotPlain: a pickle uses one as a key, or is too long, or holds a number that is.
        Exception: it is damaged.
    """
    stack: list[bool | None] = []  # whether it is a tuple; None for a mark
    memo: dict[int, bool | None] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        name = opcode.name
        if count > MOST_VALUES:
            raise NotPlain(f"it holds more than {MOST_VALUES} values")
        if isinstance(argument, int) and argument.bit_length() > _BITS:
            raise NotPlain("it holds a number with too many digits")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(memo) if argument is None else int(argument)
            if place > len(data):  # the unpickler reserves memory for as many
                raise ValueError("memo index")
            memo[place] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name == "MARK":
            stack.append(None)
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            taken = _take(stack, opcode.stack_before)
            if any(_keys(name, taken)):
                raise NotPlain("it holds a key that is neither a text nor a number")
            kept = name in _KEEPS and bool(taken[0])
            stack += [name in _COMPOUND or kept] * len(opcode.stack_after)


def _take(stack: list[bool | None], before: list[pickletools.StackObject]) -> list[bool | None]:
    """Takes from a stack what an instruction takes."""
    marked: list[bool | None] = []
    count = len(before)
    if pickletools.markobject in before:
        while (item := stack.pop()) is not None:
            marked.append(item)
        count = before.index(pickletools.markobject)
    if not count:
        return marked[::-1]
    if len(stack) < count:
        raise ValueError("stack underflow")
    taken = stack[-count:]
    del stack[-count:]
    return taken + marked[::-1]


def _keys(name: str, taken: list[bool | None]) -> list[bool | None]:
    """Returns those of the values that an instruction takes which it hashes."""
    match name:
        case "FROZENSET":
            return taken
        case "ADDITEMS":
            return taken[1:]
        case "DICT":
            return taken[::2]
        case "SETITEM" | "SETITEMS":
            return taken[1::2]
    return []


def check_key(value: Any) -> Any:
    """Returns a value that may be a key: nothing that is made of other values.

    Raises:
        NotPlain: it is something else.
    """
    if value is not None and not isinstance(value, str | bytes | int | float):
        raise NotPlain("it holds a key that is neither a text nor a number")
    return value


def check_value(value: object, *also: type) -> None:
    """Checks that a value holds only plain values, and not too many of them.

    Args:
        value: what a pickle built.
        also: what counts as plain too.

    Raises:
        NotPlain: it does not, or it is endless to go through.
    """
    level: list[object] = [value]
    seen = 0
    for _ in range(DEPTH + 1):
        level = list(islice(_children(level, also), MOST_VALUES - seen + 1))
        seen += len(level)
        if seen > MOST_VALUES:
            raise NotPlain(f"it holds more than {MOST_VALUES} values")
        if not level:
            return
    raise NotPlain(f"its values are nested more than {DEPTH} levels deep")


def _children(level: Iterable[object], also: tuple[type, ...]) -> Iterator[object]:
    for item in level:
        if isinstance(item, dict):
            yield from item.values()
        elif isinstance(item, list | tuple | set | frozenset):
            yield from item
        elif item is not None and not isinstance(item, (str, bytes, int, float, *also)):
            raise NotPlain("it holds something that is not plain")
