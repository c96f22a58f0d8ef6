"""Finds interlaced video and makes one whole image of the two fields of a frame.

An interlaced frame is woven from two moments: the even lines (top field) and the odd ones (bottom field) lie half a
frame apart, so what moves has teeth. The flag that says so is often wrong in either direction, so the fields are
compared themselves. `c` is how far lines stick out of the line above and below them within a frame; `d0` is the same
for the top field of a frame woven with the bottom field of the frame before, `d1` for the bottom field with the top
field before. Where something moves:

- progressive: the fields of a frame fit, both mixtures are a frame apart: c < d0 = d1;
- top field first: c and d0 are half a frame apart, d1 one and a half: c = d0 < d1; bottom field first: c = d1 < d0.

So (min(d0, d1) - c) / (max(d0, d1) - c) is 1 for progressive pairs and 0 for interlaced ones, however fast, noisy or
striped the image is; stripes that stand still cancel out. On the real clips of the tests it is 0.94 and more (0.7 in
small, coarsely coded ones), and -1.4 to 0.6 where two of their frames are woven into one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import cv2
import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace

FieldOrder = Literal["top", "bottom", "flagged"]
"""Which field of an interlaced frame comes first; `flagged`: as the frame's own flag says, nothing moved so far."""

Mark = TypeVar("Mark")

_NOISE = 6  # levels by which a line may stick out without being counted
_MOTION = 0.04  # mean of the levels that tell two weavings apart, below which nothing moves
_INTERLACED_BELOW = 0.5  # of the ratio above


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """What decides on a video."""

    frames: int
    """First frames that are looked at, at most."""
    pairs: int
    """Moving pairs that are needed."""
    share: float
    """Share of them that has to be interlaced, with one and the same first field."""


_FIRST_PAIRS = 4  # moving pairs that show a progressive video
# What is flagged needs little more: in film that was spread over 30 frames a second (telecine) two of five pairs are
# interlaced. What is not flagged needs nearly all: coarsely coded images that hardly move can look so by chance.
_FLAGGED = _Evidence(frames=50, pairs=1, share=0.4)
_NOT_FLAGGED = _Evidence(frames=16, pairs=6, share=0.75)


@dataclass(frozen=True)
class FieldMotion:
    """How well the fields of two frames fit in three ways, mean levels per pixel; see the head of this file."""

    within: float
    """`c`, of the later frame."""
    top_with_earlier: float
    """`d0`: its top field with the bottom field of the earlier frame."""
    bottom_with_earlier: float
    """`d1`: its bottom field with the top field of the earlier frame."""

    @property
    def moves(self) -> bool:
        """Whether there is enough motion to tell."""
        return max(self.top_with_earlier, self.bottom_with_earlier) - self.within > _MOTION

    @property
    def interlaced(self) -> bool:
        """Whether the fields are from two moments, where `moves`."""
        more, less = (pick(self.top_with_earlier, self.bottom_with_earlier) for pick in (max, min))
        return less - self.within < _INTERLACED_BELOW * (more - self.within)

    @property
    def top_first(self) -> bool:
        """Whether the top field is the earlier one, where `interlaced`."""
        return self.top_with_earlier < self.bottom_with_earlier


def field_motion(earlier: VideoFrame, later: VideoFrame) -> FieldMotion | None:
    """The comparison of the fields of two frames that follow each other; None where they have no two fields."""
    if (earlier.width, earlier.height) != (later.width, later.height) or later.height < 4:
        return None
    one, two = _Fields(earlier), _Fields(later)
    return FieldMotion(two.teeth(two.bottom), two.teeth(one.bottom), one.teeth(two.bottom))


def field_order(first_frames: Iterable[VideoFrame], flagged: bool) -> FieldOrder | None:
    """The field order of a video by its first frames, or None where it is progressive.

    Where nothing moves in them, the flag counts.

    Args:
        first_frames: Its frames from the first on. No more are taken than needed: five where the image moves and is
            progressive; 16 at most, or 50 of a flagged file.
        flagged: Whether the file calls its first frame interlaced.
    """
    needed = _FLAGGED if flagged else _NOT_FLAGGED
    moving: list[FieldMotion] = []
    earlier: VideoFrame | None = None
    for number, frame in enumerate(first_frames, 1):
        motion = field_motion(earlier, frame) if earlier is not None else None
        if motion is not None and motion.moves:
            moving.append(motion)
            seen = sum(motion.interlaced for motion in moving)
            if len(moving) >= _FIRST_PAIRS and seen < _FLAGGED.share * len(moving):
                return None
            if len(moving) >= max(needed.pairs, _FIRST_PAIRS):
                break
        if number >= needed.frames:
            break
        earlier = frame
    if len(moving) < needed.pairs:
        return "flagged" if flagged else None
    top = sum(motion.interlaced and motion.top_first for motion in moving)
    bottom = sum(motion.interlaced and not motion.top_first for motion in moving)
    if max(top, bottom) < needed.share * len(moving):
        return None
    return "top" if top > bottom else "bottom"


