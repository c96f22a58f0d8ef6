"""AniPortrait's published files: `audio2mesh.pt` and `audio2pose.pt` (Apache-2.0, arXiv 2403.17694)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig

from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from talkinghead.models.speech.weights import encoder_settings
from talkinghead.models.weight_files import read_weights
from talkinghead.models.weights import KeyReport, compare_keys

Kind = Literal["audio2mesh", "audio2pose"]

_FPS = 30.0  # frame rate that AniPortrait trained at
_WEIGHT_NORM = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
"""PyTorch's present name of a weight norm's tensor → its name when the files were made."""


def published_config(kind: Kind, chunking: Literal["continue", "restart"] = "continue") -> dict[str, Any]:
    """Settings of the published system: wav2vec2-base at 30 fps, attention to the own frame, halved angles.

    Args:
        kind: Model that the settings are for.
        chunking: Way in which Audio2Pose decodes long speech; `restart` is the published one, with a jump every five
            seconds.
    """
    # `AutoConfig`'s defaults for wav2vec2 are those of wav2vec2-base.
    wav2vec = encoder_settings(AutoConfig.for_model("wav2vec2"), dropout=0.1)
    if kind == "audio2mesh":
        return {"wav2vec": wav2vec, "fps": _FPS}
    return {
        "wav2vec": wav2vec,
        "fps": _FPS,
        "memory_attention": "diagonal",
        "angle_gain": 0.5,
        "smoothing": 7,
        "pose_origin": "first",
        "chunking": chunking,
    }


def load_published(
    kind: Kind, file: str | Path, chunking: Literal["continue", "restart"] = "continue"
) -> tuple[Audio2Mesh | Audio2Pose, KeyReport]:
    """A model with the weights of a published file.

    Args:
        kind: Model that the file belongs to.
        file: Path of the `.pt` file as published, or of a `.safetensors` file with the same names.
        chunking: Way in which Audio2Pose decodes long speech (`published_config`).

    Returns:
        Model in evaluation mode, float32, and the report of its keys.

    Raises:
        ValueError: The file is missing, damaged, or holds other tensors than the model needs; the report is in the
            text.
    """
    path = Path(file)
    found = {_published_name(key): value for key, value in read_weights(path).items()}
    # On the meta device, which spends no time and memory on first weights that are replaced at once.
    with torch.device("meta"):
        model = (Audio2Mesh if kind == "audio2mesh" else Audio2Pose)(**published_config(kind, chunking))
    wanted = model.state_dict()
    report = compare_keys(path.name, kind, found, {_published_name(key): value.shape for key, value in wanted.items()})
    if not report.complete:
        # The two files are easily mistaken for each other: a tensor that only one has tells which it is.
        other = "audio2pose" if kind == "audio2mesh" else "audio2mesh"
        mark = "pose_map.weight" if other == "audio2pose" else "out_fn.weight"
        hint = f"\nIt looks like the file of {other}" if mark in found else ""
        raise ValueError(f"{path} does not hold the weights of {kind}\n{report}{hint}")
    # Assigned, since there is nothing on the meta device to copy into; no tensor may be left there.
    state = {key: found[_published_name(key)].to(torch.float32) for key in wanted}
    model.load_state_dict(state, assign=True)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return model.eval(), report


def _published_name(key: str) -> str:
    """Name of a tensor in the published files, from its present name or its published one."""
    for new, old in _WEIGHT_NORM.items():
        key = key.replace(new, old)
    return key
