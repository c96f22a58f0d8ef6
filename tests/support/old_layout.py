"""Names that exports carried before modules moved into rooms by family (commit 848ea50)."""

from __future__ import annotations

import json
from pathlib import Path

EXPORT_NAMES = {
    "vae": ["talkinghead.models.cosine_codec", "CosineCodec"],
    "reference_net": ["talkinghead.models.reference_net", "ReferenceNet"],
    "denoiser": ["talkinghead.models.denoiser", "Denoiser"],
    "pose_guider": ["talkinghead.models.pose_guider", "PoseGuider"],
    "audio2mesh": ["talkinghead.models.audio2mesh", "Audio2Mesh"],
    "audio2pose": ["talkinghead.models.audio2pose", "Audio2Pose"],
}
"""Part of a pipeline → module and class in its `model_index.json`."""


def age_export(folder: Path) -> None:
    """Give a pipeline's folder the names that it would have had."""
    index_file, vae_file = folder / "model_index.json", folder / "vae" / "config.json"
    index, vae = json.loads(index_file.read_bytes()), json.loads(vae_file.read_bytes())
    index |= {part: names for part, names in EXPORT_NAMES.items() if index[part] != [None, None]}
    index_file.write_text(json.dumps(index))
    vae_file.write_text(json.dumps(vae | {"_class_name": "CosineCodec"}))