def deinterlaced(
    frames: Iterable[tuple[VideoFrame, Mark]], order: FieldOrder | None
) -> Iterator[tuple[VideoFrame, Mark]]:
    """Frames with their two fields made one image: as many frames, at the same times, with the same flags.

    FFmpeg's bwdif keeps the lines of the first field and interpolates the others, in time where nothing moves and in
    space where something does. A frame whose fields evidently fit (`FieldMotion` with its neighbours) stays as it is:
    in files whose flag is wrong, and in film that was spread over more frames. A frame comes out when the one after it
    is there.

    Args:
        frames: Decoded frames in presentation order, each with whatever shall go with it.
        order: Their field order; None: they are progressive and pass through.
    """
    if order is None:
        yield from frames
        return
    deinterlacer: _Deinterlacer | None = None
    current: tuple[VideoFrame, Mark] | None = None
    before: FieldMotion | None = None  # of the current frame with the one before it
    for following in frames:
        if current is None:
            current = following
            continue
        (frame, mark), (next_frame, _) = current, following
        after = field_motion(frame, next_frame)
        if _layout(frame) != _layout(next_frame) or _is_cut(before, after):
            yield _last_image(frame, deinterlacer, before), mark
            deinterlacer, current, before = None, following, None
            continue
        if deinterlacer is None:
            deinterlacer = _Deinterlacer(frame, next_frame, order)
        yield _one_image(frame, deinterlacer.image_before(next_frame), before, after), mark
        current, before = following, after
    if current is not None:
        frame, mark = current
        yield _last_image(frame, deinterlacer, before), mark


def _last_image(frame: VideoFrame, deinterlacer: _Deinterlacer | None, before: FieldMotion | None) -> VideoFrame:
    """The image of the last frame before a cut or the end; a frame between two of them is left as it is."""
    return frame if deinterlacer is None else _one_image(frame, deinterlacer.rest(), before, None)


def _is_cut(before: FieldMotion | None, after: FieldMotion | None) -> bool:
    """Whether interlaced motion ends between two frames: across a cut, all mixtures of fields are equally bad."""
    if before is None or after is None:
        return False
    return before.moves and before.interlaced and after.moves and not after.interlaced


def _one_image(
    frame: VideoFrame, image: VideoFrame, before: FieldMotion | None, after: FieldMotion | None
) -> VideoFrame:
    """The deinterlaced image with the frame's times; the frame itself where its fields fit."""
    moving = [motion for motion in (before, after) if motion is not None and motion.moves]
    if moving and not any(motion.interlaced for motion in moving):
        return frame
    image.pts, image.dts, image.duration = frame.pts, frame.dts, frame.duration
    if frame.time_base is not None:
        image.time_base = frame.time_base
    return image


class _Fields:
    """The two fields of a frame's brightness."""

    def __init__(self, frame: VideoFrame) -> None:
        lines = _brightness(frame)
        between = (len(lines) - 1) // 2  # bottom lines that have a top line above and below
        self.bottom = lines[1::2][:between]
        top = lines[0::2]
        self._highest = cv2.max(top[:between], top[1 : between + 1])
        self._lowest = cv2.min(top[:between], top[1 : between + 1])

    def teeth(self, bottom: np.ndarray) -> float:
        """Mean level by which lines of a bottom field stick out of the lines of this top field around them."""
        out = cv2.add(cv2.subtract(bottom, self._highest), cv2.subtract(self._lowest, bottom))
        return cv2.mean(np.maximum(out, _NOISE))[0] - _NOISE


def _brightness(frame: VideoFrame) -> np.ndarray:
    """Levels of brightness, uint8 `[H, W]`."""
    layout = frame.format
    if layout.is_rgb or not layout.is_planar or layout.components[0].bits != 8:
        matrix = Colorspace.ITU709  # without effect on brightness; swscale refuses codes that it does not know
        return frame.reformat(format="gray", src_colorspace=matrix, dst_colorspace=matrix, threads=1).to_ndarray()
    plane = frame.planes[0]
    values = np.frombuffer(cast(bytes, plane), np.uint8, count=plane.line_size * plane.height)  # it is a buffer
    lines = values.reshape(plane.height, plane.line_size)
    return lines[:, : plane.width]


class _Deinterlacer:
    """FFmpeg's bwdif over frames of one size and format: one image for each frame, when the next one is there."""

    def __init__(self, first: VideoFrame, second: VideoFrame, order: FieldOrder) -> None:
        parity = {"top": "tff", "bottom": "bff", "flagged": "auto"}[order]
        self._graph = Graph()
        self._graph.threads = 1
        self._graph.link_nodes(
            self._graph.add(
                "buffer",
                f"video_size={first.width}x{first.height}:pix_fmt={first.format.name}:time_base=1/1000000:"
                f"pixel_aspect=1/1:colorspace={first.colorspace}:range={first.color_range}",
            ),
            self._graph.add("bwdif", f"mode=send_frame:parity={parity}:deint=all"),
            self._graph.add("format", first.format.name),
            self._graph.add("buffersink"),
        )
        self._graph.configure()
        # The filter takes a first frame for its own predecessor, and so for still: it is shown the second one before.
        self._graph.push(second)
        self._graph.push(first)
        self._graph.pull()

    def image_before(self, frame: VideoFrame) -> VideoFrame:
        """The image of the frame before this one."""
        self._graph.push(frame)
        return cast(VideoFrame, self._graph.pull())

    def rest(self) -> VideoFrame:
        """The image of the last frame."""
        self._graph.push(None)
        return cast(VideoFrame, self._graph.pull())


def _layout(frame: VideoFrame) -> tuple[object, ...]:
    return frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range
