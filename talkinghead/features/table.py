"""The features there are, by name. A new one is a file in this folder and a line here."""

from __future__ import annotations

from talkinghead.features.band_levels import BAND_LEVELS
from talkinghead.features.feature import Feature
from talkinghead.features.loudness import LOUDNESS

FEATURES: dict[str, Feature] = {feature.name: feature for feature in (LOUDNESS, BAND_LEVELS)}
"""Name → feature."""


def find_feature(name: str) -> Feature:
    """Feature of this name; raises `ValueError`, which lists those there are."""
    if name not in FEATURES:
        raise ValueError(f"there is no feature {name!r}, only {', '.join(FEATURES)}")
    return FEATURES[name]
