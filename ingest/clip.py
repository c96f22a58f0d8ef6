"""Ingest of one clip: from a catalog row and its source to encoded pieces. A plain function, one call per unit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np

from ingest.crop import Crop, cut_out, face_crop, listed_crop, whole_frame
from ingest.faces import Detector, Sighting
from ingest.frame_folder import FrameFolder
from ingest.scan import FrameReader, Scan, ShownFrame, clip_frames, scan_clip
from ingest.settings import IngestSettings
from ingest.shots import Stretch, split
from ingest.source_files import is_inside, leads_out
from talkinghead.media.audio import AudioSpan, encode_wav, read_audio
from talkinghead.media.encode import encode_mp4
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.media_file import MediaInfo, VideoInfo, probe
from talkinghead.media.video_source import VideoSource
from talkinghead.provenance import canonical_json
from talkinghead.schema import MEDIA_MEMBERS, CatalogRow, ClipInfo, Rejection, cut_key
from talkinghead.timebase import frame_time, samples_in

RIVAL_SIZE = 0.5
"""Smallest size of another face that counts, relative to the dominant face; smaller ones are in the background."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Result for a clip or one part of it: a sample's media members, or the reason why there is none."""

    key: str
    num_frames: int
    contents: dict[str, bytes] | None
    """Suffix → bytes in the order of `MEDIA_MEMBERS`; None when rejected."""
    rejection: Rejection | None


def ingest_clip(
    row: CatalogRow,
    source: Path,
    settings: IngestSettings,
    detector: Detector,
    ingest_key: str,
    *,
    inside: Path | None = None,
) -> Iterator[Piece]:
    """Cut, crop and encode one clip, piece by piece.

    The source is decoded twice, so that the memory does not grow with the clip: once to find cuts and faces, once to
    encode. Only one piece is held at a time.

    Args:
        row: The clip as the data set describes it.
        source: Video file or folder of frames, from `source_files.locate`.
        settings: Settings of ingest.
        detector: Face detector (`FaceDetector`).
        ingest_key: Provenance key, stored in every piece.
        inside: SOURCE, which links may not lead out of; None: they may lead anywhere.

    Yields:
        One piece for an unsplit clip, under the clip's own key; else all its pieces in order, rejected ones too, under
        `cut_key`. Together they cover every frame of the interval.

    Raises:
        ValueError: The source cannot be read; the message names the file and the cause.
    """
    with _open(row, source, inside) as reader:
        # Too large a frame is refused by its header, before one is decoded.
        video = reader.info
        if video.width * video.height > settings.max_source_pixels:
            detail = f"frames of {video.width}x{video.height}"
            yield _rejected(row.key, 0, "frame_too_large", video.width * video.height, detail)
            return

        # First pass: cuts and faces, searched for in the data set's box where there is one.
        listed = None if row.box is None else listed_crop(row, video.width, video.height, settings)
        scan = scan_clip(reader, row.start_s, row.end_s, listed and listed.box, detector, settings)
        if not scan.times:
            detail = f"{source.name} has no frame between {row.start_s} and {row.end_s} s"
            yield _rejected(row.key, 0, "empty_interval", 0.0, detail)
            return

        # Split the clip at cuts and long gaps. Only a clip that is split gives its pieces keys of their own.
        stretches = split(len(scan.times), [*scan.cuts, *scan.segments], scan.steps, scan.sightings, settings)
        keys = [row.key] if len(stretches) == 1 else [cut_key(row.key, i) for i in range(len(stretches))]

        # Second pass: each piece is cropped and encoded, or passed over. All pieces share one iterator over the frames,
        # so a rejected piece must still take its frames off it.
        clock = reader.timeline.notes() if reader.timeline else []
        media = None if row.frame_fps else probe(source)
        facts = _Facts(row, source, scan, video, media, clock, settings, ingest_key)
        frames = clip_frames(reader, row.start_s, row.end_s)[1]
        for key, stretch in zip(keys, stretches, strict=True):
            crop = _choose_crop(stretch, listed, video, settings)
            contents, rejection = None, _judge(stretch, crop, settings)
            if rejection is None:
                contents = _encode(facts, key, stretch, crop, frames)
            else:
                _skip(frames, stretch.num_frames)
            yield Piece(key=key, num_frames=stretch.num_frames, contents=contents, rejection=rejection)


@dataclass(frozen=True)
class _Facts:
    """Inputs that all pieces of a clip share."""

    row: CatalogRow
    source: Path
    scan: Scan
    video: VideoInfo
    media: MediaInfo | None
    """Streams of the source file; None for a folder of frames."""
    clock_notes: list[str]
    """What is unusual about the file's time stamps."""
    settings: IngestSettings
    ingest_key: str


def _open(row: CatalogRow, source: Path, inside: Path | None) -> AbstractContextManager[FrameReader]:
    if inside is not None and not is_inside(inside, source):
        raise UnreadableMediaError("no_permission", f"{source} {leads_out(source.resolve())}")
    if row.frame_fps is not None:
        return FrameFolder(source, row.frame_fps, inside=inside)
    return cast(AbstractContextManager[FrameReader], VideoSource(source))


def _rejected(key: str, num_frames: int, reason: str, score: float, detail: str) -> Piece:
    rejection = Rejection(reason=reason, score=score, detail=detail)
    return Piece(key=key, num_frames=num_frames, contents=None, rejection=rejection)


def _choose_crop(stretch: Stretch, listed: Crop | None, video: VideoInfo, settings: IngestSettings) -> Crop:
    if listed is not None:
        return listed
    if stretch.face is None or not settings.recrop:
        return whole_frame(video.width, video.height, settings)
    return face_crop(stretch.face, stretch.first, stretch.end, video.width, video.height, settings)


