"""Ingest of one clip: from a catalog row and its source to encoded pieces. A plain function, one call per unit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from ingest.clip_info import SourceFacts, describe, image_notes
from ingest.crop import Crop, cut_out, face_crop, listed_crop, whole_frame
from ingest.faces import Detector
from ingest.frame_folder import FrameFolder
from ingest.scan import FrameReader, PartialFrame, Scan, clip_frames, scan_clip
from ingest.settings import IngestSettings
from ingest.shots import Stretch, split
from ingest.source_clock import SourceClock
from ingest.source_files import is_inside, leads_out
from ingest.upside_down import is_upside_down, upside_down_share
from talkinghead.media.audio import AudioSpan, encode_wav, read_audio
from talkinghead.media.encode import encode_mp4
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.media_file import VideoInfo, open_media, start_of
from talkinghead.media.sound_survey import read_mixes
from talkinghead.media.video_source import VideoSource
from talkinghead.provenance import canonical_json
from talkinghead.schema import MEDIA_MEMBERS, CatalogRow, Rejection, cut_key
from talkinghead.timebase import frame_time, samples_in


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Result for a clip or one part of it: a sample's media members, or the reason why there is none."""

    key: str
    num_frames: int
    contents: dict[str, bytes] | None
    """Suffix → bytes in the order of `MEDIA_MEMBERS`; None when rejected."""
    rejection: Rejection | None
    notes: tuple[str, ...] = ()
    """What is unusual about the source, a line each; without what is unusual about the sound where it is rejected."""


