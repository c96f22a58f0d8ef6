"""Rebuild of an official clip: a real HDTF clip, put back where it was cut from, must come out again.

HDTF's BobCasey1_0 (00:45 to 00:55, crop 639 650 46 650 at 1080 lines) is placed at its crop box and interval in a
1920x1080 video of 29.97 frames per second. The official metadata and this source then have to give the same images at
the right moments, and the same sound without a shift.
"""

from __future__ import annotations

import json
import shutil
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
from tests.support.hdtf_original import LEFT, NTSC, SIDE, START_S, TOP, Original, write_source

KEY = "hdtf-WDA-BobCasey1-000"


def _rebuild(shared: Path, folder: Path, original: Original, height: int) -> tuple[CatalogRow, dict[str, bytes]]:
    (folder / "WDA").mkdir()
    shutil.copytree(shared / "metadata" / "HDTF", folder / "metadata")
    write_source(folder / "WDA" / "BobCasey1.mp4", original, height)
    catalog = build_catalog("hdtf", folder, limit=1)
    (row,) = catalog.rows
    assert (row.key, row.source) == (KEY, "WDA/BobCasey1.mp4")
    detector = FaceDetector(load_official(shared / "models" / "face_landmarker.task"))
    pieces = list(ingest_clip(row, folder / str(row.source), IngestSettings(), detector, "0" * 16))
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


def _check_images(mp4: bytes, folder: Path, original: Original, least_psnr: float) -> None:
    made = _decode(mp4, folder)
    assert len(made) == 10 * FPS
    small = [cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA) for image in original.images]
    off, quality = [], []
    for k, image in enumerate(made):
        shown = int(k * NTSC / FPS)  # the last frame that has begun at k / 25
        wanted = cv2.resize(original.images[shown], (512, 512), interpolation=cv2.INTER_AREA)
        quality.append(_psnr(image, wanted))
        view = cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA)
        near = {n: _psnr(view, small[n]) for n in range(max(0, shown - 2), min(len(small), shown + 3))}
        off.append(max(near, key=lambda n: near[n]) - shown)
    assert min(quality) >= least_psnr
    assert max(abs(shift) for shift in off) <= 1
    assert np.mean(np.array(off) == 0) >= 0.98  # images of a still moment may look alike


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
    _check_images(contents["mp4"], tmp_path, original, least_psnr)
    _check_sound(contents["wav"], original)
