"""A data set of clips that last half a minute, with latents of the size that Stable Diffusion has at 512 pixels.

Nothing is annotated or encoded: the columns are a drawn face that wanders, and random numbers for latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from talkinghead.annotation import blank_arrays
from talkinghead.column import Column
from talkinghead.derived import ColumnVersion
from talkinghead.files.storage import Storage
from talkinghead.geometry.canonical import mean_face
from talkinghead.latents import ARRAYS, EMBEDDING, LATENTS, MOMENT_FORMS, ROW_FORMS, ROWS, LatentRows
from talkinghead.schema import check_key
from tests.support.packed_data import PackedClip, add_derived, annotation_members, media_members, npy, pack_data

NUM_FRAMES = 800
SIDE = 64
"""Width and height of the videos in pixels."""
LATENT_SHAPE, EMBEDDING_SIZE = (4, 64, 64), 768
KINDS = ("seen", "unscored", "gaps")
"""Clips: a face in every frame, and a score that says so; the same without the score; some frames without a face."""
UNSEEN = slice(400, 420)
"""Frames without a face of the clip with gaps."""


def clip_key(kind: str) -> str:
    """Key of a clip."""
    return check_key(f"folder-{kind}-abcd")


def arrays(kind: str) -> dict[str, np.ndarray]:
    """Annotation of a clip."""
    found = blank_arrays(NUM_FRAMES)
    time = np.arange(NUM_FRAMES) / 25
    vertices = mean_face().vertices
    flat = 0.5 + np.stack([vertices[:, 0], -vertices[:, 1], -vertices[:, 2]], axis=1) * 0.035
    found["landmarks"][:, :468] = flat
    found["landmarks"][:, 468:] = 0.5
    found["landmarks"][..., 0] += (0.08 * np.sin(2 * np.pi * 0.07 * time))[:, None]
    found["mesh"][:] = vertices
    for name, value in (("pose", 0.0), ("pose_matrix", np.eye(4)), ("blendshapes", 0.0), ("quality", 1.0)):
        found[name][:] = value
    found["valid"][:] = True
    if kind == "gaps":
        for name, values in found.items():
            values[UNSEEN] = False if name == "valid" else np.nan
    return found


def build_long_clips(root: Path) -> Storage:
    """A clip of each kind, in a shard of its own."""
    silence = np.zeros(NUM_FRAMES * 640, np.float32)
    images = np.random.default_rng(0).integers(0, 256, (25, SIDE, SIDE, 3), np.uint8)
    clips = []
    for kind in KINDS:
        key, found = clip_key(kind), arrays(kind)
        clips.append(
            PackedClip(
                key=key,
                num_frames=NUM_FRAMES,
                media=media_members(
                    key, np.resize(images, (NUM_FRAMES, SIDE, SIDE, 3)), silence, source_id=kind, group=kind
                ),
                annotation=annotation_members(key, found),
                split="train",
                split_group=kind,
                scores={} if kind == "unscored" else {"valid_fraction": float(found["valid"].mean())},
            )
        )
    return pack_data(root, clips, min_shards=len(KINDS))


def add_long_latents(storage: Storage, column_version: Literal[1, 2]) -> str:
    """A version with random latents of all clips; returns its name."""
    numbers = np.random.default_rng(column_version)
    mean = numbers.standard_normal((NUM_FRAMES, *LATENT_SHAPE), np.float32).astype(np.float16)
    embedding = numbers.standard_normal((NUM_FRAMES, EMBEDDING_SIZE), np.float32).astype(np.float16)
    code = numbers.integers(0, 256, mean.shape, np.uint8)
    rows = LatentRows(mean=mean, log_variance=code, embedding=embedding, clip_size=(SIDE, SIDE))
    forms: tuple[Column, ...]
    if column_version == 1:
        forms, made = MOMENT_FORMS, {LATENTS: rows.moments(), EMBEDDING: embedding}
    else:
        forms, made = ROW_FORMS, {ROWS: rows.pack()}
    members = {f"{name}.npy": npy(made[name]) for name in sorted(ARRAYS[column_version])}
    made_of = ColumnVersion(
        column=LATENTS,
        column_version=column_version,
        parameters={"width": 512, "height": 512},
        provenance={name: {"name": "random", "sha256": "0" * 64} for name in ("vae", "image_encoder")},
        pins={"annotation": "v1"},
        arrays=[form.to_json() for form in forms],
    )
    return add_derived(storage, made_of, {clip_key(kind): members for kind in KINDS})
