"""Settings as JSON: dataclasses go out with `dataclasses.asdict` and come back here."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def from_json(cls: type[T], value: Mapping[str, Any]) -> T:
    """A settings dataclass from its JSON object; fields that are dataclasses or tuples are rebuilt too.

    Raises:
        ValueError: A name that the dataclass does not have (written by another version), or a value that it refuses.
    """
    assert dataclasses.is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    if unknown := value.keys() - hints.keys():
        raise ValueError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}; the file is of another version")
    return cls(**{name: _rebuild(hints[name], item) for name, item in value.items()})


def _rebuild(hint: Any, item: Any) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(item, Mapping):
        return from_json(hint, item)
    # JSON has no tuples. Settings hold no lists, as they are frozen, so every list was a tuple.
    return tuple(item) if isinstance(item, list) else item
