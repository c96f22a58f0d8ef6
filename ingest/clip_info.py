"""Provenance of a piece: the `json` member of a sample, with notes on what is unusual about its source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from ingest.crop import Crop
from ingest.faces import Sighting
from ingest.scan import Scan
from ingest.shots import Stretch
from ingest.source_clock import SourceClock
from talkinghead.media.audio import AudioSpan
from talkinghead.media.media_file import AudioInfo, VideoInfo
from talkinghead.media.mono import Mix
from talkinghead.media.sound_runs import MixKey
from talkinghead.media.timeline import Timeline
from talkinghead.schema import MOST_PADDED_SOUND, CatalogRow, ClipInfo
from talkinghead.timebase import SAMPLE_RATE, frame_time

RIVAL_SIZE = 0.5
"""Smallest size of another face that counts, relative to the dominant face; smaller ones are in the background."""


@dataclass(frozen=True)
class SourceFacts:
    """What all pieces of a clip share."""

    row: CatalogRow
    source: Path
    scan: Scan
    video: VideoInfo
    audio: AudioInfo | None
    """Its best audio stream; None: there is none that can be decoded."""
    timeline: Timeline | None
    """The file's clock, mended; None for a folder of frames."""
    clock: SourceClock
    mixes: Mapping[MixKey, Mix]
    """How the sound's channels become one."""
    end_s: float | None
    """End of the clip on the timeline, as the row asks for it; None: end of the video."""
    ingest_key: str
    sound_delay: int = 0
    """Frames by which the source's sound is late, and is taken earlier."""


def describe(facts: SourceFacts, key: str, stretch: Stretch, crop: Crop, audio: AudioSpan) -> ClipInfo:
    """Provenance of one piece.

    Args:
        facts: What all pieces of the clip share.
        key: Key of the piece.
        stretch: Frames of the piece.
        crop: Its crop.
        audio: Its sound.
    """
    row, video, scan, clock, timeline = facts.row, facts.video, facts.scan, facts.clock, facts.timeline
    begins_s = scan.start_s + frame_time(stretch.first)
    start_s = clock.time(begins_s)
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
        source_pts=[round(clock.time(time_s), 6) for time_s in scan.times[stretch.first : stretch.end]],
        audio=audio.state,
        audio_offset_samples=audio.leading_silence,
        audio_padded_samples=audio.trailing_silence,
        av_duration_difference_s=_duration_difference(facts),
        person=row.person,
        split_group=row.split_group,
        licence=row.licence,
        terms_url=row.terms_url,
        notes=[*image_notes(facts, stretch, crop), *_delay_notes(facts), *_padding_notes(audio), *audio.notes],
        attributes=json.loads(row.attributes),
        ingest_key=facts.ingest_key,
        damaged_frames=_damaged_frames(scan, stretch),
        audio_gap_samples=audio.gap_samples,
        audio_nan_samples=audio.nan_samples,
        source_mirrored=video.mirrored,
        source_hdr=cast(Literal["PQ", "HLG"] | None, video.hdr),
        source_interlaced=video.interlaced,
        source_clock_jumps=len(timeline.segments) - 1 if timeline else 0,
        source_damaged_stamps=sum(map(len, timeline.outliers.values())) if timeline else 0,
        sound_shift_frames=facts.sound_delay,
    )


def _duration_difference(facts: SourceFacts) -> float | None:
    """How much longer the sound is than the images, seconds: a large value is a hint that the two drift apart."""
    audio, video = facts.audio, facts.video
    if audio is None or audio.end_s is None or video.end_s is None:
        return None
    return round(audio.end_s - video.end_s, 6)


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


def image_notes(facts: SourceFacts, stretch: Stretch, crop: Crop) -> list[str]:
    """Notes on a piece but for those on its sound: what is unusual about its metadata, crop, source and frames."""
    damaged = len(_damaged_frames(facts.scan, stretch))
    notes = [f"{damaged} frames are damaged"] if damaged else []
    return [*facts.row.notes, *crop.notes, *_source_notes(facts), *notes]


def _damaged_frames(scan: Scan, stretch: Stretch) -> list[int]:
    """Damaged frames of a piece, counted from its start."""
    return [frame - stretch.first for frame in scan.damaged if stretch.first <= frame < stretch.end]


def _delay_notes(facts: SourceFacts) -> list[str]:
    """A note on a source whose sound was moved."""
    delay = facts.sound_delay
    return [f"sound moved {'back' if delay > 0 else 'on'} by {abs(delay)} frames to go with the lips"] if delay else []


def _padding_notes(audio: AudioSpan) -> list[str]:
    """A note on a piece that the sound covers only in part."""
    silence = audio.leading_silence + audio.trailing_silence
    if audio.state == "missing" or silence <= MOST_PADDED_SOUND * len(audio.samples):
        return []
    return [f"{silence / SAMPLE_RATE:.2f} s without sound at its start or end"]


def _source_notes(facts: SourceFacts) -> list[str]:
    """Notes on what is unusual about the source: damage, an early end, HDR, interlacing."""
    video, scan = facts.video, facts.scan
    notes = facts.timeline.notes() if facts.timeline else []
    if scan.broken_packets:
        notes.append(f"{scan.broken_packets} broken packets skipped")
    ends = scan.start_s + frame_time(len(scan.times))
    wanted = video.end_s if facts.end_s is None else facts.end_s
    # More than two frames (80 ms) are missing: the file was cut short, or its interval lies beyond the end.
    if wanted is not None and wanted - ends > 0.1:
        notes.append(f"video ends {wanted - ends:.2f} s early")
    if video.mirrored:
        notes.append("stored mirrored: turned as the file asks")
    if video.hdr:
        notes.append(f"{video.hdr} tone-mapped to BT.709")
    if video.interlaced:
        notes.append("deinterlaced")
    return notes
