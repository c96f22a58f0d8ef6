"""From a raw source to the official clip: a real HDTF clip, put back where it was cut from, must come out again.

HDTF's BobCasey1_0 (00:45 to 00:55, crop 639 650 46 650 at 1080 lines) is placed at its crop box and interval in a
1920x1080 video of 29.97 frames per second. The official metadata and this source then have to give the same pictures at
the right moments, and the same sound without a shift.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from ingest.catalog import build_catalog
from ingest.clip import ingest_clip
from ingest.settings import IngestSettings
from talkinghead.face.detector import FaceDetector
from talkinghead.face.model import load_official
from talkinghead.schema import CatalogRow, ClipInfo
from talkinghead.timebase import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

KEY = "hdtf-WDA-BobCasey1-000"
NTSC = Fraction(30_000, 1001)
START_S = 45
SIDE, LEFT, TOP = 650, 639, 46


@dataclass(frozen=True)
class Original:
    """The published clip: RGB pictures `[300, 650, 650, 3]`, stereo sound `[2, N]` and its rate."""

    pictures: list[np.ndarray]
    sound: np.ndarray
    rate: int


@pytest.fixture(scope="module")
def original(media: Path) -> Original:
    with av.open(str(media / "video" / "Moore-AnimateAnyone_4.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(media / "video" / "Moore-AnimateAnyone_4.mp4")) as container:
        frames = list(container.decode(audio=0))
    assert frames[0].time == 0.0
    return Original(pictures, np.concatenate([frame.to_ndarray() for frame in frames], axis=1), frames[0].sample_rate)


def _write_source(path: Path, original: Original, height: int) -> None:
    """The clip in its place: a still picture up to 44.5 s, then other pictures, the clip from 45 s, others again."""
    scale = height / 1080
    width, side, left, top = (round(value * scale) for value in (1920, SIDE, LEFT, TOP))
    background = np.random.default_rng(0).integers(90, 110, (height, width, 3), np.uint8)
    background = cv2.GaussianBlur(background, (0, 0), 8)
    lead = int(NTSC) // 2
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=NTSC, width=width, height=height, pix_fmt="yuv420p")
        video.options = {"preset": "ultrafast", "crf": "14", "g": "30"}
        video.time_base = video.codec_context.time_base = 1 / (NTSC * 1001)
        audio = output.add_stream("aac", rate=original.rate, layout="stereo", bit_rate=256_000)
        for n in [-START_S * 30, *range(-lead, len(original.pictures) + lead)]:
            picture = background
            if 0 <= n < len(original.pictures):
                picture = background.copy()
                clip = original.pictures[n]
                if side != SIDE:
                    clip = cv2.resize(clip, (side, side), interpolation=cv2.INTER_AREA)
                picture[top : top + side, left : left + side] = clip
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            # frame numbers count from 45 s; the still picture stands at 0
            frame.pts = 0 if n < -lead else START_S * 30_000 + n * 1001
            frame.time_base = Fraction(1, 30_000)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        silence = np.zeros((2, START_S * original.rate), np.float32)
        sound = np.concatenate([silence, original.sound, silence[:, : original.rate // 2]], axis=1)
        for first in range(0, sound.shape[1], 1024):
            piece = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(sound[:, first : first + 1024]), format="fltp", layout="stereo"
            )
            piece.sample_rate, piece.pts, piece.time_base = original.rate, first, Fraction(1, original.rate)
            output.mux(audio.encode(piece))
        output.mux(audio.encode(None))


def _rebuild(shared: Path, folder: Path, original: Original, height: int) -> tuple[CatalogRow, dict[str, bytes]]:
    (folder / "WDA").mkdir()
    shutil.copytree(shared / "metadata" / "HDTF", folder / "metadata")
    _write_source(folder / "WDA" / "BobCasey1.mp4", original, height)
    catalog = build_catalog("hdtf", folder, limit=1)
    (row,) = catalog.rows
    assert (row.key, row.source) == (KEY, "WDA/BobCasey1.mp4")
    detector = FaceDetector(load_official(shared / "models" / "face_landmarker.task"))
    pieces = ingest_clip(row, folder / str(row.source), IngestSettings(), detector, "0" * 16)
    assert [(piece.key, piece.rejection) for piece in pieces] == [(KEY, None)]
    assert pieces[0].contents is not None
    return row, pieces[0].contents


def _decode(mp4: bytes, folder: Path) -> list[np.ndarray]:
    path = folder / "clip.mp4"
    path.write_bytes(mp4)
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)))


def _check_pictures(mp4: bytes, folder: Path, original: Original, least_psnr: float) -> None:
    made = _decode(mp4, folder)
    assert len(made) == 10 * FPS
    small = [cv2.resize(picture, (128, 128), interpolation=cv2.INTER_AREA) for picture in original.pictures]
    off, quality = [], []
    for k, picture in enumerate(made):
        shown = int(k * NTSC / FPS)  # the last frame that has begun at k / 25
        wanted = cv2.resize(original.pictures[shown], (512, 512), interpolation=cv2.INTER_AREA)
        quality.append(_psnr(picture, wanted))
        view = cv2.resize(picture, (128, 128), interpolation=cv2.INTER_AREA)
        near = {n: _psnr(view, small[n]) for n in range(max(0, shown - 2), min(len(small), shown + 3))}
        off.append(max(near, key=lambda n: near[n]) - shown)
    assert min(quality) >= least_psnr
    assert max(abs(shift) for shift in off) <= 1
    assert np.mean(np.array(off) == 0) >= 0.98  # pictures of a still moment may look alike


def _check_sound(wav: bytes, original: Original) -> None:
    made = np.frombuffer(wav[44:], "<i2").astype(np.float64) / 32768
    assert len(made) == 10 * FPS * SAMPLES_PER_FRAME
    mono = original.sound.astype(np.float64).mean(axis=0)
    times = np.arange(len(made)) / SAMPLE_RATE * original.rate
    taps = np.sinc((np.arange(-64, 65)) * 0.9 * SAMPLE_RATE / original.rate) * np.hamming(129)
    wanted = np.interp(times, np.arange(len(mono)), np.convolve(mono, taps / taps.sum(), "same"))
    spectrum = np.fft.rfft(made, 2 * len(made)) * np.conj(np.fft.rfft(wanted, 2 * len(made)))
    correlation = np.fft.irfft(spectrum) / (np.linalg.norm(made) * np.linalg.norm(wanted))
    lag = int(np.argmax(correlation))
    assert lag == 0, f"sound is shifted by {lag} samples"
    assert correlation[0] > 0.999


def _check_facts(contents: dict[str, bytes], row: CatalogRow, height: int) -> None:
    info = ClipInfo.from_json(contents["json"])
    scale = height / 1080
    box = (LEFT * scale, TOP * scale, (LEFT + SIDE) * scale, (TOP + SIDE) * scale)
    assert info.crop_rule == "box"
    np.testing.assert_allclose(info.crop_box_px, box, atol=1.0)
    assert (info.source_width, info.source_height, info.num_frames) == (round(1920 * scale), height, 250)
    assert (info.start_s, info.end_s, info.audio) == (45.0, 55.0, "present")
    assert (info.audio_offset_samples, info.audio_padded_samples) == (0, 0)
    assert (info.person, info.split_group, info.licence) == ("BobCasey", "BobCasey", "CC-BY-4.0")
    assert info.attributes == json.loads(row.attributes)
    shown = [START_S + int(k * NTSC / FPS) / NTSC for k in range(info.num_frames)]
    np.testing.assert_allclose(info.source_pts, [float(time) for time in shown], atol=1e-5)


@pytest.mark.parametrize(
    ("height", "least_psnr"),
    [pytest.param(540, 38.0, id="half size"), pytest.param(1080, 39.0, id="listed size", marks=pytest.mark.slow)],
)
def test_official_clip_comes_back(shared: Path, original: Original, tmp_path: Path, height: int, least_psnr: float):
    row, contents = _rebuild(shared, tmp_path, original, height)
    assert list(contents) == ["json", "mp4", "wav"]
    _check_facts(contents, row, height)
    _check_pictures(contents["mp4"], tmp_path, original, least_psnr)
    _check_sound(contents["wav"], original)
