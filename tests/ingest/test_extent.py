"""Extents of sources: from honest headers, from packets where a header lies or is missing; crashes and hangs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import av
import numpy as np
import pytest

from ingest import extent
from ingest.extent import UNKNOWN, Extent, ExtentReader, measure
from tests.support.media_files import flat, write_video


def noise(count: int) -> list[np.ndarray]:
    """Pictures that need bytes, as those of a camera do."""
    return [np.random.default_rng(number).integers(0, 255, (32, 48, 3), np.uint8) for number in range(count)]


def test_an_honest_header_is_believed(tmp_path: Path) -> None:
    found = measure(write_video(tmp_path / "clip.mp4", [flat(256, 192, level) for level in range(50)]))
    assert found == Extent(seconds=2.0, frames=50, width=256, height=192)
    assert found.fps == 25.0


@pytest.mark.parametrize("name", ["clip.h264", "clip.ts"])
def test_without_a_header_packets_are_counted(name: str, tmp_path: Path) -> None:
    found = measure(write_video(tmp_path / name, noise(75)))
    assert (found.frames, found.width, found.height) == (75, 48, 32)
    assert found.seconds == pytest.approx(3.0, abs=0.1)


def test_joined_streams_are_as_long_as_both(tmp_path: Path) -> None:
    """FFmpeg takes the last time stamp for the length, and here the clock begins anew."""
    one = write_video(tmp_path / "one.ts", [flat(256, 192, level) for level in range(50)]).read_bytes()
    (tmp_path / "joined.ts").write_bytes(one * 5)
    with av.open(str(tmp_path / "joined.ts")) as container:
        assert container.duration is not None and container.duration < 3 * av.time_base
    found = measure(tmp_path / "joined.ts")
    assert found.frames == 250 and found.seconds == pytest.approx(10.0, abs=0.5)


def test_a_damaged_stamp_does_not_make_hours(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.mkv", noise(50), ticks=[*range(49), 25 * 3600 * 100])
    with av.open(str(path)) as container:
        assert container.duration == pytest.approx(360_000 * av.time_base, rel=0.01)
    found = measure(path)
    assert found.frames == 50 and 1.9 <= found.seconds <= 3.1


def test_a_header_that_is_far_too_short_is_not_believed(tmp_path: Path) -> None:
    """A few bytes say a tenth of a second for eight of them."""
    path = write_video(tmp_path / "clip.mkv", noise(200))
    data = bytearray(path.read_bytes())
    place = data.index(b"\x44\x89\x88") + 3  # Matroska's duration: a float of 8 bytes, in milliseconds
    assert np.frombuffer(bytes(data[place : place + 8]), ">f8")[0] == pytest.approx(8000.0)
    data[place : place + 8] = np.array([100.0], ">f8").tobytes()
    path.write_bytes(bytes(data))
    found = measure(path)
    assert found.frames == 200 and found.seconds == pytest.approx(8.0, abs=0.1)


def test_a_folder_of_images(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(30):
        Image.new("RGB", (64, 40)).save(tmp_path / f"{number:04d}.png")
    assert measure(tmp_path) == Extent(frames=30, width=64, height=40)


def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder").mkdir()
    good = write_video(tmp_path / "name with \n line.mp4", [flat(64, 64, 9)] * 25)
    with ExtentReader() as reader:
        for name in ("text.mp4", "empty.mp4", "pipe.mp4", "folder", "missing.mp4", "undecodable\udcff.mp4"):
            assert reader.read(tmp_path / name, 0) == UNKNOWN
        assert reader.read(good, 0).frames == 25


def child_of(reader: ExtentReader) -> int:
    assert reader._child is not None
    return reader._child.pid


def test_a_crash_and_a_hang_cost_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write_video(tmp_path / "good.mp4", [flat(64, 64, 9)] * 25)
    with ExtentReader() as reader:
        assert reader.read(good, 0).frames == 25
        first = child_of(reader)
        # It crashes on a file: here it is stopped while it has one, and then killed.
        os.kill(first, signal.SIGKILL)
        reader.read(good, 0)  # it may still look alive
        assert reader.read(good, 0).frames == 25
        second = child_of(reader)
        assert second != first
        # It hangs.
        os.kill(second, signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(extent, "_HEADER_S", 0.1)
            assert reader.read(good, 0) == UNKNOWN
        assert reader.read(good, 0).frames == 25
        last = child_of(reader)
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)
