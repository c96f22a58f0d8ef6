"""Clips on their whole way: from a file through ingest, and through annotation and filters where the faces are real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from annotate.clip import annotate_clip
from annotate.engines.litert import LitertEngine
from annotate.filters import FilterSettings, judge
from annotate.scores import Scores, sample_scores
from annotate.settings import AnnotateSettings
from annotate.small_images import SmallImages
from ingest.clip import Piece, ingest_clip
from ingest.faces import Detector
from ingest.settings import IngestSettings
from talkinghead.annotation import Arrays
from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import FaceModel
from talkinghead.geometry.canonical import canonical_face
from talkinghead.media.audio import decode_wav
from talkinghead.media.clip import decode_clip
from talkinghead.schema import MEDIA_MEMBERS, CatalogRow, ClipInfo, Rejection

SMALL = IngestSettings(size=128, min_crop=16)
"""Settings for drawn images."""


class OneFace:
    """A detector that finds one face in the middle of every image, for tests that are not about faces."""

    class Face:
        """The face."""

        score = 0.9
        box = (0.3, 0.3, 0.7, 0.7)

    def detect(self, frame: np.ndarray, *, small_faces: bool = False) -> list[OneFace.Face]:
        """The face, whatever the image."""
        return [self.Face()]


class NoFace:
    """A detector that finds nothing."""

    def detect(self, frame: np.ndarray, *, small_faces: bool = False) -> list[OneFace.Face]:
        """Nothing."""
        return []


def row(**changes: object) -> CatalogRow:
    """A row of the catalog for a whole file."""
    values: dict[str, object] = {
        "key": "folder-a", "dataset": "folder", "source_id": "a", "source": "a.mp4", "split_group": "a", "licence": "x",
    }  # fmt: skip
    return CatalogRow(**(values | changes))  # pyright: ignore[reportArgumentType]


def pieces_of(
    file: Path, detector: Detector | None = None, settings: IngestSettings = SMALL, **changes: object
) -> list[Piece]:
    """All pieces of a file; `changes` are those of `row`."""
    return list(ingest_clip(row(**changes), file, settings, detector or OneFace(), "0" * 16))


@dataclass(frozen=True)
class Made:
    """The members of a piece, decoded."""

    info: ClipInfo
    frames: np.ndarray
    """RGB uint8 `[F, H, W, 3]`."""
    audio: np.ndarray
    """Float32 `[F * 640]`."""


def made_of(piece: Piece) -> Made:
    """Decode a piece that was not rejected."""
    assert piece.rejection is None and piece.contents is not None and tuple(piece.contents) == MEDIA_MEMBERS
    info = ClipInfo.from_json(piece.contents["json"])
    frames, audio = np.stack(list(decode_clip(piece.contents["mp4"]))), decode_wav(piece.contents["wav"])
    assert (info.key, info.num_frames, len(info.source_pts)) == (piece.key, len(frames), len(frames))
    assert len(audio) == 640 * len(frames) and frames.shape[1:3] == (info.height, info.width)
    return Made(info, frames, audio)


@dataclass(frozen=True)
class Judged:
    """A sample with its annotation, its scores, and what the filters say."""

    made: Made
    arrays: Arrays
    scores: Scores

    def verdict(self, **filters: object) -> Rejection | None:
        """The reason why it is not used, or None."""
        return judge(self.scores, FilterSettings(**filters))  # pyright: ignore[reportArgumentType]


class WholeWay:
    """Ingest and annotation with a real face model."""

    def __init__(self, model: FaceModel) -> None:
        self.detector = FaceDetector(model)
        self._engine = LitertEngine(model)
        self._face = canonical_face(model.geometry_metadata)

    def pieces(self, file: Path, settings: IngestSettings | None = None) -> list[Piece]:
        """All pieces of a file."""
        return pieces_of(file, self.detector, settings or IngestSettings())

    def judged(self, piece: Piece) -> Judged:
        """Annotate a piece."""
        made = made_of(piece)
        damaged = made.info.damaged_frames
        small = SmallImages()
        frames = small.watch(iter(made.frames))
        arrays = annotate_clip(frames, self._engine, self.detector, self._face, AnnotateSettings(), damaged=damaged)
        return Judged(made, arrays, sample_scores(arrays, made.info, small.stacked()))


def with_sound_changed(source: Path, target: Path, change: Callable[[int, av.Packet], av.Packet | None]) -> Path:
    """Copy a video with its sound; `change` gets each packet of the sound, and returns it, another, or None."""
    with av.open(str(source)) as one, av.open(str(target), "w") as two:
        kept = {stream.index: two.add_stream_from_template(stream) for stream in one.streams}
        number = 0
        for packet in one.demux():
            if not packet.size:
                continue
            stream = packet.stream
            changed: av.Packet | None = packet
            if stream.type == "audio":
                changed, number = change(number, packet), number + 1
            if changed is not None:
                changed.stream = kept[stream.index]
                two.mux(changed)
    return target
