"""Small models whose weights all matter."""

from __future__ import annotations

from typing import Any

import torch

from talkinghead.models.audio2lmk.audio2pose import Audio2Pose

SMALL_POSE: dict[str, Any] = {"width": 32, "layers": 2, "heads": 4, "feed_forward": 48, "num_identities": 5}


def small_pose(wav2vec: dict[str, Any], **settings: Any) -> Audio2Pose:
    """An Audio2Pose in evaluation mode whose weights all matter; equal for equal settings."""
    torch.manual_seed(3)
    model = Audio2Pose(wav2vec, **(SMALL_POSE | settings))
    torch.nn.init.normal_(model.pose_map_r.weight, std=0.3)
    torch.nn.init.normal_(model.pose_map_r.bias, std=0.3)
    return model.eval()
