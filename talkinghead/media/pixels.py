"""Converts decoded frames to RGB and back with swscale.

Swscale's default path from YUV to RGB truncates: on a smooth image it is 1.1 levels too dark on average and up to 7 off
(measured; BT.709, 8 bit). `ACCURATE` rounds properly and interpolates chroma (no bias, 0.3 on average) for about 5 ns
per pixel more; `FAST` is for images that only a detector gets.

High dynamic range is converted at 16 bits and mapped to BT.709 (`tone_mapping.py`). All other frames keep their
primaries and transfer: BT.2020 in standard range, BT.601 and unlabelled files differ from BT.709 by less than what
cameras make of colours. Full and limited range are taken as the file says, unlabelled ones as limited.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from talkinghead.media.tone_mapping import TRANSFERS, ToneMapper

ACCURATE = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)
FAST = Interpolation.AREA

MATRICES_NOT_READ = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "YDzDx",
    12: "a matrix derived from the primaries",
    13: "a matrix derived from the primaries, with constant luminance",
    14: "ICtCp",
    15: "IPT",
}
"""Matrices from R'G'B' to Y'CbCr that swscale cannot undo, by their codes in ITU-T H.273, table 4."""

_MATRICES = (0, 1, 4, 5, 6, 7, 9)  # that it can; 2 is "unspecified", and other codes mean nothing
_MARGIN = 8  # pixels around a part that its border pixels are interpolated from; a multiple of every chroma step


class PixelConverter:
    """Converts frames, keeping swscale's tables between frames of one size; belongs to the thread that made it."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._graphs: dict[tuple[str, str, str], Graph] = {}
        self._tone_mappers: dict[tuple[int, int], ToneMapper] = {}

    def rgb(self, frame: VideoFrame, width: int, height: int, quality: Interpolation = ACCURATE) -> np.ndarray:
        """The frame as RGB uint8 `[height, width, 3]`, full range; PQ and HLG mapped to BT.709.

        A frame without a colour matrix is taken as BT.2020 if it is PQ or HLG, as BT.709 if its longer side is 1280
        pixels or more (720 lines at 16:9), else as BT.601, as players do.
        """
        if frame.interlaced_frame:
            frame = self._as_one_image(frame)
        hdr = TRANSFERS.get(frame.color_trc)
        matrix = None
        if frame.colorspace not in _MATRICES:
            if hdr:
                matrix = Colorspace.BT2020
            else:
                matrix = Colorspace.ITU709 if max(frame.width, frame.height) >= 1280 else Colorspace.ITU601
        converted = self._reformatter.reformat(
            frame,
            width,
            height,
            "rgb48le" if hdr else "rgb24",
            src_colorspace=matrix,
            interpolation=quality,
            threads=1,
        )
        pixels = converted.to_ndarray()
        if not hdr:
            return pixels
        key = frame.color_trc, frame.color_primaries
        if key not in self._tone_mappers:
            self._tone_mappers[key] = ToneMapper(hdr, frame.color_primaries)
        return self._tone_mappers[key](pixels)

    def rgb_part(self, frame: VideoFrame, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """The part `x0 .. x1 - 1`, `y0 .. y1 - 1` of a frame as RGB uint8 `[y1 - y0, x1 - x0, 3]`.

        The part is cut before it is converted: a face in a 1080p frame costs a tenth of the frame. Its pixels differ
        from the whole frame's by 1 level at most.
        """
        # The corner on a multiple of the margin, so that chroma samples stay whole.
        left, top = (max(0, start // _MARGIN - 1) * _MARGIN for start in (x0, y0))
        right, bottom = min(frame.width, x1 + _MARGIN), min(frame.height, y1 + _MARGIN)
        cutter = self._graph(frame, "crop", f"{right - left}:{bottom - top}:{left}:{top}")
        cutter.push(frame)
        part = cast(VideoFrame, cutter.pull())
        image = self.rgb(part, part.width, part.height)
        return image[y0 - top : y1 - top, x0 - left : x1 - left]

    def _as_one_image(self, frame: VideoFrame) -> VideoFrame:
        """The frame without its interlaced flag; it copies no pixels.

        By now its fields are one image (`deinterlace.py`), and swscale would scale each of them for itself.
        """
        clearing = self._graph(frame, "setfield", "prog")
        clearing.push(frame)
        return cast(VideoFrame, clearing.pull())

    def _graph(self, frame: VideoFrame, name: str, options: str) -> Graph:
        """A graph of one filter for frames like this one."""
        source = (
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000000:"
            f"pixel_aspect=1/1:colorspace={frame.colorspace}:range={frame.color_range}"
        )
        # A graph costs more to build than to use, and faces stay in their boxes for many frames.
        if (source, name, options) not in self._graphs:
            graph = Graph()
            graph.threads = 1
            graph.link_nodes(graph.add("buffer", source), graph.add(name, options), graph.add("buffersink"))
            graph.configure()
            self._graphs[source, name, options] = graph
        return self._graphs[source, name, options]

    def yuv420(self, image: np.ndarray) -> VideoFrame:
        """An RGB uint8 image `[H, W, 3]` (both even) as yuv420p, BT.709, limited range."""
        return self._reformatter.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=ACCURATE,
            threads=1,
        )
