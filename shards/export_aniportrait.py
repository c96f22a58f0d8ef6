"""Export of samples in the layout that AniPortrait's own training reads.

    OUT/frames/<key>/00000012.png                  the frame
    OUT/landmarks/<key>/00000012_lmks.npy          float32 [478, 3], x/width, y/height, z/width
    OUT/landmarks/<key>/00000012_lmks3d.npy        float32 [468, 3], cm, canonical face space
    OUT/landmarks/<key>/00000012_trans_mat.npy     float32 [4, 4], canonical to camera, cm
    OUT/landmarks/<key>/00000012_bs.npy            float32 [51], blendshapes without `_neutral`
    OUT/training.json                              {key: {"video_clip_num": 1, "clip_data_list": [{…}]}}

AniPortrait (https://github.com/Zejun-Yang/AniPortrait) pairs frames and landmarks by their place in two sorted lists
and drops a clip whose lists differ, so a frame without a face is left out of both. Its JSON holds absolute paths: the
folder cannot be moved.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from shards.reader import Sample, ShardReader

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
    reader: ShardReader, folder: Path, *, limit: int | None = None, progress: Callable[[int, int], None] | None = None
) -> ExportReport:
    """Export the samples of a reader.

    Args:
        reader: Reader of the samples to export; they must have the annotation columns `COLUMNS`.
        folder: New or empty folder.
        limit: Largest number of samples; None: all.
        progress: Called with (samples done, total).

    Raises:
        ValueError: The folder is not empty, or the data set lacks a column.
    """
    for column in COLUMNS:
        reader.check_column(column)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name a new folder, so that no frames of an older export stay in it")
    # AniPortrait opens the paths of the JSON as they are, from its own working folder.
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # Write sample by sample; the JSON comes last, so that it names only files that exist.
    report = ExportReport(training_json=folder / "training.json")
    clips: dict[str, object] = {}
    count = len(reader) if limit is None else min(limit, len(reader))
    for number in range(count):
        sample = reader[number]
        chosen = np.flatnonzero(sample.annotation("valid"))
        if len(chosen) < MIN_FRAMES:
            report.left_out[sample.key] = f"{len(chosen)} frames with a face, AniPortrait needs {MIN_FRAMES}"
        else:
            clips[sample.key] = {"video_clip_num": 1, "clip_data_list": [_write_clip(sample, chosen, folder)]}
            report.frames[sample.key] = len(chosen)
        if progress:
            progress(number + 1, count)
    report.training_json.write_text(json.dumps(clips))
    return report


def _write_clip(sample: Sample, chosen: np.ndarray, folder: Path) -> dict[str, list[str]]:
    """Write one clip's frames and landmarks; returns its entry of the training JSON."""
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
    return {
        "frame_name_list": [f"{sample.key}/{stem}.png" for stem in stems],
        "frame_path_list": [str(frames / f"{stem}.png") for stem in stems],
        "lmks_list": [str(landmarks / f"{stem}_lmks.npy") for stem in stems],
    }


def _write_array(path: Path, array: np.ndarray) -> None:
    data = io.BytesIO()
    np.save(data, array)
    path.write_bytes(data.getvalue())  # `np.save` to a file does not report that the disk is full


def _write_png(path: Path, image: np.ndarray) -> None:
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    path.write_bytes(data.tobytes())
