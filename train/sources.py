"""Weights that a training begins with: named by a setting, filled in strictly, every tensor accounted for."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Source:
    """Place that weights of a task come from, by the name of the setting that says where."""

    what: str
    """What lies there, in a few words."""
    part: str = ""
    """Part of the module that gets them; empty: all of it, or none (a frozen network next to it)."""
    frozen: bool = False
    """Whether they stay as they are."""
    may_miss: str | None = None
    """Regular expression of tensors of the part that they may lack, which then have first weights of their own."""


def fill(module: nn.Module, tensors: Mapping[str, Tensor], place: str, source: Source) -> None:
    """Fill a module, or a part of it, with weights, in place; none is left out and none is left over.

    Args:
        module: Module of a task.
        tensors: Weights by their names in the part.
        place: Where they come from, for messages.
        source: Part, and what may be missing.

    Raises:
        ValueError: A tensor is missing, left over, of another shape, or has numbers that are not finite.
    """
    new = check_fits(module, tensors, place, source)
    target = _part(module, source)
    # In place, so that what refers to the parameters goes on to.
    target.load_state_dict({**target.state_dict(), **tensors})
    what = f"; {len(new)} new ones begin with first weights ({_some(new)})" if new else ""
    log.info("%s: %d tensors of %s, none left over%s", place, len(tensors), source.part or "the module", what)


def check_fits(module: nn.Module, tensors: Mapping[str, Tensor], place: str, source: Source) -> list[str]:
    """Raise `ValueError` as `fill` does, without filling; returns what the weights may lack, and do.

    The module may be on the meta device.
    """
    wanted = _part(module, source).state_dict()
    new = [name for name in wanted if name not in tensors]
    missing = [name for name in new if source.may_miss is None or not re.search(source.may_miss, name)]
    left_over = [name for name in tensors if name not in wanted]
    other = [
        f"{name} is {list(tensors[name].shape)} there and {list(wanted[name].shape)} here"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if other:
        raise ValueError(
            f"the weights in {place} are of another size than these settings: {_some(other)}; set the sizes as they"
            " were when those were trained"
        )
    if missing or left_over:
        parts = [f"lack {_some(missing)}"] * bool(missing) + [f"have {_some(left_over)} besides"] * bool(left_over)
        raise ValueError(f"the weights in {place} are not those of this model: they {' and '.join(parts)}")
    check_finite(tensors, place)
    return new


def _part(module: nn.Module, source: Source) -> nn.Module:
    return module.get_submodule(source.part) if source.part else module


def check_finite(tensors: Mapping[str, Tensor], place: str) -> None:
    """Raise `ValueError` where weights have NaN or infinite numbers."""
    bad = [
        name for name, value in tensors.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if bad:
        raise ValueError(
            f"the weights in {place} have NaN or infinite numbers ({_some(bad)}): the training that wrote them has"
            " failed, or the file is damaged"
        )


def warn_of_settings(there: Mapping[str, Any], here: Mapping[str, Any], place: str) -> None:
    """Warn of settings of a network that change what it computes, but not the shape of its weights."""
    differ = [
        f"{name} {there[name]} there and {here[name]} here"
        for name in sorted(there.keys() & here.keys())
        if not name.startswith("_") and _plain(there[name]) != _plain(here[name])
    ]
    if differ:
        log.warning("the weights in %s were made with other settings: %s", place, "; ".join(differ))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
