"""Options of a driver or renderer of another package: texts `NAME=VALUE` on the command line, a dataclass for itself.

Such a class names the dataclass of its settings in its attribute `options`. The texts are read by the types of its
fields, as the cells of a batch are; what the dataclass itself refuses in `__post_init__` is reported too.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from infer.batch.rows import read_text


def own_options(kind: Any, given: tuple[str, ...], option: str) -> Any:
    """The settings of a driver or renderer.

    Args:
        kind: Its class.
        given: Texts `NAME=VALUE`; a tuple's values are parted by `;`.
        option: Name of the option that gave them, for messages.

    Returns:
        Object of the class's dataclass; None where it has none.

    Raises:
        ValueError: No such option, a value of another type, or one that is missing or refused.
    """
    if (settings := getattr(kind, "options", None)) is None:
        if given:
            raise ValueError(f"{kind.name} has no options, but there is {option} {given[0]}")
        return None
    fields = {field.name: field for field in dataclasses.fields(settings)}
    hints = typing.get_type_hints(settings, include_extras=True)
    values = {}
    for text in given:
        name, sign, value = text.partition("=")
        name = name.replace("-", "_")
        if not sign or name not in fields:
            raise ValueError(f"{option} is {text!r}, must be NAME=VALUE with one of {', '.join(fields)}")
        if name in values:
            raise ValueError(f"{option} gives {name} twice")
        values[name] = read_text(f"{option} {name}", value, hints[name])
    if missing := [name for name, field in fields.items() if name not in values and _needed(field)]:
        raise ValueError(f"{kind.name} needs {option} {missing[0]}=VALUE")
    return settings(**values)


def listed_options(kind: Any) -> list[str]:
    """A text for each option of a driver or renderer: its name, type and default."""
    if (settings := getattr(kind, "options", None)) is None:
        return []
    return [
        f"{field.name}={field.type if isinstance(field.type, str) else field.type.__name__}"
        + (" (must be given)" if _needed(field) else f" (default: {_default(field)!r})")
        for field in dataclasses.fields(settings)
    ]


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
