"""What a user can choose about ingest. Every field shapes the output, so all of them are part of the provenance key."""

from __future__ import annotations

from dataclasses import dataclass, field

from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.timebase import FPS


@dataclass(frozen=True, kw_only=True)
class CutSettings:
    """When two neighbouring frames belong to different shots. Differences are mean levels, 0 .. 255."""

    difference: float = 9.0
    """Difference at which `ratio` is enough. A cut with half of it must stand out twice as much."""
    ratio: float = 3.0
    """How many times the difference must exceed its neighbours': fast motion differs over many frames, a cut once."""
    least: float = 3.0
    """No smaller difference is a cut."""
    reach: int = 5
    """Frames on each side that must differ as well; a flash that is shorter is no cut."""

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.difference:
            raise ValueError(f"cuts: need 0 < least <= difference, not {self.least} and {self.difference}")
        if self.ratio <= 1:
            raise ValueError(f"cuts: ratio is {self.ratio}, must be above 1")
        if self.reach < 1:
            raise ValueError(f"cuts: reach is {self.reach}, must be at least 1 frame")


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """How a source becomes clips."""

    size: int = 512
    """Side of the clips in pixels; 0 keeps the native size of the crop."""
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    recrop: bool = True
    """Crop around the face where the data set gives no box; False keeps the whole frame (for material that is cropped
    already)."""
    margin: float = 1.6
    """Side of a face crop over the longer side of the union of the face's boxes. 1.6 is what HDTF's own crops have: the
    face, chin to hairline, takes 55 to 65 % of the height."""
    face_center_y: float = 0.6
    """Height at which the middle of that union stands in the crop, 0 = top; low, so that hair is inside."""
    min_frames: int = 30
    """A piece with fewer frames is rejected."""
    max_frames: int = 3000
    """A longer piece is split evenly, so that one clip stays a small unit of work (two minutes)."""
    detect_every: int = 5
    """Frames from one look for faces to the next."""
    max_gap: int = FPS
    """Frames without the face from which on a piece is split there; shorter gaps stay inside as invalid frames."""
    min_sightings: int = 3
    """How often a face must have been found to count: fewer is a mistake of the detector."""
    min_crop: int = 128
    """A crop with fewer source pixels on its shorter side is rejected: enlarging would hide that from later filters."""
    max_source_pixels: int = 36_000_000
    """Largest source frame, 8K; more is refused before it fills the memory."""
    cuts: CutSettings = field(default_factory=CutSettings)

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
        if self.min_crop < 16:
            raise ValueError(f"min_crop is {self.min_crop}, must be at least 16 pixels")
