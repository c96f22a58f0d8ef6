"""Content of a run's config.json, and what of it decides how a run comes out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from talkinghead.config import shown
from talkinghead.provenance import library_versions, pretty_json
from train.data_sets import DataSets
from train.microbatch import keeps_microbatch
from train.recipe import Recipe, full_name, recipe_from_json, recipe_to_json
from train.task import Provenance

LIBRARIES = ("torch", "numpy", "transformers", "diffusers", "talkinghead")
_FORMAT = 1
_FREE = ("num_workers", "reading", "microbatch", "parallel", "guard", "checkpoint", "validation", "log")
"""Training settings that may change between two starts: they decide how fast and how often, not what is learnt (but for
the last bits of sums). Two exceptions are compared: the precision in `parallel`, and `microbatch` where a run keeps it
(`train.microbatch.keeps_microbatch`). Settings of a task that may change are named by `free_settings` of its Config."""
_PROVENANCE = {"kind", "name", "sha256"}
_RUN_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides how a run comes out; the content of config.json."""

    task: str
    """Name of the task; a short name is replaced by it."""
    recipe_name: str
    recipe: Recipe
    data: str
    """Folder or URI of the data set, without credentials."""
    more_data: tuple[str, ...] = ()
    """Further data sets that are drawn from, too."""
    data_weights: tuple[float, ...] = ()
    """How often each data set is drawn from; see `train.data_sets`."""
    annotation: Mapping[str, str] = field(default_factory=dict)
    """Version and index hash of the annotations that the run began with; empty when the data set has none."""
    weights: Mapping[str, Provenance] = field(default_factory=dict)
    """Weights that the run began with (`Task.check`): setting that says where they lie → provenance of what lay
    there."""
    libraries: Mapping[str, str] = field(default_factory=lambda: library_versions(*LIBRARIES))
    """Versions of the libraries that results depend on."""
    run_id: str | None = field(default=None, compare=False)
    """Identity of the run, 32 hexadecimal digits: made when it is started, kept when it goes on or is copied as a
    whole. It decides nothing, and tells apart runs of one name, and their checkpoints. None: not started yet, or made
    by older code and not gone on with since."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", full_name(self.task))  # the class is frozen
        self.data_sets  # noqa: B018  raises where they make no sense

    @property
    def data_sets(self) -> DataSets:
        """All data sets, without credentials."""
        return DataSets(locations=(self.data, *self.more_data), weights=self.data_weights)

    def to_json(self) -> dict[str, Any]:
        """Content of config.json."""
        return {
            "format": _FORMAT,
            "task": self.task,
            "recipe_name": self.recipe_name,
            "recipe": recipe_to_json(self.recipe),
            "data": self.data,
            "more_data": list(self.more_data),
            "data_weights": list(self.data_weights),
            "annotation": dict(self.annotation),
            "weights": {name: dict(found) for name, found in self.weights.items()},
            "libraries": dict(self.libraries),
            "run_id": self.run_id,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunConfig:
        """Inverse of `to_json`; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        if value["format"] != _FORMAT:
            raise ValueError(f"it has format {shown(value['format'])}, this code reads {_FORMAT}")
        json.dumps(value, allow_nan=False)  # NaN, which Python reads, is refused
        rest = {name: item for name, item in value.items() if name not in ("format", "recipe")}
        # Older runs have a single data set.
        lists = [rest.pop(name, []) for name in ("more_data", "data_weights")]
        if not all(isinstance(one, list) for one in lists):
            raise TypeError("something else stands where a list of data sets or weights belongs")
        more, weights = map(tuple, lists)
        texts = [*(rest.get(name, "") for name in ("task", "recipe_name", "data")), *more]
        tables = [rest.get(name, {}) for name in ("annotation", "libraries")]
        if not all(isinstance(text, str) for text in texts) or not all(map(_is_table, tables)):
            raise TypeError("something else stands where a text belongs")
        if any(not _is_table(found) or not found.keys() >= _PROVENANCE for found in rest.get("weights", {}).values()):
            raise TypeError("something else stands where texts about weights belong")
        if not all(isinstance(weight, int | float) for weight in weights):
            raise TypeError("something else stands where a weight belongs")
        if not (rest.get("run_id") is None or is_run_id(rest["run_id"])):
            raise TypeError("something else stands where the identity of a run belongs")
        recipe = recipe_from_json(value["task"], value["recipe"])
        return cls(recipe=recipe, more_data=more, data_weights=weights, **rest)


def is_run_id(value: Any) -> bool:
    """Whether a value is the identity of a run."""
    return isinstance(value, str) and _RUN_ID.fullmatch(value) is not None


def differences(there: RunConfig, asked: RunConfig) -> list[str]:
    """Differences between two runs that decide how they come out, as `name: there -> asked`."""
    before, after = _deciding(there), _deciding(asked)
    missing = object()
    found = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, missing), after.get(name, missing)
        if old != new:
            texts = ("none" if value is missing else json.dumps(value, ensure_ascii=False) for value in (old, new))
            found.append(f"{name}: {' -> '.join(texts)}")
    return found


def _deciding(config: RunConfig) -> dict[str, Any]:
    # Through JSON, so that tuples and what was read from a file compare equal.
    value = json.loads(pretty_json(config.to_json()))
    settings, train = value["recipe"]["config"], value["recipe"]["train"]
    # Keep the exceptions, then drop all settings that may change.
    deciding = {"parallel": {"precision": train["parallel"]["precision"]}}
    if keeps_microbatch(config.recipe):
        deciding["microbatch"] = train["microbatch"]
    for name in _FREE:
        del train[name]
    for name in getattr(config.recipe.config, "free_settings", ()):
        del settings[name]
    # Only a rate that falls depends on the number of steps: with a constant one a run may be made longer.
    if train["schedule"]["name"] == "constant":
        del train["steps"]
    for name, found in value["weights"].items():  # their content counts, not their place
        settings[name] = f"sha256 {found['sha256'][:16]}"
    parts = {"config": settings, "train": train | deciding, "lora": value["recipe"]["lora"]}
    names = ("task", "data", "more_data", "data_weights")
    return dict(_leaves({name: value[name] for name in names} | parts))


def _is_table(value: Any) -> bool:
    """Whether a value is an object of texts."""
    return isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values())


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item
