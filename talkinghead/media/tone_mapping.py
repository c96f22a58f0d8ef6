"""Maps high dynamic range (PQ and HLG, ITU-R BT.2100) to the standard range: BT.709's colours on an sRGB display.

All images of this project are numbers of an sRGB display (IEC 61966-2-1), still images as well as BT.709 videos. The
steps, with diffuse white at 203 cd/m² (ITU-R BT.2408-7, section 2: 58 % of PQ's signal, 75 % of HLG's):

1. Code values become light in units of diffuse white. PQ: the EOTF (BT.2100-2, table 4) over 203 cd/m². HLG: the
   inverse OETF (table 5) over its value at 75 %. HLG's OOTF has the gamma 1.2 + 0.42 log10(peak / 1000 cd/m²) (table
   5, note 5f); a display whose white is as bright as that of sRGB (80 cd/m²) or of a studio (100) has a peak of
   300 to 400 cd/m², for which the gamma is 1: nothing is left to be done.
2. The file's primaries become BT.709's. What a BT.709 display cannot show is clipped (BT.2407-0, section 2).
3. Light becomes code values by the inverse of sRGB's EOTF.
4. Highlights are rolled off. Up to `KNEE`, 90 % of the signal, nothing is changed: that is 79 % of diffuse white, and
   skin of every tone, lit for this white, lies below. From there a curve without a kink leads to 1 at the peak of the
   transfer; diffuse white becomes 95 %. Each of R, G, B for itself, so that bright lights turn white.

So an image of BT.709 that was put into HLG or PQ at reference white comes back as it was up to level 229 of 255, and
white as 242. Curves that leave more room to highlights (BT.2446) make every face darker. HLG that was made for the
gamma 1.2 of a display of 1000 cd/m² comes back lighter in the mid tones, by 9 levels at most (6 on average).
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

Transfer = Literal["PQ", "HLG"]

TRANSFERS: dict[int, Transfer] = {16: "PQ", 18: "HLG"}
"""Transfer characteristics that are mapped, by their code in ITU-T H.273, table 3."""

WHITE_CD_M2 = 203.0
"""Luminance of diffuse white in PQ (BT.2408), which becomes the white of BT.709."""
WHITE_HLG = 0.75
"""The same as a signal of HLG."""
PEAK_CD_M2 = 1000.0
"""Luminance of PQ that becomes the brightest level: what most of it is graded for. HLG has a peak of its own."""
KNEE = 0.9
"""Signal of BT.709 from which highlights are rolled off."""

# x and y of red, green, blue (H.273 table 2, by its codes); the white is D65 in all of them.
_WHITE = (0.3127, 0.3290)
BT709, BT2020, P3_D65 = 1, 9, 12
_PRIMARIES = {
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    P3_D65: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}

_CODES = 65536  # values of the 16-bit signals that index the tables
WHITE_CODE = 255 * 256
"""16-bit code of the signal 1 as swscale converts it from Y'CbCr (measured; 65535 would be 0.4 % too dark)."""
_BLOCK_PIXELS = 1 << 15  # pixels that are converted at once, so that the steps stay in the cache


class ToneMapper:
    """Maps images of one transfer and one set of primaries to BT.709."""

    def __init__(self, transfer: Transfer, primaries: int) -> None:
        """Make the tables.

        Args:
            transfer: Transfer of the images.
            primaries: Code of their primaries in ITU-T H.273, table 2. Any but BT.709 and P3 is taken as BT.2020,
                which BT.2100 prescribes.
        """
        signal = np.minimum(np.arange(_CODES) / WHITE_CODE, 1)
        if transfer == "HLG":
            light, peak = hlg_light(signal), float(hlg_light(np.ones(1))[0])
        else:
            light, peak = pq_light(signal), PEAK_CD_M2 / WHITE_CD_M2
        self._light = light.astype(np.float32)
        self._matrix = primaries_matrix(primaries if primaries in _PRIMARIES else BT2020, BT709).astype(np.float32)
        # Code values by the root of light: its steps are as even to the eye as those of the signal, and cost less.
        self._steps = (_CODES - 1) / peak**0.5
        signals = rolled_off(srgb_signal((np.arange(_CODES) / self._steps) ** 2), float(srgb_signal(np.array(peak))))
        self._levels = np.round(255 * signals).astype(np.uint8)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Images R'G'B' uint16 `[H, W, 3]` of 0 .. `WHITE_CODE` as BT.709 uint8 `[H, W, 3]`."""
        height, width = image.shape[:2]
        mapped = np.empty((height, width, 3), np.uint8)
        rows = max(1, _BLOCK_PIXELS // width)
        for top in range(0, height, rows):
            light = cv2.transform(self._light[image[top : top + rows]], self._matrix)
            index = cv2.sqrt(np.maximum(light, 0)) * np.float32(self._steps)
            mapped[top : top + rows] = self._levels[np.minimum(index + 0.5, _CODES - 1).astype(np.uint16)]
        return mapped


def pq_light(signal: np.ndarray) -> np.ndarray:
    """Light in units of diffuse white of PQ signals in 0 .. 1: the EOTF of BT.2100-2, table 4 (SMPTE ST 2084)."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = signal ** (1 / m2)
    return 10000 / WHITE_CD_M2 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def hlg_light(signal: np.ndarray) -> np.ndarray:
    """Light in units of diffuse white of HLG signals in 0 .. 1: the inverse OETF of BT.2100-2, table 5."""
    return _hlg_scene_light(signal) / _hlg_scene_light(np.array(WHITE_HLG))


def _hlg_scene_light(signal: np.ndarray) -> np.ndarray:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def srgb_signal(light: np.ndarray) -> np.ndarray:
    """Signals of light, 1 for white, on an sRGB display (IEC 61966-2-1); goes on above white."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def rolled_off(signal: np.ndarray, peak: float) -> np.ndarray:
    """Signals of 0 .. `peak` as signals of 0 .. 1, unchanged up to `KNEE`.

    Above the knee, with u = (signal - knee) / (1 - knee) and p the same of the peak, it is
    knee + (1 - knee) · u (1 + u / p²) / (1 + u): the curve of Reinhard et al., "Photographic Tone Reproduction for
    Digital Images" (2002), equation 4, whose slope at u = 0 is 1.
    """
    most = (peak - KNEE) / (1 - KNEE)
    above = np.clip((signal - KNEE) / (1 - KNEE), 0, most)
    return np.minimum(signal, KNEE) + (1 - KNEE) * above * (1 + above / most**2) / (1 + above)


def primaries_matrix(source: int, target: int) -> np.ndarray:
    """Matrix `[3, 3]` from linear R, G, B of one set of primaries to another's; both with the white D65.

    Args:
        source: `BT709`, `BT2020` or `P3_D65`.
        target: The same.
    """
    return np.linalg.inv(_to_xyz(target)) @ _to_xyz(source)


def _to_xyz(primaries: int) -> np.ndarray:
    """Matrix `[3, 3]` from linear R, G, B to CIE XYZ, with white at Y = 1 (SMPTE RP 177)."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in _PRIMARIES[primaries]]).T
    x, y = _WHITE
    return columns * np.linalg.solve(columns, np.array([x / y, 1, (1 - x - y) / y]))
