"""Pickles that hold state dicts, read and written opcode by opcode; no pickle is ever loaded.

A pickle is a program for a small stack machine whose opcodes may import and call anything. This one has the
opcodes that build dicts, lists, tuples, numbers and texts, and a table of the names that a state dict needs. Each of
those is done here by hand; any other name ends the reading before anything came of it.
"""

import pickletools
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple


class Refused(Exception):
    """What the file holds that will not be read; the text goes into one line behind the file's name."""


class Storage(NamedTuple):
    """A flat run of elements that tensors look into."""

    kind: str  # 'FloatStorage' ...
    key: str  # where its bytes are
    size: int  # elements


class Tensor(NamedTuple):
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Name(NamedTuple):
    """Something that the pickle names: neither imported nor called."""

    text: str


_KINDS = ("Float", "Half", "BFloat16", "Double", "Int", "Long", "Short", "Char", "Byte", "Bool")
_STORAGES = {f"torch.{kind}Storage" for kind in _KINDS}
_MARK = object()
# Opcodes whose argument is the value.
_PUSHED = {"INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"}
_PUSHED |= {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING"}
_PUSHED |= {"SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}


def interpret(file: BinaryIO, seen: dict[str, Storage] | None = None) -> Any:
    """Returns what the pickle at the file's position holds, and leaves the file behind it.

    Args:
      file: open in binary mode.
      seen: takes the storages that the pickle refers to, by key.

    Returns:
      Dicts, lists, tuples, numbers, texts and `Tensor`s.

    Raises:
      Refused: it names something beyond the table below.
      ValueError, IndexError, KeyError, TypeError: it is damaged.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    arg: Any
    for opcode, arg, _ in pickletools.genops(file):
        op = opcode.name
        if op in _PUSHED:
            stack.append(arg)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op]())
        elif op in ("PROTO", "FRAME"):
            pass
        elif op in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif op == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(reversed([stack.pop() for _ in range(int(op[-1]))])))
        elif op == "TUPLE":
            stack.append(tuple(_to_mark(stack)))
        elif op == "LIST":
            stack.append(_to_mark(stack))
        elif op in ("APPEND", "APPENDS"):
            values = _to_mark(stack) if op == "APPENDS" else [stack.pop()]
            _last(stack, list).extend(values)
        elif op in ("SETITEM", "SETITEMS"):
            values = _to_mark(stack) if op == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
            _last(stack, dict).update(_pairs(values))
        elif op == "DICT":
            stack.append(_pairs(_to_mark(stack)))
        elif op == "GLOBAL":
            stack.append(_name(*arg.split(" ", 1)))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_name(module, name))
        elif op == "REDUCE":
            args, name = stack.pop(), stack.pop()
            stack.append(_called(name, args))
        elif op == "BUILD":  # attributes of an OrderedDict: a state dict's _metadata
            stack.pop()
            _last(stack, dict)
        elif op == "BINPERSID":
            stack.append(_storage(stack.pop(), seen))
        elif op == "STOP":
            return stack.pop()
        else:
            raise Refused(
                f"holds more than a state dict (pickle opcode {op}); nothing of it was run"
            )
    raise ValueError("pickle without an end")


def ordered_tensors(tensors: list[tuple[str, Tensor]]) -> bytes:
    """Returns a pickle (protocol 2) of an OrderedDict of tensors, as torch.load(weights_only=True) takes it."""
    ordered = b"ccollections\nOrderedDict\n)R"
    parts = [b"\x80\x02", ordered, b"("]
    for name, (storage, offset, shape, strides) in tensors:
        reference = b"(" + _text("storage") + f"ctorch\n{storage.kind}\n".encode()
        reference += _text(storage.key) + _text("cpu") + _int(storage.size) + b"tQ"
        parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", reference, _int(offset)]
        parts += [_ints(shape), _ints(strides), b"\x89", ordered, b"tR"]  # no gradient, no hooks
    return b"".join([*parts, b"u."])


def _name(module: Any, name: Any) -> _Name:
    # Not yet a text: of a list in a list in a list, shared at each level, that alone would take all memory.
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("the pickle names what is no text")
    text = f"{module}.{name}"
    known = _STORAGES | set(_CALLS) | {"collections.OrderedDict"}
    if text not in known:
        raise Refused(
            f"holds more than a state dict: it would call {text[:80]!r}, so nothing of it was run"
        )
    return _Name(text)


def _called(name: Any, args: Any) -> Any:
    if not isinstance(name, _Name) or not isinstance(args, tuple):
        raise ValueError("a call of what is no name")
    if name.text == "collections.OrderedDict":
        if args and not (len(args) == 1 and isinstance(args[0], list)):
            raise ValueError("an OrderedDict of what is no list")
        return _pairs([x for pair in (args[0] if args else ()) for x in pair])
    return _CALLS[name.text](*args)


def _tensor(storage, offset, shape, strides, grad=False, hooks=None, metadata=None) -> Tensor:
    if metadata:
        raise Refused(
            "holds a tensor with conjugate or negative bits; save it after .resolve_neg()"
        )
    whole = isinstance(shape, tuple) and isinstance(strides, tuple)
    if not isinstance(storage, Storage) or not whole:
        raise ValueError("a tensor without a storage")
    if any(type(n) is not int for n in (offset, *shape, *strides)):
        raise ValueError("a tensor whose shape is no numbers")
    return Tensor(storage, offset, shape, strides)


def _parameter(data, grad=False, hooks=None) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter of what is no tensor")
    return data


def _size(values) -> tuple[int, ...]:
    return tuple(values)


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
}


def _storage(reference: Any, seen: dict[str, Storage] | None) -> Storage:
    tag, name, key, _, size, *view = reference
    if tag != "storage" or not isinstance(name, _Name) or name.text not in _STORAGES:
        raise ValueError("a reference to what is no storage")
    if not isinstance(key, str) or type(size) is not int or size < 0:
        raise ValueError("a storage without a key or a size")
    if any(v is not None for v in view):
        raise Refused(
            "holds storages that are views of others, as very old versions wrote; save it anew"
        )
    storage = Storage(name.text.removeprefix("torch."), key, size)
    if seen is not None:
        seen[key] = storage
    return storage


def _pairs(values: list[Any]) -> dict[Any, Any]:
    keys = values[::2]
    # Keys are simple: hashing tuples nested without end would overflow the interpreter's own stack.
    if len(values) % 2 or not all(isinstance(k, str | int | float | bytes) for k in keys):
        raise Refused("holds a dict whose keys are neither texts nor numbers")
    return dict(zip(keys, values[1::2], strict=True))


def _to_mark(stack: list[Any]) -> list[Any]:
    values = []
    while (value := stack.pop()) is not _MARK:
        values.append(value)
    return values[::-1]


def _last(stack: list[Any], kind: type) -> Any:
    if not isinstance(stack[-1], kind):
        raise ValueError(f"the pickle takes a {type(stack[-1]).__name__} for a {kind.__name__}")
    return stack[-1]


def _text(text: str) -> bytes:
    content = text.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def _int(number: int) -> bytes:
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)


def _ints(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_int, numbers)) + b"t"
