"""Overrides: settings changed on the command line as NAME=VALUE. Others keep their value in DATA, else the default."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from talkinghead.config import from_json

T = TypeVar("T")


def settings_with(cls: type[T], known: Mapping[str, Any], texts: Iterable[str]) -> T:
    """Settings made of the defaults, then of what DATA knows, then of the user's overrides.

    Args:
        cls: Dataclass of the settings.
        known: Fields that DATA records, a JSON object.
        texts: `NAME=VALUE` of each override. A field of a nested dataclass is named with a dot, e.g. `encoder.crf=16`;
            `none` switches off what can be None.

    Raises:
        ValueError: A name that does not exist (the message lists those that do), a value of another type, or one that
            the settings refuse.
    """
    # Work on the JSON value, so that the dataclass validates the final settings as a whole, once.
    value: dict[str, Any] = dataclasses.asdict(from_json(cls, known))  # type: ignore[call-overload]
    kinds = dict(_leaves(cls))
    for text in texts:
        name, equals, given = text.partition("=")
        if not equals or name not in kinds:
            raise ValueError(f"{text!r} is no NAME=VALUE with NAME out of {', '.join(sorted(kinds))}")
        # Walk to the dictionary that holds the field.
        target = value
        *parents, leaf = name.split(".")
        for parent in parents:
            target = target[parent]
        target[leaf] = _parse(text, given, kinds[name])
    return from_json(cls, value)


def names_of(cls: type[Any]) -> str:
    """Text of all `NAME=DEFAULT`, for --help."""
    defaults = dataclasses.asdict(cls())
    lines = []
    for name, _ in _leaves(cls):
        value: Any = defaults
        for part in name.split("."):
            value = value[part]
        lines.append(f"{name}={str(value).lower() if isinstance(value, bool) or value is None else value}")
    return " ".join(lines)


def _leaves(cls: type[Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted name and type of every field that is no dataclass itself."""
    for name, hint in typing.get_type_hints(cls).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _leaves(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def _parse(text: str, given: str, hint: Any) -> Any:
    """Value of the field's type that was given as a text; `text` is the whole override, for the message."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if given == "none" and type(None) in kinds:
        return None
    if bool in kinds:
        if given not in ("true", "false"):
            raise ValueError(f"{text!r}: the value must be true or false")
        return given == "true"
    # The narrowest type first: str would take any text.
    for kind in (int, float, str):
        if kind in kinds:
            try:
                return kind(given)
            except ValueError:
                continue
    off = " or none" if type(None) in kinds else ""
    raise ValueError(f"{text!r}: the value must be a{' whole' if int in kinds else ''} number{off}")
