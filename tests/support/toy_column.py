"""A derived column that makes arrays of every form, and does what a test tells it to with single clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from talkinghead.column import Column
from talkinghead.derived import ColumnSample, Derived, DerivedColumn, Fit, Provenance
from talkinghead.provenance import hash_bytes


@dataclass(frozen=True, kw_only=True)
class ToySettings:
    """Settings of the toy."""

    scale: float = 1.0
    """Factor of `toy_height`."""
    file: str = ""
    """File whose content is part of the result; none where empty."""


ARRAYS = (
    Column("toy_height", (2,), "cm", np.dtype("<i2"), 1 / 1024),
    Column("toy_speech", (3,), "RMS", np.dtype("<f2"), rows=2),
    Column("toy_flag", (), "1 where the head is high", np.dtype("i1"), blank=-1),
    Column("toy_clip", (4,), "of the whole clip", np.dtype("<f4"), rows="clip"),
)
Misbehave = Callable[[ColumnSample, Derived], Derived]


def good(sample: ColumnSample, settings: ToySettings) -> Derived:
    """What the column should make of a sample."""
    valid = sample.column("valid")
    height = sample.column("mesh")[:, :2, 1] * np.float32(settings.scale)
    sound = sample.audio().reshape(sample.num_frames * 2, -1)
    rms = np.sqrt((sound**2).mean(axis=1, dtype=np.float64)).astype(np.float32)
    speech = np.repeat(rms[:, None], 3, axis=1)
    speech[np.repeat(~valid, 2)] = np.nan
    flag = np.where(valid, height[:, 0] > 0, -1).astype(np.int8)
    seen = height[valid]
    return Derived(
        arrays={
            "toy_height": height,
            "toy_speech": speech,
            "toy_flag": flag,
            "toy_clip": np.full((1, 4), sample.num_frames, np.float32),
        },
        scores={"toy_mean": float(seen.mean()) if len(seen) else None, "toy_frames": float(sample.num_frames)},
        labels={"toy_length": "long" if sample.num_frames > 40 else "short"},
        about={"dataset": sample.info.dataset},
    )


def toy_column(
    misbehave: Mapping[str, Misbehave] | None = None, *, version: int = 1, fits: tuple[str, ...] = ()
) -> DerivedColumn:
    """The column.

    Args:
        misbehave: Sample key → function of the sample and what the column should make of it.
        version: Version of the code.
        fits: Global fits that it needs.
    """

    def provenance(settings: ToySettings) -> Provenance:
        if not settings.file:
            return {}
        return {"file": {"sha256": hash_bytes(Path(settings.file).read_bytes())}}

    def open_(settings: ToySettings, fits: Mapping[str, Fit], device: str) -> Callable[[ColumnSample], Derived]:
        def make(sample: ColumnSample) -> Derived:
            derived = good(sample, settings)
            return (misbehave or {}).get(sample.key, lambda _, found: found)(sample, derived)

        return make

    return DerivedColumn(
        name="toy",
        version=version,
        arrays=ARRAYS,
        scores=("toy_mean", "toy_frames"),
        needs=("wav", "json", "mesh", "valid"),
        fits=fits,
        settings=ToySettings,
        provenance=provenance,
        open=open_,
    )
