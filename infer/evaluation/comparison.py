"""Contact sheets and videos for people: generated frames next to the landmarks that were asked for and the truth.

From left to right (videos), or from top to bottom (sheets): the reference, the landmarks that were asked for, the
generated frames, the frames generated without motion modules if they were made, and the true frames if there are any.
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
from talkinghead.schema import check_key
from talkinghead.timebase import FPS

REFERENCE, ASKED = "reference", "asked"
SHEET_COLUMNS = 8
"""Number of frames on a contact sheet, spread over the clip."""
_SHOWN = (GENERATED, NO_MOTION, TRUTH)
_TILE = 128  # pixels of the longer side of a sheet's images
_PANEL = 256  # least height of a video's images in pixels: smaller ones are enlarged by a whole factor
_BAR, _GAP = 18, 4  # pixels: height of the title above a row, gap between tiles
_PAPER, _INK = (250, 249, 246), (60, 66, 72)


class Comparison:
    """Callback `on_clip` of an evaluation that writes a contact sheet and a video of each of the first clips.

    Args:
        folder: Folder for `sheet-<key>.png` and `<key>.mp4`; made when needed.
        most: Number of clips that are shown.
    """

    def __init__(self, folder: Path, most: int = 4) -> None:
        self.folder, self.left = folder, most

    def __call__(self, trace: VideoTrace) -> None:
        """Write the sheet and the video of one clip."""
        if self.left <= 0:
            return
        self.left -= 1
        # Keys of clips that another one drives hold spaces: "<key> by <driver>". They come from an index that may be a
        # stranger's, and make the names of files here.
        name = "-by-".join(check_key(key) for key in trace.clip.key.split(" by "))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"sheet-{name}.png", contact_sheet(trace))
        write_comparison_video(trace, self.folder / f"{name}.mp4")


def contact_sheet(trace: VideoTrace, columns: int = SHEET_COLUMNS) -> bytes:
    """Frames from all over a clip as one PNG.

    The first row holds the reference and the landmarks asked for; the rows below hold the images of the same frames.
    """
    # In a short clip several columns fall on one frame: each is shown once.
    frames = np.unique(np.linspace(0, trace.clip.num_frames - 1, columns).round().astype(int))
    height, width = trace.clip.reference.shape[:2]
    scale = _TILE / max(width, height)
    size = (round(width * scale), round(height * scale))
    asked = [draw_guidance(trace.clip.landmarks[frame], *size) for frame in frames]
    # Empty tile below the reference, so that the columns of all rows show the same frame.
    paper = np.full((size[1], size[0], 3), _PAPER, np.uint8)
    rows = [_row("reference, then the landmarks asked for", [_resized(trace.clip.reference, size), *asked])]
    for name in _SHOWN:
        if name in trace.videos:
            rows.append(_row(name, [paper, *(_resized(trace.videos[name][frame], size) for frame in frames)]))
    done, encoded = cv2.imencode(".png", cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    assert done
    return encoded.tobytes()


def write_comparison_video(trace: VideoTrace, path: Path) -> None:
    """Write a video of all images next to each other with the driving clip's sound, whole or not at all."""
    # The size must be known before the file is opened: the first panel is made twice.
    first = next(_panels(trace))
    write_talking_video(
        path, _panels(trace), width=first.shape[1], height=first.shape[0], fps=FPS, speech=trace.clip.audio
    )


def _panels(trace: VideoTrace) -> Iterator[np.ndarray]:
    """Frames of the comparison video, `[H', W', 3]` RGB uint8 with even sides."""
    height, width = trace.clip.reference.shape[:2]
    # Rounded up to a whole factor, so that every pixel is repeated equally often.
    factor = max(1, -(-_PANEL // height))
    size = (width * factor, height * factor)
    shown = {name: trace.videos[name] for name in _SHOWN if name in trace.videos}
    reference = _resized(trace.clip.reference, size)
    for frame, points in enumerate(trace.clip.landmarks):
        images = {REFERENCE: reference, ASKED: draw_guidance(points, *size)}
        images |= {name: _resized(video[frame], size) for name, video in shown.items()}
        panel = np.hstack([np.vstack((_bar(name, size[0]), image)) for name, image in images.items()])
        # The video codec (yuv420p) halves the colours' resolution: both sides must be even.
        yield cv2.copyMakeBorder(panel, 0, panel.shape[0] % 2, 0, panel.shape[1] % 2, cv2.BORDER_CONSTANT, value=_PAPER)


def _row(title: str, tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Images of one size next to each other under a title."""
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
    """The image at another size: larger by repeated pixels, so that it looks no finer than it is; smaller by means."""
    larger = size[0] >= image.shape[1]
    return cv2.resize(image, size, interpolation=cv2.INTER_NEAREST if larger else cv2.INTER_AREA)
