"""What a person looks at: contact sheets and videos of generated frames next to what was asked for and the truth.

From left to right (videos), or from top to bottom (sheets): the reference, the landmarks that were asked for, what was
generated, the same without motion modules where there are any, and the true frames where there are any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from infer.evaluation.video_evaluation import GENERATED, NO_MOTION, TRUTH, VideoTrace
from talkinghead.files.atomic import write_whole
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.media.talking_video import write_talking_video
from talkinghead.timebase import FPS

REFERENCE, ASKED = "reference", "asked"
SHEET_COLUMNS = 8
"""Frames of a contact sheet, spread over the clip."""
_SHOWN = (GENERATED, NO_MOTION, TRUTH)
_TILE = 128  # pixels of the longer side of a sheet's images
_PANEL = 256  # least height of a video's images: smaller ones are enlarged by whole pixels
_BAR, _GAP = 18, 4  # of the words above a row, and between tiles
_PAPER, _INK = (250, 249, 246), (60, 66, 72)


class Comparison:
    """Writes a contact sheet and a video of the first clips of an evaluation. To be passed as `on_clip`.

    Args:
        folder: Where to: `sheet-<key>.png` and `<key>.mp4`.
        most: So many clips are shown.
    """

    def __init__(self, folder: Path, most: int = 4) -> None:
        self.folder, self.left = folder, most

    def __call__(self, trace: VideoTrace) -> None:
        """Write both of one clip."""
        if self.left <= 0:
            return
        self.left -= 1
        name = trace.clip.key.replace(" ", "-")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"sheet-{name}.png", contact_sheet(trace))
        write_comparison_video(trace, self.folder / f"{name}.mp4")


def contact_sheet(trace: VideoTrace, columns: int = SHEET_COLUMNS) -> bytes:
    """Frames from all over a clip as one PNG.

    The first row holds the reference and the landmarks asked for; below stand the images of the same frames.
    """
    frames = np.unique(np.linspace(0, trace.clip.num_frames - 1, columns).round().astype(int))
    height, width = trace.clip.reference.shape[:2]
    scale = _TILE / max(width, height)
    size = (round(width * scale), round(height * scale))
    asked = [draw_guidance(trace.clip.landmarks[frame], *size) for frame in frames]
    paper = np.full((size[1], size[0], 3), _PAPER, np.uint8)
    rows = [_row("reference, then the landmarks asked for", [_resized(trace.clip.reference, size), *asked])]
    for name in _SHOWN:
        if name in trace.videos:
            rows.append(_row(name, [paper, *(_resized(trace.videos[name][frame], size) for frame in frames)]))
    done, encoded = cv2.imencode(".png", cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    assert done
    return encoded.tobytes()


def write_comparison_video(trace: VideoTrace, path: Path) -> None:
    """Everything side by side as a video with the driving clip's sound, whole or not at all."""
    first = next(_panels(trace))
    write_talking_video(
        path, _panels(trace), width=first.shape[1], height=first.shape[0], fps=FPS, speech=trace.clip.audio
    )


def _panels(trace: VideoTrace) -> Iterator[np.ndarray]:
    """Frames of the video."""
    height, width = trace.clip.reference.shape[:2]
    factor = max(1, -(-_PANEL // height))
    size = (width * factor, height * factor)
    shown = {name: trace.videos[name] for name in _SHOWN if name in trace.videos}
    reference = _resized(trace.clip.reference, size)
    for frame, points in enumerate(trace.clip.landmarks):
        images = {REFERENCE: reference, ASKED: draw_guidance(points, *size)}
        images |= {name: _resized(video[frame], size) for name, video in shown.items()}
        panel = np.hstack([np.vstack((_bar(name, size[0]), image)) for name, image in images.items()])
        # The codec of the file halves the colours' resolution: both sides must be even.
        yield cv2.copyMakeBorder(panel, 0, panel.shape[0] % 2, 0, panel.shape[1] % 2, cv2.BORDER_CONSTANT, value=_PAPER)


def _row(title: str, tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Images of one size side by side under a title."""
    gap = np.full((tiles[0].shape[0], _GAP, 3), _PAPER, np.uint8)
    pieces = [gap]
    for tile in tiles:
        pieces += [tile, gap]
    strip = np.hstack(pieces)
    foot = np.full((_GAP, strip.shape[1], 3), _PAPER, np.uint8)
    return np.vstack((_bar(title, strip.shape[1]), strip, foot))


def _bar(text: str, width: int) -> np.ndarray:
    bar = np.full((_BAR, width, 3), _PAPER, np.uint8)
    cv2.putText(bar, text, (_GAP, _BAR - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)
    return bar


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Larger by repeated pixels, so that nothing looks finer than it is; smaller by averaging."""
    larger = size[0] >= image.shape[1]
    return cv2.resize(image, size, interpolation=cv2.INTER_NEAREST if larger else cv2.INTER_AREA)
