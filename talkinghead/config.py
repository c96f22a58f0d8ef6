"""Dataclasses as JSON: they go out with `dataclasses.asdict` and come back here, each value checked for its type.

The files may be a stranger's: what comes back holds nothing that its types do not allow, and numbers are finite.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_UNIONS = (typing.Union, types.UnionType)
_PLAIN = (bool, int, float, str)

Reader = Callable[[Any], Any]
"""Function from a JSON value to a value of a type."""


def shown(value: object) -> str:
    """A value from a file, for a message: on one line, without control characters, and not too long."""
    return _SHORT.repr(value)


def from_json(cls: type[T], value: Mapping[str, Any]) -> T:
    """A dataclass from its JSON object; fields that are dataclasses or tuples are rebuilt too.

    Raises:
        ValueError: It is no object, lacks a field, has a name that the dataclass does not have (written by another
            version), or a value of another type or that the dataclass refuses.
    """
    assert dataclasses.is_dataclass(cls)
    if not isinstance(value, Mapping):
        raise ValueError(f"{cls.__name__} is {shown(value)}, must be an object")
    readers = _readers(cls)
    if unknown := value.keys() - readers.keys():
        raise ValueError(
            f"{cls.__name__} has no field {', '.join(sorted(map(shown, unknown))[:5])}; the file is of another version"
        )
    try:
        return cls(**{name: readers[name](item) for name, item in value.items()})
    except TypeError:
        missing = [field.name for field in dataclasses.fields(cls) if _needed(field) and field.name not in value]
        if not missing:
            raise
        raise ValueError(f"{cls.__name__} lacks {', '.join(missing)}; the file is of another version") from None


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@functools.cache
def _readers(cls: type[Any]) -> dict[str, Reader]:
    """Field → function that reads its value. Made once: looking at the types costs far more than at the values."""
    return {name: _reader(hint, f"{cls.__name__}.{name}") for name, hint in typing.get_type_hints(cls).items()}


def _reader(hint: Any, where: str) -> Reader:
    """Function from a JSON value to one of a type; it raises `ValueError` for others, with `where` in the message."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return _union_reader(hint, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return functools.partial(from_json, hint)
    is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
    if origin is tuple and arguments[1:] != (...,):
        return _tuple_reader(hint, where)
    if origin in (tuple, list) or is_mapping:
        inner = _reader(arguments[1] if is_mapping else arguments[0], where)

        def read_all(item: Any) -> Any:
            if is_mapping and isinstance(item, Mapping):
                return {name: inner(value) for name, value in item.items()}
            # JSON has no tuples: every list of a tuple's field was one.
            if not is_mapping and (type(item) is list or (origin is tuple and type(item) is tuple)):
                return typing.cast(Callable[..., Any], origin)(map(inner, item))
            raise _refusal(hint, item, where)

        return read_all

    def read(item: Any) -> Any:
        if fits(item):
            return item
        raise _refusal(hint, item, where)

    fits = _test(hint)
    return read


def _union_reader(hint: Any, where: str) -> Reader:
    """Reader of a value of one of several types; None is one of them, or not."""
    readers = [_reader(kind, where) for kind in typing.get_args(hint) if kind is not types.NoneType]
    may_be_none = types.NoneType in typing.get_args(hint)
    first = readers[0]

    def read(item: Any) -> Any:
        if item is None and may_be_none:
            return None
        if len(readers) == 1:
            return first(item)
        for reader in readers:
            with contextlib.suppress(ValueError):
                return reader(item)
        raise _refusal(hint, item, where)

    return read


def _tuple_reader(hint: Any, where: str) -> Reader:
    """Reader of a tuple of a certain length."""
    readers = [_reader(kind, where) for kind in typing.get_args(hint)]

    def read(item: Any) -> Any:
        if not isinstance(item, list | tuple) or len(item) != len(readers):
            raise _refusal(hint, item, where)
        return tuple(reader(value) for reader, value in zip(readers, item, strict=True))

    return read


def _test(hint: Any) -> Callable[[Any], bool]:
    """Function that tells whether a JSON value is of a type that is no dataclass, list, tuple or mapping."""
    if typing.get_origin(hint) is typing.Literal:
        values = typing.get_args(hint)
        return lambda item: any(type(item) is type(value) and item == value for value in values)
    if hint is int:
        return _is_whole
    if hint is float:
        return lambda item: (type(item) is float and math.isfinite(item)) or _is_whole(item)
    if hint in _PLAIN:
        return lambda item: type(item) is hint
    # Any, and types that JSON does not have, such as a path: the dataclass takes what it gets.
    return lambda item: True


def _is_whole(item: Any) -> bool:
    return type(item) is int and -(2**63) <= item < 2**63  # a bool is no number here


def _refusal(hint: Any, item: Any, where: str) -> ValueError:
    return ValueError(f"{where} is {shown(item)}, must be {_name(hint)}")


def _name(hint: Any) -> str:
    """Name of a type for a message."""
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) in _UNIONS:
        return " or ".join(map(_name, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
