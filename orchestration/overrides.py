"""Settings changed on the command line as NAME=VALUE. What is not named stays as it was: in DATA, else the default."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from talkinghead.config import from_json

T = TypeVar("T")


def settings_with(cls: type[T], known: Mapping[str, Any], texts: Iterable[str]) -> T:
    """A settings dataclass: its defaults, what DATA knows (`known`, a JSON object), then the given `NAME=VALUE` texts.

    A field of a nested dataclass is named with a dot, e.g. `encoder.crf=16`; `none` switches off what can be None.

    Raises:
        ValueError: No such name (says which there are), no value of its kind, or one that the settings refuse.
    """
    value: dict[str, Any] = dataclasses.asdict(from_json(cls, known))  # type: ignore[call-overload]
    kinds = dict(_leaves(cls))
    for text in texts:
        name, equals, given = text.partition("=")
        if not equals or name not in kinds:
            raise ValueError(f"{text!r} is no NAME=VALUE with NAME out of {', '.join(sorted(kinds))}")
        target = value
        *parents, leaf = name.split(".")
        for parent in parents:
            target = target[parent]
        target[leaf] = _parse(text, given, kinds[name])
    return from_json(cls, value)


def names_of(cls: type[Any]) -> str:
    """All names with their defaults, for help texts."""
    defaults = dataclasses.asdict(cls())
    lines = []
    for name, _ in _leaves(cls):
        value: Any = defaults
        for part in name.split("."):
            value = value[part]
        lines.append(f"{name}={str(value).lower() if isinstance(value, bool) or value is None else value}")
    return " ".join(lines)


def _leaves(cls: type[Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, hint in typing.get_type_hints(cls).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _leaves(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def _parse(text: str, given: str, hint: Any) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if given == "none" and type(None) in kinds:
        return None
    if bool in kinds:
        if given not in ("true", "false"):
            raise ValueError(f"{text!r}: the value must be true or false")
        return given == "true"
    for kind in (int, float, str):
        if kind in kinds:
            try:
                return kind(given)
            except ValueError:
                continue
    off = " or none" if type(None) in kinds else ""
    raise ValueError(f"{text!r}: the value must be a{' whole' if int in kinds else ''} number{off}")
