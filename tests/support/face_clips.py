"""A small data set of drawn faces that turn and speak, with landmarks that fit them; and their latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from annotate.latents import LATENTS, LatentSettings
from shards.manifest import read_manifest, write_manifest
from shards.reader import ShardReader
from talkinghead import latents as stored
from talkinghead.annotation import blank_arrays
from talkinghead.derived import Derived, derived_members, version_of
from talkinghead.files.storage import Storage
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_regions import LIPS
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.media.image_size import fit_images
from talkinghead.models.image.networks import ImageNetworks
from talkinghead.schema import check_key
from tests.support.packed_data import PackedClip, add_derived, annotation_members, media_members, pack_data

LENGTHS = (26, 34, 12, 30)
"""Numbers of frames of the clips; the last clip is held out."""
SIDE = 64
"""Width and height of the images in pixels."""
UNSEEN = slice(8, 11)
"""Frames of clip 1 without a face."""
LATENTS_VERSION = "latents-0123456789ab"


def clip_key(number: int, name: str = "face") -> str:
    """Key of a clip."""
    return check_key(f"folder-{name}_{number}-abcd")


def landmarks(number: int) -> np.ndarray:
    """Landmarks `[F, 478, 3]` of a face that wanders, and whose lower lip falls and rises."""
    count = LENGTHS[number]
    time = np.arange(count) / 25
    vertices = mean_face().vertices
    flat = 0.5 + np.stack([vertices[:, 0], -vertices[:, 1], -vertices[:, 2]], axis=1) * 0.035
    points = np.repeat(flat[None], count, axis=0)
    lips = np.array(LIPS)
    low = lips[points[0, lips, 1] > points[0, lips, 1].mean()]
    points[:, low, 1] += 0.04 * (0.5 - 0.5 * np.cos(2 * np.pi * (2 + number) * time))[:, None]
    points[..., 0] += 0.08 * np.sin(2 * np.pi * (0.7 + 0.2 * number) * time)[:, None]
    return np.concatenate([points, np.full((count, 10, 3), 0.5)], axis=1).astype(np.float32)


def frames(number: int) -> np.ndarray:
    """Images `[F, 64, 64, 3]` of the landmarks, drawn on a wall with a colour for each clip."""
    wall = np.array([40 + 50 * number, 160 - 40 * number, 90], np.uint8)
    drawn = np.stack([draw_guidance(points, SIDE, SIDE) for points in landmarks(number)])
    return np.where(drawn.any(axis=-1, keepdims=True), drawn, wall)


def arrays(number: int) -> dict[str, np.ndarray]:
    """Annotation of a clip."""
    found = blank_arrays(LENGTHS[number])
    found["landmarks"][:] = landmarks(number)
    found["mesh"][:] = mean_face().vertices
    found["pose"][:] = [0, 0, 0, 0, 0, -40]
    found["pose_matrix"][:] = np.eye(4)
    found["pose_matrix"][:, 2, 3] = -40
    found["blendshapes"][:] = 0.0
    found["quality"][:] = 1.0
    found["valid"][:] = True
    if number == 1:
        for name, values in found.items():
            values[UNSEEN] = False if name == "valid" else np.nan
    return found


def build_face_data(root: Path, name: str = "face", first: int = 0) -> Storage:
    """Four clips of two people in two shards.

    Args:
        root: Folder of the data set.
        name: Part of the clips' keys.
        first: Number of the first person, in the persons' names.
    """
    clips = []
    for number, length in enumerate(LENGTHS):
        key, group = clip_key(number, name), f"person-{first + number // 2}"
        silence = np.zeros(length * 640, np.float32)
        clips.append(
            PackedClip(
                key=key,
                num_frames=length,
                media=media_members(key, frames(number), silence, source_id=f"{name}_{number}", group=group),
                annotation=annotation_members(key, arrays(number)),
                split="val" if number == 3 else "train",
                split_group=group,
                scores={"audio_missing": 0.0, "audio_silent": 1.0, "audio_padded_fraction": 0.0},
            )
        )
    return pack_data(root, clips, min_shards=2)


def add_latents(
    storage: Storage, encoder: ImageNetworks, width: int, height: int, column_version: Literal[1, 2] = 2
) -> None:
    """A version with the latents of all clips, as the job writes it; of version 1 as the first release described it."""
    column = LATENTS.of_version(column_version)
    assert column is not None
    settings = LatentSettings(vae="tiny", image_encoder="tiny", width=width, height=height, device="cpu")
    networks = encoder.provenance()
    contents = {}
    reader = ShardReader(storage, split=None)
    for sample in (reader[number] for number in range(len(reader))):
        images = torch.from_numpy(fit_images(sample.video().transpose(0, 3, 1, 2), width, height))
        moments, embedding = encoder.moments(images).numpy(), encoder.embedding(images).numpy()
        if column_version == 1:
            made = {stored.LATENTS: moments, stored.EMBEDDING: embedding}
        else:
            mean, log_variance = np.split(moments, 2, axis=1)
            rows = stored.LatentRows(
                mean=mean,
                log_variance=stored.encode_log_variance(log_variance),
                embedding=embedding,
                clip_size=(sample.info.width, sample.info.height),
            )
            made = {stored.ROWS: rows.pack()}
        about = {"encode_key": "0" * 16, **networks}
        contents[sample.key] = derived_members(column, Derived(arrays=made), sample.num_frames, None, about)
    made_of = version_of(column, replace(settings, images_per_call=4), networks, {}, {})
    add_derived(storage, made_of, contents, version=LATENTS_VERSION)
    if column_version == 1:
        manifest = read_manifest(storage)
        *others, entry = manifest.annotations
        entry = replace(entry, details={"encoding": 1, "width": width, "height": height, **networks})
        write_manifest(storage, replace(manifest, annotations=[*others, entry]))
