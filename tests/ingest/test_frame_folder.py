"""Folders of images of a stranger: what headers announce, other formats, and numbers far apart."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ingest import frame_folder
from ingest.frame_folder import FrameFolder


def _image(file: Path, width: int = 8) -> None:
    file.write_bytes(cv2.imencode(".png", np.zeros((8, width, 3), np.uint8))[1].tobytes())


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that announces a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30_000, 30_000), (10_000, 10_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)])
def test_an_image_that_announces_too_much_is_not_decoded(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    decoded: list[int] = []
    real = cv2.imdecode
    monkeypatch.setattr(frame_folder.cv2, "imdecode", lambda data, mode: decoded.append(len(data)) or real(data, mode))
    _image(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(_bomb(*size))
    frames = list(FrameFolder(tmp_path, 25.0).frames())
    decoded.clear()
    with pytest.raises(ValueError, match=r"1\.png"):
        _ = frames[1].image
    assert decoded == []


def test_only_formats_that_are_meant_are_decoded(tmp_path: Path):
    for kind in ("TIFF", "GIF", "PPM", "JPEG2000", "SGI"):
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, format=kind)
        (tmp_path / "0.png").write_bytes(stream.getvalue())
        with pytest.raises(ValueError, match=r"0\.png is not an image that can be read"):
            FrameFolder(tmp_path, 25.0)
    for number, kind in enumerate(("PNG", "JPEG", "WEBP", "BMP")):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png", format=kind)
    assert [frame.image.shape for frame in FrameFolder(tmp_path, 25.0).frames()] == [(8, 8, 3)] * 4


@pytest.mark.parametrize("last", ["180001", "9" * 200])
def test_numbers_that_would_make_days_are_refused(tmp_path: Path, last: str):
    _image(tmp_path / "0.png")
    _image(tmp_path / f"{last}.png")
    with pytest.raises(ValueError, match="more than 7200 s at 25 fps"):
        FrameFolder(tmp_path, 25.0)


def test_a_folder_with_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frame_folder, "FOLDER_FILES", 3)
    for number in range(4):
        _image(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match="more than 3 files"):
        FrameFolder(tmp_path, 25.0)


def test_digits_of_other_scripts_are_no_numbers(tmp_path: Path):
    _image(tmp_path / "٣.png")
    with pytest.raises(ValueError, match="no numbered images"):
        FrameFolder(tmp_path, 25.0)
