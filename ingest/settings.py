"""Settings of ingest. Every field shapes the output, so all of them are part of the provenance key."""

from __future__ import annotations

from dataclasses import dataclass, field

from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.timebase import FPS, MAX_STEP_S

ENGINES = ("pyav", "decord")
"""Decoders of the frames that are encoded."""


@dataclass(frozen=True, kw_only=True)
class CutSettings:
    """Thresholds for a cut between two neighbouring frames. A difference is a mean absolute one in levels, 0 .. 255."""

    difference: float = 9.0
    """Lasting difference from which on `ratio` is enough; a cut with half of it must stand out twice as much."""
    ratio: float = 3.0
    """Factor by which a difference must exceed its neighbours: fast motion changes many frames, a cut only one."""
    least: float = 3.0
    """Smallest lasting difference that can be a cut."""
    reach: int = 5
    """Frames on each side of a cut over which its difference must last; a shorter flash is no cut."""

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.difference:
            raise ValueError(f"cuts: need 0 < least <= difference, not {self.least} and {self.difference}")
        if self.ratio <= 1:
            raise ValueError(f"cuts: ratio is {self.ratio}, must be above 1")
        if self.reach < 1:
            raise ValueError(f"cuts: reach is {self.reach}, must be at least 1 frame")


@dataclass(frozen=True, kw_only=True)
class TransitionSettings:
    """Thresholds for gradual transitions from one shot to another, and for images of one colour."""

    dissolve: float = 0.26
    """Least share of the image, 0 .. 1, that changes from one frame to a later one and is mixed of both evenly in
    between. Talking people reach 0.21, dissolves between them 0.31 at the least; above 1: none is searched for."""
    wipe: float = 0.5
    """Least share of the image that changes, and changes once, each place at its own time. Talking people reach 0.33,
    a camera that pans or zooms 0.52, wipes between talking people 0.54 at the least."""
    blank: float = 4.0
    """Standard deviation of the brightness, in levels, below which an image is of one colour; 0: none is."""
    shortest: int = 8
    """Fewest frames of a fade through one colour; a shorter one is a flash, or frames that were lost. What becomes
    bright at once and fades is a flash of any length."""

    def __post_init__(self) -> None:
        if self.dissolve <= 0 or self.wipe <= 0:
            raise ValueError(f"transitions: dissolve {self.dissolve} and wipe {self.wipe} must be above 0")
        if self.blank < 0 or self.shortest < 1:
            raise ValueError(f"transitions: need blank >= 0 and shortest >= 1, not {self.blank} and {self.shortest}")


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """Settings for cutting a source into clips: size, crop, lengths, face detection, cuts, transitions."""

    size: int = 512
    """Side of the square clips in pixels (shorter side where the frame is kept whole); 0 keeps the native size."""
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    """Settings of the video encoder."""
    recrop: bool = True
    """Whether to crop around the face where the data set gives no box; False keeps the whole frame (for material that
    is cropped already)."""
    margin: float = 1.6
    """Side of a face crop divided by the longer side of the union of the face's boxes. 1.6 is what HDTF's own crops
    have: the face, chin to hairline, takes 55 to 65 % of the height."""
    face_center_y: float = 0.6
    """Height of the union's middle in the crop, from 0 (top) to 1 (bottom); low, so that the hair is inside."""
    min_frames: int = 30
    """Fewest frames of a piece; a shorter one is rejected."""
    max_frames: int = 3000
    """Most frames of a piece; a longer one is split evenly, so that a clip stays a small unit of work (two minutes)."""
    detect_every: int = 5
    """Frames from one face detection to the next."""
    max_gap: int = FPS
    """Length of a gap without the face, in frames, from which on a piece is split; a shorter gap stays inside as
    invalid frames."""
    min_sightings: int = 3
    """Fewest detections that make a face; fewer are a mistake of the detector."""
    min_crop: int = 128
    """Fewest source pixels on the shorter side of a crop; a smaller one is rejected, because enlarging would hide its
    size from later filters."""
    max_step_s: float = MAX_STEP_S
    """Largest step of a source's clock from one frame to the next, in seconds, that is a gap; a larger one, and any
    step backwards, is a jump, at which a clip is split."""
    max_source_pixels: int = 36_000_000
    """Most pixels of a source frame (8K); a larger one is refused before it fills the memory."""
    cuts: CutSettings = field(default_factory=CutSettings)
    """Thresholds for cuts."""
    transitions: TransitionSettings = field(default_factory=TransitionSettings)
    """Thresholds for gradual transitions, which belong to no sample."""
    engine: str = "pyav"
    """Decoder of the frames that are encoded. decord has darker colours, and takes plain sources only: others are
    quarantined, with the reason."""

    def __post_init__(self) -> None:
        if self.size and (self.size < 64 or self.size % 2):
            raise ValueError(f"size is {self.size}, must be an even number of pixels from 64 on, or 0 for native size")
        if self.margin < 1:
            raise ValueError(f"margin is {self.margin}, must be at least 1 (the face itself)")
        if not 0 < self.face_center_y < 1:
            raise ValueError(f"face_center_y is {self.face_center_y}, must lie between 0 (top) and 1 (bottom)")
        if self.min_frames < 1 or self.max_frames < 2 * self.min_frames:
            raise ValueError(f"max_frames {self.max_frames} must be at least twice min_frames {self.min_frames}")
        if not 1 <= self.detect_every <= self.max_gap:
            raise ValueError(f"detect_every is {self.detect_every}, must lie between 1 and max_gap ({self.max_gap})")
        if self.min_sightings < 1:
            raise ValueError(f"min_sightings is {self.min_sightings}, must be at least 1")
        if self.engine not in ENGINES:
            raise ValueError(f"engine is {self.engine!r}, must be pyav or decord")
        if not 0.1 <= self.max_step_s <= 3600:
            raise ValueError(f"max_step_s is {self.max_step_s}, must lie between 0.1 and 3600 seconds")
        if self.min_crop < 16:
            raise ValueError(f"min_crop is {self.min_crop}, must be at least 16 pixels")