def ingest_clip(
    row: CatalogRow,
    source: Path,
    settings: IngestSettings,
    detector: Detector,
    ingest_key: str,
    *,
    inside: Path | None = None,
    sound_delay: int = 0,
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
        sound_delay: Frames by which the source's sound is late (below 0: early). It is taken that much earlier.

    Yields:
        One piece for an unsplit clip, under the clip's own key; else all its pieces in order, rejected ones too, under
        `cut_key`. Together they cover every frame of the interval.

    Raises:
        ValueError: The source cannot be read; the message names the file and the cause.
    """
    with _open(row, source, settings, inside) as reader:
        # Too large a frame is refused by its header, before one is decoded.
        video = reader.info
        if video.width * video.height > settings.max_source_pixels:
            detail = f"frames of {video.width}x{video.height}"
            yield _rejected(row.key, 0, "frame_too_large", video.width * video.height, detail)
            return

        # First pass: cuts, transitions and faces, searched for in the data set's box where there is one.
        listed = None if row.box is None else listed_crop(row, video.width, video.height, settings)
        clock = _clock(row, source, reader)
        start_s, end_s = clock.interval(row.start_s, row.end_s)
        scan = scan_clip(reader, start_s, end_s, listed and listed.box, detector, settings)
        if not scan.times:
            detail = f"{source.name} has no frame between {row.start_s} and {row.end_s} s"
            yield _rejected(row.key, 0, "empty_interval", 0.0, detail)
            return

        # Split the clip at cuts, transitions, long gaps. Only a clip that is split gives its pieces keys of their own.
        cuts = [*scan.cuts, *scan.segments]
        stretches = split(len(scan.times), cuts, scan.steps, scan.sightings, settings, scan.transitions)
        keys = [row.key] if len(stretches) == 1 else [cut_key(row.key, i) for i in range(len(stretches))]

        # Second pass: each piece is cropped and encoded, or passed over. All pieces share one iterator over the frames,
        # so a rejected piece must still take its frames off it.
        facts = _source_facts(row, source, scan, reader, clock, end_s, ingest_key, sound_delay)
        with _frames_again(facts, reader, start_s, settings) as frames:
            for key, stretch in zip(keys, stretches, strict=True):
                crop = _choose_crop(stretch, listed, video, settings)
                contents, rejection = None, _judge(stretch, crop, scan, settings)
                if rejection is None:
                    contents, notes = _encode(facts, key, stretch, crop, frames, settings)
                else:
                    _skip(frames, stretch.num_frames)
                    notes = image_notes(facts, stretch, crop)
                yield Piece(
                    key=key, num_frames=stretch.num_frames, contents=contents, rejection=rejection, notes=tuple(notes)
                )


@contextmanager
def _frames_again(
    facts: SourceFacts, reader: FrameReader, start_s: float | None, settings: IngestSettings
) -> Iterator[Iterator[PartialFrame]]:
    """The frames that the first pass has seen, by the engine of the settings; a folder of images has its own."""
    if settings.engine == "pyav" or facts.timeline is None:
        yield clip_frames(reader, start_s, facts.end_s)[1]
        return
    from talkinghead.media.decord_source import decord_frames

    scan = facts.scan
    damaged = len(scan.damaged) + scan.broken_packets
    with decord_frames(facts.source, facts.video, facts.timeline, scan.times, damaged=damaged) as frames:
        yield frames


def _open(
    row: CatalogRow, source: Path, settings: IngestSettings, inside: Path | None
) -> AbstractContextManager[FrameReader]:
    if inside is not None and not is_inside(inside, source):
        raise UnreadableMediaError("no_permission", f"{source} {leads_out(source.resolve())}")
    if row.frame_fps is not None:
        return FrameFolder(source, row.frame_fps, inside=inside)
    return cast(AbstractContextManager[FrameReader], VideoSource(source, settings.max_step_s))


def _clock(row: CatalogRow, source: Path, reader: FrameReader) -> SourceClock:
    if row.frame_fps is not None:
        return SourceClock(None)
    with open_media(source) as container:
        return SourceClock(reader.timeline, start_of(container))


def _source_facts(
    row: CatalogRow,
    source: Path,
    scan: Scan,
    reader: FrameReader,
    clock: SourceClock,
    end_s: float | None,
    key: str,
    sound_delay: int,
) -> SourceFacts:
    """What all pieces share; a file's streams and how its channels are mixed are looked at once for all of them."""
    timeline, audio = reader.timeline, reader.audio
    mixes = {} if audio is None or timeline is None else read_mixes(source, timeline)
    return SourceFacts(row, source, scan, reader.info, audio, timeline, clock, mixes, end_s, key, sound_delay)


def _rejected(key: str, num_frames: int, reason: str, score: float, detail: str) -> Piece:
    rejection = Rejection(reason=reason, score=score, detail=detail)
    return Piece(key=key, num_frames=num_frames, contents=None, rejection=rejection)


def _choose_crop(stretch: Stretch, listed: Crop | None, video: VideoInfo, settings: IngestSettings) -> Crop:
    if listed is not None:
        return listed
    if stretch.face is None or not settings.recrop:
        return whole_frame(video.width, video.height, settings)
    return face_crop(stretch.face, stretch.first, stretch.end, video.width, video.height, settings)


def _judge(stretch: Stretch, crop: Crop, scan: Scan, settings: IngestSettings) -> Rejection | None:
    change = stretch.transition
    if change is not None:
        reason = "blank" if change.kind == "blank" else "transition"
        what = "of one colour" if change.kind == "blank" else f"of a {change.kind} from one shot to another"
        return Rejection(reason=reason, score=change.score, detail=f"{stretch.num_frames} frames {what}")
    # Whether there is a face, nobody can say of a few frames.
    if stretch.num_frames < settings.min_frames:
        detail = f"{stretch.num_frames} frames, {settings.min_frames} are needed"
        return Rejection(reason="short_piece", score=float(stretch.num_frames), detail=detail)
    share = upside_down_share(scan.looks, stretch.first, stretch.end)
    if is_upside_down(share):
        detail = f"upside down in {share:.0%} of the looks at it; turn the video by 180 degrees"
        return Rejection(reason="upside_down", score=round(share, 4), detail=detail)
    if stretch.face is None:
        return Rejection(reason="no_face", score=0.0, detail=f"no face in {stretch.num_frames} frames")
    if crop.side < settings.min_crop:
        detail = f"the crop has {crop.side} source pixels, {settings.min_crop} are needed"
        return Rejection(reason="small_crop", score=float(crop.side), detail=detail)
    return None


def _skip(frames: Iterator[PartialFrame], count: int) -> None:
    for _ in range(count):
        next(frames)


def _encode(
    facts: SourceFacts,
    key: str,
    stretch: Stretch,
    crop: Crop,
    frames: Iterator[PartialFrame],
    settings: IngestSettings,
) -> tuple[dict[str, bytes], list[str]]:
    """The media members of one sample, by suffix, and its notes; takes its frames off `frames`."""
    images = _images(frames, stretch.num_frames, facts.video, crop)
    mp4 = encode_mp4(images, crop.width, crop.height, settings.encoder)
    # Sound of exactly the frames' length (640 samples each), padded with silence where the source has none. Where it is
    # late in the source, the sound that goes with a frame lies after it.
    start_s = facts.scan.start_s + frame_time(stretch.first + facts.sound_delay)
    num_samples = samples_in(stretch.num_frames)
    if facts.audio is None:
        audio = AudioSpan(np.zeros(num_samples, np.float32), num_samples, 0, "missing")
    else:
        audio = read_audio(facts.source, start_s, num_samples, facts.timeline, facts.mixes)
    info = describe(facts, key, stretch, crop, audio)
    # The order of the members is part of the format: equal inputs must give equal shards.
    contents = {"json": canonical_json(info.to_json()), "mp4": mp4, "wav": encode_wav(audio.samples)}
    return {suffix: contents[suffix] for suffix in MEDIA_MEMBERS}, info.notes


def _images(frames: Iterator[PartialFrame], count: int, video: VideoInfo, crop: Crop) -> Iterator[np.ndarray]:
    """Crops of the next `count` frames, RGB uint8 `[height, width, 3]`; a repeated frame is converted once."""
    last: PartialFrame | None = None
    image = np.zeros(0)
    for _ in range(count):
        frame = next(frames)
        if frame is not last:
            image = cut_out(frame.part, video.width, video.height, crop)
        last = frame
        yield image
