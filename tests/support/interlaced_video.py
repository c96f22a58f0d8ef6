"""Interlaced video drawn for tests: moving pictures, woven from two moments a frame, with or without the flag."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.filter import Graph
from av.video.reformatter import Colorspace, VideoReformatter

WIDTH, HEIGHT = 192, 128


def moments(count: int, step_px: float = 3.0) -> list[np.ndarray]:
    """Pictures RGB uint8 `[128, 192, 3]`: a disc and a cloudy texture that move, over stripes that stand still."""
    noise = np.random.default_rng(3).integers(0, 256, (HEIGHT // 8, 3 * WIDTH // 8, 3), dtype=np.uint8)
    texture = cv2.resize(noise, (3 * WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    pictures = []
    for number in range(count):
        shift = number * step_px
        moved = cv2.warpAffine(texture, np.array([[1, 0, -shift], [0, 1, 0]], float), (WIDTH, HEIGHT))
        moved[: HEIGHT // 4] = np.where(np.arange(HEIGHT // 4) % 4 < 2, 190, 60)[:, None, None]
        centre = (int(16 * (30 + shift)) % (16 * WIDTH), 16 * 80)
        cv2.circle(moved, centre, 16 * 20, (230, 190, 150), -1, cv2.LINE_AA, shift=4)
        pictures.append(moved)
    return pictures


def planes(image: np.ndarray) -> np.ndarray:
    """The picture as yuv420p of BT.709, uint8 `[192, 192]`."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return VideoReformatter().reformat(frame, format="yuv420p", dst_colorspace=Colorspace.ITU709).to_ndarray()


def woven(pictures: Sequence[np.ndarray], top_first: bool) -> list[np.ndarray]:
    """Each two moments as one frame, yuv420p uint8 `[192, 192]`."""
    frames = []
    for first, second in zip(pictures[0::2], pictures[1::2], strict=True):
        one, two = planes(first), planes(second)
        frame = one.copy()
        lines = slice(1, None, 2) if top_first else slice(0, None, 2)
        frame[:HEIGHT][lines] = two[:HEIGHT][lines]
        for at in (HEIGHT, HEIGHT + HEIGHT // 4):  # chroma, two of its lines in one of the array
            of = slice(at, at + HEIGHT // 4)
            chroma = frame[of].reshape(HEIGHT // 2, WIDTH // 2)
            chroma[lines] = two[of].reshape(HEIGHT // 2, WIDTH // 2)[lines]
        frames.append(frame)
    return frames


def write_fields(
    path: Path, frames: Iterable[np.ndarray], flag: str | None, codec: str = "libx264", **options: str
) -> Path:
    """Encode yuv420p frames at 25 per second.

    Args:
        path: File to write.
        frames: Planes, uint8 `[192, 192]`.
        flag: `tff` or `bff`: the file calls itself interlaced with this field first; None: progressive.
        codec: `libx264` or `mpeg2video`.
        options: Options of the encoder.
    """
    settings = {"crf": "8"} if codec == "libx264" else {"qmin": "1", "qmax": "2", "b": "20000000"}
    if flag:
        settings["flags"] = "+ildct+ilme"
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25, options=settings | options)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.colorspace = Colorspace.ITU709
        for number, array in enumerate(frames):
            frame = flagged(av.VideoFrame.from_ndarray(array, format="yuv420p"), flag)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def flagged(frame: av.VideoFrame, flag: str | None) -> av.VideoFrame:
    """The frame, called interlaced with the field first that `tff` or `bff` says, or progressive (None)."""
    graph = Graph()
    source = (
        f"video_size={frame.width}x{frame.height}:pix_fmt=yuv420p:time_base=1/25:pixel_aspect=1/1:"
        f"colorspace={frame.colorspace}:range={frame.color_range}"
    )
    graph.link_nodes(graph.add("buffer", source), graph.add("setfield", flag or "prog"), graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.pull()
