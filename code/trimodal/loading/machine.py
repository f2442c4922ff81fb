"""The machine that pickles are programs of, as far as it builds plain containers, numbers, strings and numpy scalars.

Python's own would call what a file names, hash keys for hours (tuples of twice the same tuple, again and again), and
overflow its stack where values are nested deeply. `pickletools` says what each instruction does.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

MOST_VALUES = 2_000_000
"""Instructions of a pickle, and values that it holds, each counted as often as it is reached."""

DEPTH = 32
"""Most containers within each other."""

_BITS = 1024  # of the largest number
_SCALAR = re.compile(r"\?|[biuf]\d|[SU]\d{1,4}", re.ASCII)

_LITERALS = frozenset(
    {
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
        "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
        "BINBYTES8",
    }
)  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SCALARS = ("numpy._core.multiarray", "numpy.core.multiarray")  # numpy 2, numpy 1

_KNOWN = frozenset(
    {
        ("collections", "OrderedDict"),
        *((module, name) for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "bytes")),
        ("numpy", "dtype"),
        *((module, "scalar") for module in _SCALARS),
        ("_codecs", "encode"),  # how protocols 0 to 2 write bytes
    }
)


class NotPlain(Exception):
    """A pickle would build something else than plain values, or too many of them; the text says what."""


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """Stands in for a function or a class."""

    module: str
    name: str


@dataclass(slots=True, eq=False)
class _Dtype:
    """Stands in for `numpy.dtype`, whose own unpickling trusts its input."""

    code: str
    order: str = "="


class Machine:
    """Runs one pickle."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """Returns what a pickle builds.

        Raises:
            NotPlain: it is no plain value.
            Exception: whatever a damaged pickle makes of the machine.
        """
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MOST_VALUES:
                raise NotPlain(f"it holds more than {MOST_VALUES} values")
            self._do(opcode.name, argument)
        (value,) = self._stack
        _check_size(value)
        return value

    def find(self, module: str, name: str) -> Any:
        """Returns what stands in for a name.

        Raises:
            NotPlain: it is not known.
        """
        if (module, name) not in _KNOWN:
            raise NotPlain(f"it would build {module[:80]}.{name[:80]}, and only plain values are allowed")
        return Global(module, name)

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:  # noqa: PLR0911  one for each name
        """Returns what the call of a name would give.

        Raises:
            NotPlain: it would not be plain.
        """
        match function, arguments:
            case Global(name="OrderedDict"), ():
                return {}
            case Global(name="OrderedDict"), ([*pairs],):
                return {_key(key): value for key, value in pairs}
            case Global(name="set"), ([*items],):
                return set(map(_key, items))
            case Global(name="frozenset"), ([*items],):
                return frozenset(map(_key, items))
            case Global(name="bytes"), ():  # how protocols 0 to 2 write empty bytes
                return b""
            case Global(name="dtype"), (str(code), *_):
                return _Dtype(code)
            case Global(name="scalar"), (_Dtype() as dtype, *data):
                return _scalar(dtype, *data)
            case Global(name="encode"), (str(text), "latin1" | "latin-1"):
                return text.encode("latin-1")
        raise NotPlain("it calls something that builds no plain value")

    def change(self, target: Any, state: Any) -> None:
        """Takes note of an object's state; attributes of a dict are of no interest.

        Raises:
            NotPlain: the object has none.
        """
        if isinstance(target, _Dtype) and isinstance(state, tuple):
            target.order = state[1] if state[1] in ("<", ">") else "="
        elif not isinstance(target, dict):
            raise NotPlain("it changes something that is not plain")

    def outside(self) -> Any:
        """Returns what stands outside of the pickle.

        Raises:
            NotPlain: that is not plain.
        """
        raise NotPlain("it refers to something outside")

    def _do(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            if isinstance(argument, int) and argument.bit_length() > _BITS:
                raise NotPlain("it holds a number with too many digits")
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            self._stack.append(tuple(self._take(_TUPLES[name])))
        elif name not in ("PROTO", "FRAME", "STOP"):
            step = getattr(self, f"_do_{name.lower()}", None)
            if step is None:
                raise NotPlain(f"it uses {name}, which builds no plain value")
            step(argument)

    def _take(self, count: int) -> list[Any]:
        """Takes the last values."""
        if len(self._stack) < count:
            raise ValueError("stack underflow")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _take_marked(self) -> list[Any]:
        """Takes the values since the last mark."""
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _fill(self, items: list[Any]) -> None:
        """Adds values to the container that lies on top."""
        target = self._stack[-1]
        if isinstance(target, dict):
            target.update(zip(map(_key, items[::2]), items[1::2], strict=True))
        elif isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(map(_key, items))
        else:
            raise NotPlain("it fills something that is no container")

    def _do_mark(self, _: None) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _do_pop(self, _: None) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._take_marked()

    def _do_pop_mark(self, _: None) -> None:
        self._take_marked()

    def _do_tuple(self, _: None) -> None:
        items = self._take_marked()
        self._stack.append(tuple(items))

    def _do_list(self, _: None) -> None:
        items = self._take_marked()
        self._stack.append(items)

    def _do_dict(self, _: None) -> None:
        items = self._take_marked()
        self._stack.append({})
        self._fill(items)

    def _do_frozenset(self, _: None) -> None:
        items = self._take_marked()
        self._stack.append(frozenset(map(_key, items)))

    def _do_append(self, _: None) -> None:
        self._fill(self._take(1))

    def _do_setitem(self, _: None) -> None:
        self._fill(self._take(2))

    def _do_appends(self, _: None) -> None:
        items = self._take_marked()
        self._fill(items)

    _do_setitems = _do_additems = _do_appends

    def _do_put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    _do_binput = _do_long_binput = _do_put

    def _do_memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_get(self, place: int) -> None:
        self._stack.append(self._memo[place])

    _do_binget = _do_long_binget = _do_get

    def _do_global(self, names: str) -> None:
        module, _, name = names.partition(" ")
        self._stack.append(self.find(module, name))

    def _do_stack_global(self, _: None) -> None:
        module, name = self._take(2)
        self._stack.append(self.find(str(module), str(name)))

    def _do_reduce(self, _: None) -> None:
        function, arguments = self._take(2)
        self._stack.append(self.call(function, arguments))

    _do_newobj = _do_reduce

    def _do_build(self, _: None) -> None:
        (state,) = self._take(1)
        self.change(self._stack[-1], state)

    def _do_binpersid(self, _: None) -> None:
        self._take(1)
        self._stack.append(self.outside())

    def _do_persid(self, _: None) -> None:
        self._stack.append(self.outside())


def _key(value: Any) -> Any:
    """Returns a value that may be a key: nothing that is made of other values."""
    if value is not None and not isinstance(value, str | bytes | int | float):
        raise NotPlain("it holds a key that is neither a text nor a number")
    return value


def _scalar(dtype: _Dtype, data: object = b"") -> object:
    """Returns the Python value of a pickled numpy scalar."""
    raw = data.encode("latin-1") if isinstance(data, str) else data  # as Python 2 wrote bytes
    if _SCALAR.fullmatch(dtype.code) is None or not isinstance(raw, bytes):
        raise NotPlain("it holds a numpy value that is neither a number nor a string")
    real = np.dtype(dtype.order + dtype.code)
    if real.itemsize != len(raw):
        raise NotPlain("it holds a numpy value of another size than its type's")
    return np.frombuffer(raw, dtype=real)[0].item()


def _check_size(value: object) -> None:
    """Refuses what is small in memory and endless to go through: shared, nested or recursive containers."""
    level: list[object] = [value]
    seen = 0
    for _ in range(DEPTH + 1):
        level = list(islice(_children(level), MOST_VALUES - seen + 1))
        seen += len(level)
        if seen > MOST_VALUES:
            raise NotPlain(f"it holds more than {MOST_VALUES} values")
        if not level:
            return
    raise NotPlain(f"its values are nested more than {DEPTH} levels deep")


def _children(level: Iterable[object]) -> Iterator[object]:
    for item in level:
        if isinstance(item, Global | _Dtype):
            raise NotPlain("it holds a function or a class")
        if isinstance(item, dict):
            yield from item.values()
        elif isinstance(item, list | tuple | set | frozenset):
            yield from item
