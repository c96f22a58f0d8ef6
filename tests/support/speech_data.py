"""A small data set in which faces and heads move with the loudness of their audio, so that it can be learnt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from annotate.fits.expression import EXPRESSION, ExpressionSettings
from annotate.fits.speakers import SPEAKERS, SpeakersSettings
from shards.fit_files import write_fit
from shards.fits import keys_of, make_fit, plan_parts, reader_for, source_of
from shards.manifest import FitEntry, read_manifest, write_manifest
from shards.selection import Selection
from talkinghead.annotation import blank_arrays
from talkinghead.derived import Fit
from talkinghead.files.storage import Storage
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_regions import LIPS
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.schema import check_key
from talkinghead.timebase import SAMPLES_PER_FRAME
from tests.support.packed_data import PackedClip, annotation_members, media_members, pack_data

LENGTHS = (40, 55, 30, 48, 36)
"""Numbers of frames of the clips; the last clip is held out, the one before it is silent."""
UNSEEN = 7
"""Interval at which frames of clip 1 have no face."""


def clip_key(number: int, name: str = "speech") -> str:
    """Key of a clip."""
    return check_key(f"folder-{name}_{number}-abcd")


def loudness(number: int) -> np.ndarray:
    """Loudness of each frame, `[F]` in 0 .. 1."""
    time = np.arange(LENGTHS[number]) / 25
    return 0.5 - 0.5 * np.cos(2 * np.pi * (1.3 + 0.2 * number) * time)


def speech(number: int) -> np.ndarray:
    """Samples of a tone with the loudness of each frame, `[F * 640]`."""
    time = np.arange(LENGTHS[number] * SAMPLES_PER_FRAME) / 16000
    return (np.repeat(loudness(number), SAMPLES_PER_FRAME) * 0.4 * np.sin(2 * np.pi * 220 * time)).astype(np.float32)


def arrays(number: int) -> dict[str, np.ndarray]:
    """Annotation in which the lower half of the lips falls, and the head nods, with the loudness."""
    count = LENGTHS[number]
    loud = loudness(number).astype(np.float32)
    found = blank_arrays(count)
    mesh = np.repeat(mean_face().vertices[None].astype(np.float32), count, axis=0)
    lips = list(LIPS)
    middle = mesh[0, lips, 1].mean()
    lower = [vertex for vertex in lips if mesh[0, vertex, 1] < middle]
    mesh[:, lower, 1] -= loud[:, None]
    pose = np.zeros((count, 6))
    pose[:, 0] = 4 * loud + number
    pose[:, 5] = -40
    found |= {"mesh": mesh, "pose": pose.astype(np.float32), "pose_matrix": matrix_from_pose(pose).astype(np.float32)}
    found["landmarks"][:] = 0.5
    found["blendshapes"][:] = 0.0
    found["quality"][:] = 1.0
    found["valid"][:] = True
    if number == 1:
        for name, values in found.items():
            values[::UNSEEN] = False if name == "valid" else np.nan
    return found


def build_speech_data(root: Path, name: str = "speech", first: int = 0) -> Storage:
    """Five clips of three speakers in two shards.

    Args:
        root: Folder of the data set.
        name: Part of the clips' keys.
        first: Number of the first speaker, in the speakers' names.
    """
    clips = []
    for number, length in enumerate(LENGTHS):
        key, group = clip_key(number, name), f"speaker-{first + number // 2}"
        silent = number == 3
        clips.append(
            PackedClip(
                key=key,
                num_frames=length,
                media=media_members(
                    key,
                    np.zeros((length, 64, 64, 3), np.uint8),
                    speech(number) * (not silent),
                    source_id=f"{name}_{number}",
                    group=group,
                ),
                annotation=annotation_members(key, arrays(number)),
                split="val" if number == 4 else "train",
                split_group=group,
                scores={"audio_missing": 0.0, "audio_silent": float(silent), "audio_padded_fraction": 0.0},
            )
        )
    return pack_data(root, clips, min_shards=2)


def store_fits(
    storage: Storage,
    *,
    pose_origin: Literal["rest", "first"] = "rest",
    selection: Selection | None = None,
    change: Mapping[str, Any] | None = None,
) -> list[FitEntry]:
    """Make the fits of speakers and expressions, and enter them in `DATASET.json`, as the job does.

    Args:
        storage: Data set.
        pose_origin: Origin of the poses.
        selection: Choice of the clips.
        change: Arrays that are stored instead of some of the speakers'.
    """
    made: dict[str, Fit] = {}
    entries: list[FitEntry] = []
    for fit, settings in ((SPEAKERS, SpeakersSettings(pose_origin=pose_origin)), (EXPRESSION, ExpressionSettings())):
        reader = reader_for(fit, storage, selection=selection)
        arrays = make_fit(fit, settings, made, reader)
        if fit is SPEAKERS:
            arrays |= change or {}
        source = source_of(reader, settings, selection, made)
        entry = write_fit(storage, fit, source, keys_of(reader, plan_parts(fit, reader)), arrays)
        made = {fit.name: Fit(sha256=entry.sha256, arrays=arrays)}
        entries.append(entry)
    manifest = read_manifest(storage)
    write_manifest(storage, dataclasses.replace(manifest, fits=[*manifest.fits, *entries]))
    return entries
