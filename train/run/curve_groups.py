"""Figures of a training in the order in which people look at them: groups of plots, related figures in one plot.

docs/watching.md says what each figure means.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from train.run.metrics import Curve
from train.trainer.held_out import PREFIX
from train.trainer.network_norms import GRADIENT, UPDATE

HELD_OUT_LOSS = f"{PREFIX}loss"
_SHARES = {
    "data_wait": "waiting for data",
    "to_device": "copies to the device",
    "all_reduce": "exchange between ranks",
    "checkpoint_wait": "checkpoints",
}
_TITLES = {
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "samples_per_s": "samples per second",
    "step_s": "seconds per step",
    "tflops": "TFLOP/s of a rank",
    "mfu": "share of the peak (MFU)",
    "memory_gb": "memory (GB)",
    "allocator_retries": "allocator retries",
    "store_retries": "requests to stores made again",
    "store_wait_s": "seconds of waiting for stores",
    "cache_hits": "ranges that the cache had",
    "cache_misses": "ranges that the cache lacked",
}
_SPEED = (
    "samples_per_s",
    "step_s",
    "tflops",
    "mfu",
    "memory_gb",
    "allocator_retries",
    "store_retries",
    "store_wait_s",
    "cache_hits",
    "cache_misses",
)
_UPDATES = ("gradient_norm", "learning_rate")
_HIDDEN = ("loss", "skipped", HELD_OUT_LOSS)  # shown in the large plot, or in words
_LOSSES, _HELD_OUT, _NETWORKS, _OPTIMISATION, _TIME = (
    "Losses",
    "Held-out clips",
    "Networks",
    "Optimisation",
    "Time and memory",
)
_HEADINGS = (_LOSSES, _HELD_OUT, _NETWORKS, _OPTIMISATION, _TIME)
_BY_TIMESTEP = re.compile(r"t\d+-\d+")


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One or several figures over the steps."""

    title: str
    curves: Mapping[str, Curve]
    """Name in the plot → curve; a single one needs no name."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Plots under one heading."""

    title: str
    plots: tuple[Plot, ...]


def groups_of(curves: Mapping[str, Curve]) -> list[Group]:
    """Groups that have a plot.

    Args:
        curves: Figures of the training by name; those of validations are no part of it.
    """
    # Related figures share a plot; each figure is taken once.
    plots: dict[str, dict[str, dict[str, Curve]]] = {title: {} for title in _HEADINGS}
    for name, curve in curves.items():
        if name not in _HIDDEN:
            heading, title, line = _place(name)
            plots[heading].setdefault(title, {})[line] = curve
    return [
        Group(title=heading, plots=tuple(Plot(title=title, curves=lines) for title, lines in found.items()))
        for heading, found in plots.items()
        if found
    ]


def _place(name: str) -> tuple[str, str, str]:
    """Heading, plot and name in the plot of a figure."""
    for prefix, title in ((GRADIENT, "gradient norm by network"), (UPDATE, "update over weights by network")):
        if name.startswith(prefix):
            return _NETWORKS, title, name.removeprefix(prefix)
    if name in _SHARES:
        return _TIME, "share of the time", _SHARES[name]
    if name in _SPEED:
        return _TIME, _TITLES.get(name, name.replace("_", " ")), name
    if name.split("/")[0] in _UPDATES:
        return _OPTIMISATION, _TITLES.get(name, name.replace("_", " ")), name
    heading = _HELD_OUT if name.startswith(PREFIX) else _LOSSES
    whole, slash, part = name.removeprefix(PREFIX).rpartition("/")
    # `loss/t000-249`, `loss/without_both`: parts of a figure. `critic/loss` is one of its own.
    if slash and whole != "critic":
        by = "timestep" if _BY_TIMESTEP.fullmatch(part) else "kind of sample"
        return heading, f"{whole.replace('_', ' ')} by {by}", part.replace("_", " ")
    shown = name.removeprefix(PREFIX)
    return heading, _TITLES.get(shown, shown.replace("_", " ")), shown
