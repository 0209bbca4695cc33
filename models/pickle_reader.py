"""Reads a pickle as passive data: nothing in it is imported, called or built.

The opcodes are those that ``torch.save`` and Python's own ``pickle`` (protocol 2, which both Python 2 and 3 wrote for
weights) use for numbers, text and containers. A global is kept as its name, and what a pickle would have called stays
a `Call`; whoever reads the file says which names it understands. So a hostile pickle has nothing to run.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any


@dataclass(eq=False)
class Global:
    """The name of something importable, as ``module.name``."""

    name: str


@dataclass(eq=False)
class Call:
    """A call that the pickle asks for: its name, its arguments, and what it then sets on the result."""

    name: str
    args: tuple[Any, ...]
    state: Any = None
    items: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Persistent:
    """A reference to something outside the pickle."""

    id: Any


def read_pickle(file: IO[bytes]) -> Any:
    """Read one pickle from the file's position on, and leave the position just after it.

    Returns None, bool, int, float, str, tuple, list, dict, `Global`, `Call` and `Persistent` objects. Raises
    `ValueError` for a pickle that ends early, is malformed, has keys other than text, or uses any other opcode. The
    caller bounds the file's size, and with it the memory used.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                (value,) = machine.stack
                return value
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"malformed pickle ({type(error).__name__}: {error})") from None
    raise ValueError("the pickle has no end")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSH_ARGUMENT:
            self.stack.append(argument)
        elif name in _PUSH_CONSTANT:
            self.stack.append(_PUSH_CONSTANT[name]())
        elif name in _TUPLES:
            size = _TUPLES[name]
            self.stack[-size:] = [tuple(self._top(size))]
        elif name in _METHODS:
            _METHODS[name](self, argument)
        elif name != "PROTO":
            raise ValueError(f"pickle opcode {name} has no place among weights")

    def _top(self, size: int) -> list[Any]:
        if len(self.stack) < size:
            raise IndexError("stack too short")
        return self.stack[-size:]

    def _since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def _mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        self._list().append(value)

    def _appends(self, _: Any) -> None:
        values = self._since_mark()
        self._list().extend(values)

    def _list(self) -> list[Any]:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("append to what is not a list")
        return target

    def _set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set({key_of(key): value})

    def _set_items(self, _: Any) -> None:
        values = self._since_mark()
        self._set({key_of(key): value for key, value in zip(values[::2], values[1::2], strict=True)})

    def _set(self, items: dict[str, Any]) -> None:
        target = self.stack[-1]
        (target.items if isinstance(target, Call) else target).update(items)

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def _global(self, argument: str) -> None:
        # pickletools joins the two lines of the opcode with a space.
        self.stack.append(Global(argument.replace(" ", ".")))

    def _call(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(args, tuple):
            raise TypeError("call without a tuple of arguments")
        # Old torch files of whole modules call references: no name, and nobody who would understand them.
        self.stack.append(Call(function.name if isinstance(function, Global) else "an unnamed object", args))

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, Call):
            raise TypeError("state set on what no call made")
        target.state = state

    def _persistent(self, _: Any) -> None:
        self.stack.append(Persistent(self.stack.pop()))


def key_of(value: Any) -> str:
    """Return the value if it may be a key of a dictionary here, which only text may; raise `TypeError` otherwise.

    (The hash of nested tuples would take exponential time.)
    """
    if not isinstance(value, str):
        raise TypeError(f"key of type {type(value).__name__}")
    return value


_PUSH_ARGUMENT = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINSTRING",  # Python 2's text
    "BINSTRING",
}
_PUSH_CONSTANT: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_METHODS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "GLOBAL": _Machine._global,
    "REDUCE": _Machine._call,
    "NEWOBJ": _Machine._call,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
}
