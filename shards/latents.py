"""Which version of a data set holds the latents of given networks at a given size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shards.manifest import DatasetManifest
from talkinghead.derived import ENCODING, FIRST_ENCODING, NETWORKS


def find_latents(
    manifest: DatasetManifest, provenance: Mapping[str, Mapping[str, Any]], width: int, height: int
) -> str | None:
    """The version whose columns `latents` and `embedding` are those of these networks.

    Networks are told apart by the hash of their weights; where they were read from does not matter.

    Args:
        manifest: Of the data set.
        provenance: Network (`vae`, `image_encoder`) → `sha256`, as `PictureEncoder.provenance` gives it.
        width: Of the pictures that were encoded, pixels.
        height: The same.

    Returns:
        Its name, for `ShardReader(extra=(name,))`; None when there is none. Of several the last in `DATASET.json`.
    """
    wanted = (ENCODING, width, height, *(provenance[name]["sha256"] for name in NETWORKS))
    for entry in reversed(manifest.of_kind("latents")):
        about = entry.details
        hashes = (about[name]["sha256"] for name in NETWORKS)
        if (about.get("encoding", FIRST_ENCODING), about["width"], about["height"], *hashes) == wanted:
            return entry.version
    return None
