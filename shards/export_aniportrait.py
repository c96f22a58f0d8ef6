"""Export of samples in the layout that AniPortrait's own training reads.

    OUT/frames/<key>/00000012.png                  the frame
    OUT/landmarks/<key>/00000012_lmks.npy          float32 [478, 3], x/width, y/height, z/width
    OUT/landmarks/<key>/00000012_lmks3d.npy        float32 [468, 3], cm, canonical face space
    OUT/landmarks/<key>/00000012_trans_mat.npy     float32 [4, 4], canonical to camera, cm
    OUT/landmarks/<key>/00000012_bs.npy            float32 [51], blendshapes without `_neutral`
    OUT/training.json                              {key: {"video_clip_num": 1, "clip_data_list": [{…}]}}

AniPortrait (https://github.com/Zejun-Yang/AniPortrait) pairs frames and landmarks by their place in two sorted lists
and drops a clip whose lists differ, so a frame without a face is left out of both. It opens the paths of the JSON as
they are: relative ones from its working folder, which then has to be OUT. Absolute ones serve any working folder, but
bind OUT to its place and tell the names of the folders above it to everyone who gets it.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from shards.reader import Sample, ShardReader
from talkinghead.files.atomic import temporary_folder

MIN_FRAMES = 30
"""Smallest number of frames with a face: AniPortrait drops shorter clips."""
COLUMNS = ("landmarks", "mesh", "pose_matrix", "blendshapes", "valid")
"""Annotation columns that the export reads."""
_BLOCK = 25
"""Frames decoded at once."""


@dataclass(kw_only=True)
class ExportReport:
    """Samples that were written, and samples that were not."""

    training_json: Path
    frames: dict[str, int] = field(default_factory=dict)
    """Sample key → number of frames written."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Sample key → why it was not exported."""


def export_aniportrait(
    reader: ShardReader,
    folder: Path,
    *,
    limit: int | None = None,
    absolute: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Export the samples of a reader; an export that fails leaves nothing.

    Args:
        reader: Reader of the samples to export; they must have the annotation columns `COLUMNS`.
        folder: New or empty folder.
        limit: Largest number of samples; None: all.
        absolute: Whether the JSON holds absolute paths, not those relative to the folder.
        progress: Called with (samples done, total).

    Raises:
        ValueError: The folder is there and not empty, the data set lacks a column, or a sample is damaged.
        OSError: The folder cannot be written, or the disk is full.
    """
    for column in COLUMNS:
        reader.check_column(column)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name a new folder, so that no frames of an older export stay in it")
    report = ExportReport(training_json=folder / "training.json")
    clips: dict[str, object] = {}
    count = len(reader) if limit is None else min(limit, len(reader))
    # Not `staged_folder`: flushing each of these many small files takes longer than making it, and an export that a
    # power cut hits can be made again.
    scratch = temporary_folder(folder.absolute())
    try:
        for number in range(count):
            sample = reader[number]
            chosen = np.flatnonzero(sample.annotation("valid"))
            if len(chosen) < MIN_FRAMES:
                report.left_out[sample.key] = f"{len(chosen)} frames with a face, AniPortrait needs {MIN_FRAMES}"
            else:
                stems = _write_clip(sample, chosen, scratch)
                clips[sample.key] = _entry(sample.key, stems, folder.absolute() if absolute else Path())
                report.frames[sample.key] = len(chosen)
            if progress:
                progress(number + 1, count)
        (scratch / report.training_json.name).write_text(json.dumps(clips))
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


def _write_clip(sample: Sample, chosen: np.ndarray, folder: Path) -> list[str]:
    """Write one clip's frames and landmarks; returns the names of the frames without suffix."""
    frames, landmarks = folder / "frames" / sample.key, folder / "landmarks" / sample.key
    frames.mkdir(parents=True)
    landmarks.mkdir(parents=True)
    values = {
        "lmks": sample.annotation("landmarks"),
        "lmks3d": sample.annotation("mesh"),
        "trans_mat": sample.annotation("pose_matrix"),
        "bs": sample.annotation("blendshapes")[:, 1:],  # without `_neutral`, the first score
    }
    # Decode a block of frames at a time: a clip of several minutes would not fit into memory.
    stems: list[str] = []
    for first in range(0, sample.num_frames, _BLOCK):
        count = min(_BLOCK, sample.num_frames - first)
        wanted = chosen[(chosen >= first) & (chosen < first + count)]
        if not len(wanted):
            continue
        images = sample.video(first, count)  # [count, H, W, 3]
        for frame in wanted:
            stem = f"{frame:08d}"  # sorts like the number, and has no underscore: AniPortrait cuts names there
            stems.append(stem)
            _write_png(frames / f"{stem}.png", images[frame - first])
            for name, column in values.items():
                _write_array(landmarks / f"{stem}_{name}.npy", column[frame])
    return stems


def _entry(key: str, stems: list[str], root: Path) -> dict[str, object]:
    """Entry of a clip in the training JSON; its paths begin with `root`."""
    files = {
        "frame_name_list": [f"{key}/{stem}.png" for stem in stems],
        "frame_path_list": [str(root / "frames" / key / f"{stem}.png") for stem in stems],
        "lmks_list": [str(root / "landmarks" / key / f"{stem}_lmks.npy") for stem in stems],
    }
    return {"video_clip_num": 1, "clip_data_list": [files]}


def _write_array(path: Path, array: np.ndarray) -> None:
    data = io.BytesIO()
    np.save(data, array)
    path.write_bytes(data.getvalue())  # `np.save` to a file does not report that the disk is full


def _write_png(path: Path, image: np.ndarray) -> None:
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    path.write_bytes(data.tobytes())
