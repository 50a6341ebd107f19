"""The programs inside PyTorch files, carried out as far as they describe tensors, and no further.

A pickle is a program for a machine with a stack: it may name any function installed and call it.
This is another machine with the same instructions, of which it has those that a mapping of tensors
needs. It knows five names, and what each stands for is written here. It has no instruction that
takes memory for what is only claimed, compares, or looks through what it has built, since a few
hundred bytes can build what is never looked through to the end.
"""

from __future__ import annotations

import pickletools
from typing import Any, BinaryIO, NamedTuple

import numpy as np

DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
NAMES = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    *(f"torch.{storage}" for storage in DTYPES),
}
MOST_BITS = 128
MOST_AXES = 32
MOST_INSTRUCTIONS = 1 << 21
"""A tensor takes about forty."""


class Storage(NamedTuple):
    """A run of values in the file: how they are stored, under which key, and how many."""

    dtype: np.dtype
    key: str
    numel: int


class Tensor(NamedTuple):
    """A view of a storage, in its values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Named(NamedTuple):
    name: str


class _Ordered(dict):
    """What an OrderedDict becomes; what else was attached to it (its version) is dropped."""


_MARK = object()
_CONSTANTS = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4"}
_TEXTS = {"BINUNICODE", "SHORT_BINUNICODE"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def run(stream: BinaryIO) -> Any:
    """Carries out the program at the stream's place, and leaves the stream behind its end.

    Returns numbers, texts, lists, tuples and dictionaries, `Tensor`s among them. Raises ValueError,
    TypeError or IndexError for whatever else is in the program.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count == MOST_INSTRUCTIONS:
            raise ValueError(f"it has more than {MOST_INSTRUCTIONS:,} instructions")
        code = opcode.name
        if code in ("PROTO", "FRAME"):
            continue
        if code == "STOP":
            return stack.pop()
        if code in _CONSTANTS:
            stack.append(_CONSTANTS[code]())
        elif code == "MARK":
            stack.append(_MARK)
        elif code in _NUMBERS:
            stack.append(_number(argument))
        elif code in _TEXTS:
            stack.append(argument)
        elif code == "GLOBAL":
            stack.append(_named(str(argument).replace(" ", ".", 1)))
        elif code == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_named(f"{_text(module)}.{_text(attribute)}"))
        elif code in ("BINPUT", "LONG_BINPUT"):
            memo[_number(argument)] = stack[-1]
        elif code == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(memo[_number(argument)])
        elif code == "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        elif code in _TUPLES:
            items = stack[-_TUPLES[code] :]
            del stack[-_TUPLES[code] :]
            stack.append(tuple(items))
        elif code in ("APPEND", "APPENDS"):
            items = [stack.pop()] if code == "APPEND" else _since_mark(stack)
            if type(stack[-1]) is not list:
                raise ValueError("it appends to something that is no list")
            stack[-1].extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if code == "SETITEM" else _since_mark(stack)
            _set(stack[-1], items)
        elif code == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif code == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif code == "BUILD":
            stack.pop()
            if type(stack[-1]) is not _Ordered:
                raise TypeError("it sets attributes of something that has none")
        else:
            raise ValueError(f"its instruction {code} is one that no file of plain tensors needs")
    raise ValueError("it does not end")


def _since_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _number(value: Any) -> int:
    if type(value) is not int or value.bit_length() > MOST_BITS:
        raise ValueError("it has a whole number of more digits than any size has")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("it has a name that is no text")
    return value


def _named(name: str) -> _Named:
    if name not in NAMES:
        raise ValueError(f"it names {name[:200]}, which no file of plain tensors needs")
    return _Named(name)


def _set(mapping: Any, items: list[Any]) -> None:
    if not isinstance(mapping, dict) or len(items) % 2:
        raise ValueError("it sets entries of something that is no mapping")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str:
            raise ValueError(f"it has an entry under a {type(key).__name__}, not under a name")
        if key in mapping:
            raise ValueError(f"it has two entries {key[:200]!r}")
        mapping[key] = value


def _call(function: Any, arguments: Any) -> Any:
    if type(function) is not _Named or not isinstance(arguments, tuple):
        raise TypeError(f"it calls a {type(function).__name__}, which is not callable")
    if function.name == "collections.OrderedDict" and not arguments:
        return _Ordered()
    if function.name == "torch._utils._rebuild_tensor_v2" and 4 <= len(arguments) <= 6:
        return _tensor(*arguments[:4])
    raise TypeError(f"{function.name} is not callable with {len(arguments)} arguments")


def _storage(described: Any) -> Storage:
    """A storage from ("storage", class, key, device, number of values, ...)."""
    if type(described) is not tuple or len(described) < 5:
        raise ValueError("it refers to something that is no storage")
    what, kind, key, _, numel, *view = described
    if type(what) is not str or what != "storage":
        raise ValueError("it refers to something that is no storage")
    if type(kind) is not _Named or type(key) is not str or type(numel) is not int:
        raise ValueError("it describes a storage in another way than PyTorch does")
    if kind.name.removeprefix("torch.") not in DTYPES:
        raise ValueError(f"it has a storage of {kind.name}")
    if numel < 0 or any(part is not None for part in view):
        raise ValueError("it has a storage of negative size, or a view of one")
    return Storage(DTYPES[kind.name.removeprefix("torch.")], key, numel)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    if type(storage) is not Storage or type(shape) is not tuple:
        raise ValueError("a tensor is made of something that is no storage")
    if type(strides) is not tuple or len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise ValueError("a tensor has another number of axes than of strides, or too many")
    for value in (offset, *shape, *strides):
        if type(value) is not int or value < 0:
            raise ValueError("a tensor has sizes that are no whole numbers ≥ 0")
    return Tensor(storage, offset, shape, strides)
