"""Reads structs of the thrift compact protocol, in which parquet files describe themselves.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any

_TRUE, _FALSE, _BYTE, _DOUBLE, _TEXT, _LIST, _STRUCT = 1, 2, 3, 7, 8, 9, 12
_INTEGERS = frozenset((4, 5, 6))
_DEPTH = 8


def read_struct(data: bytes, place: int, depth: int = _DEPTH) -> tuple[dict[int, Any], int]:
    """Reads a struct.

    Args:
        data: what it stands in.
        place: where it begins.
        depth: structs and lists that may stand within each other.

    Returns:
        Field number to value, None for what is no whole number, struct or list; and the place behind the struct.

    Raises:
        ValueError: it is none.
        IndexError: the data ends within it.
    """
    fields: dict[int, Any] = {}
    number = 0
    while (head := data[place]) != 0:
        place += 1
        if head >> 4:
            number += head >> 4
        else:
            number, place = _integer(data, place)
        if number in fields:  # which of them counts differs between readers
            raise ValueError("repeated field")
        kind = head & 15
        fields[number], place = (None, place) if kind in (_TRUE, _FALSE) else _value(data, place, kind, depth)
    return fields, place + 1


def _value(data: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    """Reads a value of a kind; returns it and the place behind it."""
    if kind in _INTEGERS:
        return _integer(data, place)
    if kind == _TEXT:
        length, place = _varint(data, place)
        return None, place + length
    if kind in (_BYTE, _DOUBLE):
        return None, place + (1 if kind == _BYTE else 8)
    if not depth:
        raise ValueError("nested too deeply")
    if kind == _STRUCT:
        return read_struct(data, place, depth - 1)
    if kind == _LIST:
        return _list(data, place, depth - 1)
    raise ValueError("unknown kind of value")


def _list(data: bytes, place: int, depth: int) -> tuple[list[Any], int]:
    head = data[place]
    place += 1
    length, kind = head >> 4, head & 15
    if length == 15:
        length, place = _varint(data, place)
    if length > len(data) - place:  # each takes a byte at least
        raise ValueError("a list longer than its file")
    items = []
    for _ in range(length):
        item, place = (None, place + 1) if kind in (_TRUE, _FALSE) else _value(data, place, kind, depth)
        items.append(item)
    return items, place


def _integer(data: bytes, place: int) -> tuple[int, int]:
    """Reads a signed number (zigzag)."""
    value, place = _varint(data, place)
    return (value >> 1) ^ -(value & 1), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("number too long")
