"""Ingest of one clip: from a catalog row and its source to encoded pieces. A plain function; who runs it is elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np

from ingest.crop import Crop, cut_out, face_crop, listed_crop, whole_frame
from ingest.faces import Detector
from ingest.frame_folder import FrameFolder
from ingest.scan import FrameReader, Scan, ShownFrame, clip_frames, scan_clip
from ingest.settings import IngestSettings
from ingest.shots import Stretch, split
from talkinghead.media.audio import AudioSpan, read_audio
from talkinghead.media.encode import encode_mp4
from talkinghead.media.probe import MediaInfo, VideoInfo, probe
from talkinghead.media.video_source import VideoSource
from talkinghead.media.wav import encode_wav
from talkinghead.provenance import canonical_json
from talkinghead.schema import MEDIA_MEMBERS, CatalogRow, ClipInfo, Rejection, cut_key
from talkinghead.timebase import frame_time, samples_in

INGEST_VERSION = 1
"""Part of the provenance key; raise it when the output of `ingest_clip` changes."""

INGEST_LIBRARIES = ("av", "opencv-contrib-python", "numpy")
"""Distributions whose version can change the output."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What became of a clip, or of one part of it: a sample's media members, or the reason why there is none."""

    key: str
    num_frames: int
    contents: dict[str, bytes] | None
    """Suffix → bytes in the order of `MEDIA_MEMBERS`; None when rejected."""
    rejection: Rejection | None


def ingest_clip(
    row: CatalogRow, source: Path, settings: IngestSettings, detector: Detector, ingest_key: str
) -> list[Piece]:
    """Cut, crop and encode one clip.

    The source is decoded twice, so that the memory does not grow with the clip: once to find cuts and faces, once to
    encode.

    Args:
        row: The clip as the data set describes it.
        source: Video file or folder of frames.
        settings: How to ingest.
        detector: Finds faces (`FaceDetector`).
        ingest_key: Provenance key, stored in every piece.

    Returns:
        One piece for an unsplit clip, under the clip's own key; else all its pieces in order, rejected ones too, under
        `cut_key`. Together they cover every frame of the interval.

    Raises:
        ValueError: The source cannot be read; the message names the file and the cause.
    """
    with _open(row, source) as reader:
        video = reader.info
        if video.width * video.height > settings.max_source_pixels:
            detail = f"frames of {video.width}x{video.height}"
            return [_rejected(row.key, 0, "frame_too_large", video.width * video.height, detail)]
        listed = None if row.box is None else listed_crop(row, video.width, video.height, settings)
        scan = scan_clip(reader, row.start_s, row.end_s, listed and listed.box, detector, settings)
        if not scan.times:
            detail = f"{source.name} has no frame between {row.start_s} and {row.end_s} s"
            return [_rejected(row.key, 0, "empty_interval", 0.0, detail)]
        stretches = split(len(scan.times), scan.cuts, scan.steps, scan.sightings, settings)
        keys = [row.key] if len(stretches) == 1 else [cut_key(row.key, i) for i in range(len(stretches))]
        facts = _Facts(row, source, scan, video, None if row.frame_fps else probe(source), settings, ingest_key)
        pieces = []
        frames = clip_frames(reader, row.start_s, row.end_s)[1]
        for key, stretch in zip(keys, stretches, strict=True):
            rejection = _judge(stretch, settings)
            if rejection is not None:
                _skip(frames, stretch.num_frames)
                pieces.append(Piece(key=key, num_frames=stretch.num_frames, contents=None, rejection=rejection))
            else:
                contents = _encode(facts, key, stretch, listed, frames)
                pieces.append(Piece(key=key, num_frames=stretch.num_frames, contents=contents, rejection=None))
        return pieces
