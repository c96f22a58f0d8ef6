"""Licences of weights and of their training data, as far as the files next to the weights tell; for sidecars.

A training writes the licences of its clips into `training.json` of its export. Of published weights it is said here
what their authors state. What nobody stated is null, which is no permission.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from talkinghead.files.foreign import read_json

TRAINING_FILE = "training.json"
"""File in a training's export about what the weights were made of."""
DATA_LICENCES = "data_licences"
"""Its entry: licence → number of samples of the data sets that the training read."""

_ANIPORTRAIT = "Apache-2.0, as the authors of AniPortrait state"
_ON_STABLE_DIFFUSION = f"{_ANIPORTRAIT}; made from Stable Diffusion 1.5, whose terms apply too"
PUBLISHED: dict[str, str | None] = {
    "audio2mesh": _ANIPORTRAIT,
    "audio2pose": _ANIPORTRAIT,
    "denoising_unet": _ON_STABLE_DIFFUSION,
    "reference_unet": _ON_STABLE_DIFFUSION,
    "motion_module": f"{_ANIPORTRAIT}; made from AnimateDiff, whose terms apply too",
    "pose_guider": _ANIPORTRAIT,
    "vae": None,
    "image_encoder": None,
    # The same networks in a folder of ours.
    "denoiser": f"{_ON_STABLE_DIFFUSION}, and those of AnimateDiff",
    "reference_net": _ON_STABLE_DIFFUSION,
}
"""Part of AniPortrait's published weights → licence; None: stated where it is downloaded, and not known here."""


def published_licence(parts: list[str]) -> dict[str, Any]:
    """Entry `licence` of published weights: that of each part; nothing is known of their data."""
    return {"weights": {part: PUBLISHED[part] for part in parts}, "data": None}


def trained_licence(folder: Path) -> dict[str, Any]:
    """Entry `licence` of weights that a training made, by its export folder.

    Raises:
        ValueError: The file is damaged.
    """
    known = read_json(folder / TRAINING_FILE) if (folder / TRAINING_FILE).is_file() else {}
    data = known.get(DATA_LICENCES) if isinstance(known, dict) else None
    plain = isinstance(data, dict) and all(isinstance(number, int) for number in data.values())
    return {"weights": None, "data": data if plain else None}