def _judge(stretch: Stretch, crop: Crop, settings: IngestSettings) -> Rejection | None:
    if stretch.face is None:
        return Rejection(reason="no_face", score=0.0, detail=f"no face in {stretch.num_frames} frames")
    if stretch.num_frames < settings.min_frames:
        detail = f"{stretch.num_frames} frames, {settings.min_frames} are needed"
        return Rejection(reason="short_piece", score=float(stretch.num_frames), detail=detail)
    if crop.side < settings.min_crop:
        detail = f"the crop has {crop.side} source pixels, {settings.min_crop} are needed"
        return Rejection(reason="small_crop", score=float(crop.side), detail=detail)
    return None


def _skip(frames: Iterator[ShownFrame], count: int) -> None:
    for _ in range(count):
        next(frames)


def _encode(facts: _Facts, key: str, stretch: Stretch, crop: Crop, frames: Iterator[ShownFrame]) -> dict[str, bytes]:
    """The media members of one sample, by suffix; takes its frames off `frames`."""
    images = _images(frames, stretch.num_frames, facts.video, crop)
    mp4 = encode_mp4(images, crop.width, crop.height, facts.settings.encoder)
    # Sound of exactly the frames' length (640 samples each), padded with silence where the source has none.
    start_s = facts.scan.start_s + frame_time(stretch.first)
    num_samples = samples_in(stretch.num_frames)
    if facts.media is None:
        audio = AudioSpan(np.zeros(num_samples, np.float32), num_samples, 0, "missing")
    else:
        audio = read_audio(facts.source, start_s, num_samples)
    info = _describe(facts, key, stretch, crop, audio, start_s)
    # The order of the members is part of the format: equal inputs must give equal shards.
    contents = {"json": canonical_json(asdict(info)), "mp4": mp4, "wav": encode_wav(audio.samples)}
    return {suffix: contents[suffix] for suffix in MEDIA_MEMBERS}


def _images(frames: Iterator[ShownFrame], count: int, video: VideoInfo, crop: Crop) -> Iterator[np.ndarray]:
    """Crops of the next `count` frames, RGB uint8 `[height, width, 3]`; a repeated frame is converted once."""
    last: ShownFrame | None = None
    image = np.zeros(0)
    for _ in range(count):
        frame = next(frames)
        if frame is not last:
            image = cut_out(frame.part, video.width, video.height, crop)
        last = frame
        yield image


def _describe(facts: _Facts, key: str, stretch: Stretch, crop: Crop, audio: AudioSpan, start_s: float) -> ClipInfo:
    # How much longer the sound is than the images: a large value is a hint that the two drift apart.
    row, video, media, scan = facts.row, facts.video, facts.media, facts.scan
    difference = None
    if media is not None and media.audio is not None and media.audio.end_s is not None and video.end_s is not None:
        difference = round(media.audio.end_s - video.end_s, 6)
    return ClipInfo(
        key=key,
        clip_key=row.key,
        dataset=row.dataset,
        source_id=row.source_id,
        source=row.source or facts.source.name,
        url=row.url,
        num_frames=stretch.num_frames,
        width=crop.width,
        height=crop.height,
        start_s=round(start_s, 6),
        end_s=round(start_s + frame_time(stretch.num_frames), 6),
        crop_box_px=crop.box,
        crop_rule=cast(Literal["box", "face", "none"], crop.rule),
        source_width=video.width,
        source_height=video.height,
        source_fps=video.fps,
        source_codec=video.codec,
        source_rotation=video.rotation,
        source_multi_face_fraction=None if crop.rule == "box" else _multi_face_fraction(stretch, scan.sightings),
        source_pts=[round(time_s, 6) for time_s in scan.times[stretch.first : stretch.end]],
        audio=audio.state,
        audio_offset_samples=audio.leading_silence,
        audio_padded_samples=audio.trailing_silence,
        av_duration_difference_s=difference,
        person=row.person,
        split_group=row.split_group,
        licence=row.licence,
        terms_url=row.terms_url,
        notes=[*row.notes, *crop.notes, *_source_notes(facts), *audio.notes],
        attributes=json.loads(row.attributes),
        ingest_key=facts.ingest_key,
    )


def _multi_face_fraction(stretch: Stretch, sightings: list[Sighting]) -> float | None:
    """Share of the detections of the piece's face in which another face of similar size was found in the same frame."""
    if stretch.face is None:
        return None
    # The piece's own face by frame; any other large sighting in one of these frames is a rival.
    own = {
        sighting.frame: sighting for sighting in stretch.face.sightings if stretch.first <= sighting.frame < stretch.end
    }
    crowded = {
        other.frame
        for other in sightings
        if other.frame in own and other != own[other.frame] and other.size >= RIVAL_SIZE * own[other.frame].size
    }
    return round(len(crowded) / len(own), 4) if own else None


def _source_notes(facts: _Facts) -> list[str]:
    """Notes on what is unusual about the source: damage, an early end, HDR, interlacing."""
    video, scan, notes = facts.video, facts.scan, [*facts.clock_notes]
    if scan.broken_packets:
        notes.append(f"{scan.broken_packets} broken packets skipped")
    ends = scan.start_s + frame_time(len(scan.times))
    wanted = video.end_s if facts.row.end_s is None else facts.row.end_s
    # More than two frames (80 ms) are missing: the file was cut short, or its interval lies beyond the end.
    if wanted is not None and wanted - ends > 0.1:
        notes.append(f"video ends {wanted - ends:.2f} s early")
    if video.hdr:
        notes.append(f"{video.hdr} tone-mapped to BT.709")
    if video.interlaced:
        notes.append("deinterlaced")
    return notes
