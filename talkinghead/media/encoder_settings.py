"""Settings of clip compression, in a file apart from the encoder, so that reading settings does not load FFmpeg."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Settings of clip compression: quality and speed."""

    crf: int = 18
    """x264's constant rate factor: 18 is visually lossless, each 6 more halves the size."""
    preset: str = "fast"
    """x264's trade of time for size, `ultrafast` … `veryslow`."""

    def __post_init__(self) -> None:
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf is {self.crf}, must be 0 (lossless) to 51")
