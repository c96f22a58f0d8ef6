"""Adapters that the user gives next to weights: which of them belongs to which network, and merging them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talkinghead.files.foreign import read_json
from talkinghead.provenance import hash_file

if TYPE_CHECKING:  # finding adapters does without PyTorch
    from torch import nn

PIPELINE = "pipeline"
"""Name of the image networks among the parts that adapters are for."""
_PARTS = {
    "audio2mesh": "audio2mesh",
    "audio2pose": "audio2pose",
    "lmk2video-stage1": PIPELINE,
    "lmk2video-stage2": PIPELINE,
}
"""Task that trained an adapter → what it is for."""
_FOLDER, _SETTINGS, _TENSORS = "adapter", "adapter.json", "adapter.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterPlace:
    """Place of an adapter; its weights are not read."""

    path: Path
    task: str

    def provenance(self) -> dict[str, Any]:
        """Path, task and hash, for the sidecar."""
        return {"path": str(self.path), "task": self.task, "sha256": hash_file(self.path / _TENSORS)}

    def merge(self, networks: nn.Module, name: str) -> None:
        """Merge the adapter into networks in float32, in place; raises `ValueError` where they are not its own."""
        from talkinghead.models.adapters.adapter_folder import Adapter

        # Stage 1 knows no motion modules.
        without = ".motion_modules." if self.task == "lmk2video-stage1" else None
        Adapter.read(self.path).apply(networks, name, without=without)


def find_adapters(paths: Iterable[Path]) -> dict[str, AdapterPlace]:
    """What each of the given adapters is for: `pipeline`, `audio2mesh` or `audio2pose` → its place.

    Args:
        paths: Folders with an adapter: `adapter/`, or the folder or RUN that holds it.

    Raises:
        ValueError: There is no adapter, or two are for the same networks.
    """
    found: dict[str, AdapterPlace] = {}
    for path in paths:
        place = _place(path)
        part = _PARTS.get(place.task)
        if part is None:
            raise ValueError(f"the adapter {path} is of the task {place.task!r}, of which nothing is animated here")
        if part in found:
            raise ValueError(f"the adapters {found[part].path} and {path} are for the same networks: give one of them")
        found[part] = place
    return found


def refuse_left_over(adapters: Mapping[str, AdapterPlace], used: Iterable[str]) -> None:
    """Raise `ValueError` for an adapter of networks that take no part: the user expects an effect."""
    for part in sorted(set(adapters) - set(used)):
        place = adapters[part]
        raise ValueError(f"the adapter {place.path} is for {part}, which takes no part in this video: leave it out")


def _place(path: Path) -> AdapterPlace:
    for folder in (path, path / _FOLDER, path / "pretrained_model" / _FOLDER):
        if (folder / _SETTINGS).is_file():
            settings = read_json(folder / _SETTINGS)
            task = settings.get("task") if isinstance(settings, dict) else None
            if not isinstance(task, str) or not (folder / _TENSORS).is_file():
                raise ValueError(f"the adapter {folder} is damaged or incomplete: copy it again")
            return AdapterPlace(path=folder, task=task)
    raise ValueError(
        f"there is no adapter in {path}: give the adapter/ that a training with --lora.match wrote next to its weights"
    )
