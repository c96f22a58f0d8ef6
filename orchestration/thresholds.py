"""Filter thresholds given on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from annotate.filters import FilterSettings

Value = float | bool | str | None


def parse_thresholds(texts: Iterable[str]) -> dict[str, Value]:
    """`NAME=VALUE` texts as fields of `FilterSettings`.

    Raises:
        ValueError: No such threshold (says which there are), or no value of its kind.
    """
    defaults = {item.name: getattr(FilterSettings(), item.name) for item in fields(FilterSettings)}
    values: dict[str, Value] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in defaults:
            raise ValueError(f"{text!r} is no NAME=VALUE with NAME out of {', '.join(sorted(defaults))}")
        values[name] = _parse(text, value, defaults[name])
    return values


def _parse(text: str, value: str, default: Value) -> Value:
    if value == "none":
        return None
    if isinstance(default, bool):
        if value not in ("true", "false"):
            raise ValueError(f"{text!r}: the value must be true or false")
        return value == "true"
    if isinstance(default, str):
        return value
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{text!r}: the value must be a number, or none to switch the filter off") from None
