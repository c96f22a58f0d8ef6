"""Pictures of BT.709 put into HLG and PQ (ITU-R BT.2100) and encoded, for tests that read them back.

The way there is written from the standards once more, with nothing of what is tested.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

TRANSFERS = {"standard": 14, "PQ": 16, "HLG": 18}  # ITU-T H.273, table 3
_TO_BT2020 = np.array(  # linear BT.709 to linear BT.2020 (ITU-R BT.2087-0, section 4)
    [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
)
PATCH = 32
"""Side of a patch, pixels."""

SKIN = ((244, 208, 177), (231, 188, 145), (214, 161, 122), (183, 125, 87), (141, 85, 54), (96, 58, 40), (58, 34, 26))
"""Skin from light to dark, sRGB."""
PLAIN = ((0, 0, 0), (18, 18, 18), (60, 60, 60), (118, 118, 118), (187, 187, 187), (225, 225, 225), (200, 40, 40),
         (40, 190, 60), (50, 70, 200), (220, 200, 40), (30, 160, 180), (180, 50, 150), (110, 130, 90))  # fmt: skip
"""Grey and colours up to level 225, sRGB."""


def patches() -> np.ndarray:
    """Skin and plain colours as squares, sRGB uint8 `[128, 160, 3]`."""
    colours = np.array(SKIN + PLAIN, np.uint8).reshape(4, 5, 3)
    return colours.repeat(PATCH, 0).repeat(PATCH, 1)


def hdr_signal(image: np.ndarray, transfer: str) -> np.ndarray:
    """An sRGB picture uint8 as R'G'B' of PQ or HLG in 0 .. 1, white at 203 cd/m² or 75 % (ITU-R BT.2408)."""
    signal = image / 255
    light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    light = np.clip(light @ _TO_BT2020.T, 0, None)
    if transfer == "PQ":
        power = (light * 203 / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    scene = light * 0.2649625  # of 75 %
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


def write_hdr(
    path: Path,
    signal: np.ndarray,
    transfer: str,
    *,
    codec: str = "libx265",
    pixel_format: str = "yuv420p10le",
    labelled_matrix: bool = True,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode R'G'B' `[H, W, 3]` in 0 .. 1 as eight frames Y'CbCr of BT.2020, limited range."""
    r, g, b = np.moveaxis(signal, -1, 0)
    y = 0.2627 * r + 0.6780 * g + 0.0593 * b
    bits = 10 if "10" in pixel_format else 8
    scale = 2 ** (bits - 8)
    luma = (219 * y + 16) * scale
    chroma = [(224 * (colour - y) / divisor + 128) * scale for colour, divisor in ((b, 1.8814), (r, 1.4746))]
    height, width = y.shape
    chroma = [plane.reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for plane in chroma]
    frame = av.VideoFrame(width, height, pixel_format)
    for plane, values in zip(frame.planes, (luma, *chroma), strict=True):
        kind = np.uint16 if bits > 8 else np.uint8
        lines = np.zeros((plane.height, plane.line_size // np.dtype(kind).itemsize), kind)
        lines[:, : plane.width] = np.round(values)
        plane.update(lines.tobytes())
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25, options=options or {})
        video.width, video.height, video.pix_fmt = width, height, pixel_format
        context = video.codec_context
        context.color_trc, context.color_primaries, context.color_range = TRANSFERS[transfer], 9, 1
        context.colorspace = 9 if labelled_matrix else 2
        frame.color_trc, frame.color_primaries, frame.color_range = TRANSFERS[transfer], 9, 1
        frame.colorspace = context.colorspace
        for number in range(8):
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path
