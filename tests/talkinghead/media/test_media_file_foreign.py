"""Files of strangers lead nowhere: no address is asked for, no other file is opened, and opening never waits."""

from __future__ import annotations

import ast
import os
import socket
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from talkinghead.media.audio import read_audio, read_sound, read_whole_audio
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.frame_clock import constant_rate
from talkinghead.media.limits import FRAME_PIXELS
from talkinghead.media.media_file import open_media, probe
from talkinghead.media.video_source import VideoSource
from tests.support.damaged_clock import numbered_video
from tests.support.hostile_media import elsewhere, references
from tests.support.limited_call import call_limited
from tests.support.media_files import flat, write_video
from tests.support.paths import ROOT


class Listener:
    """Address that counts who connects."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self.asked = 0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.asked += 1
            connection.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


KINDS = sorted(references("http://127.0.0.1:1/", Path("a.mp4")))


@pytest.mark.parametrize("suffix", ["mp4", "wav"])
@pytest.mark.parametrize("kind", KINDS)
def test_playlists_and_descriptions_are_not_followed(
    listener: Listener, tmp_path: Path, kind: str, suffix: str
) -> None:
    other = write_video(tmp_path / "other.mp4", [flat(64, 48, 90)] * 3)
    file = tmp_path / f"file.{suffix}"
    file.write_bytes(references(listener.url, other)[kind])
    for read in (probe, read_whole_audio, lambda path: read_audio(path, 0.0, 640), VideoSource):
        with pytest.raises(ValueError, match=r"is not an? (video|audio) that can be opened") as caught:
            read(file)
        assert "\n" not in str(caught.value)
    with file.open("rb") as stream, pytest.raises(ValueError, match="is not a video"):
        probe(stream)
    assert listener.asked == 0


def test_samples_in_another_file_are_not_fetched(tmp_path: Path) -> None:
    """A QuickTime file may say that its samples lie in another one, here one that looks the same."""
    other = elsewhere(tmp_path / "other.mov", "/nowhere")
    file = elsewhere(tmp_path / "file.mov", str(other))
    with pytest.raises(ValueError, match="no frame of its mpeg4 video can be decoded"):
        probe(file)


def test_a_named_pipe_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    for read in (probe, read_whole_audio):
        with pytest.raises(ValueError, match="is a named pipe"):
            read(pipe)


@pytest.mark.parametrize(
    ("suffix", "codec", "message"),
    [
        ("mp4", "libx264", "is too large: 16384x2176 pixels"),
        ("mkv", "ffv1", "or the frames have more than 35 million"),
    ],
)
def test_frames_that_are_too_large_are_refused_by_the_header(
    tmp_path: Path, suffix: str, codec: str, message: str
) -> None:
    """Frames are not decoded: one alone would take 50 to 100 MB, and a decoder holds many."""
    assert FRAME_PIXELS < 16384 * 2176
    large = write_video(tmp_path / f"large.{suffix}", [flat(16384, 2176, 0)], codec=codec)
    called = call_limited(
        "from pathlib import Path\nfrom talkinghead.media.media_file import probe\n"
        "def call(path): return probe(Path(path))",
        large,
    )
    assert str(large) in called.said and message in called.said
    assert called.memory < 40e6


def test_pixels_that_are_no_squares_count_as_they_are_shown(tmp_path: Path) -> None:
    wide = write_video(tmp_path / "wide.mp4", [flat(4096, 2304, 90)], aspect=Fraction(8))
    for read in (probe, VideoSource):
        with pytest.raises(ValueError, match=r"is too large: 32768x2304 pixels"):
            read(wide)


def test_metadata_in_any_bytes_is_no_error(tmp_path: Path) -> None:
    file = write_video(tmp_path / "a.mkv", [flat(64, 48, 90)] * 3)
    data = file.read_bytes()
    assert data.count(b"Lavf") > 0
    file.write_bytes(data.replace(b"Lavf", b"\xff\xfe\xfd\xfc"))
    with open_media(file) as container:
        assert container.streams.video
    assert probe(file).video.width == 64


READERS = {
    "talkinghead/media/media_file.py": 1,
    "annotate/mean_face.py": 2,  # a tool that makes a file of the library from clips of one's own
}
"""Places that open a container for reading, and how many times: each has to pass the lists of formats and protocols."""


def test_containers_are_opened_for_reading_in_one_place() -> None:
    found: dict[str, int] = {}
    for folder in ("talkinghead", "ingest", "annotate", "shards", "infer", "train", "orchestration"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("av.open", "av.container.open"):
                    mode = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else "r"
                    if mode != "w":
                        name = path.relative_to(ROOT).as_posix()
                        found[name] = found.get(name, 0) + 1
    assert found == READERS, "open media with talkinghead.media.media_file.open_media"


@pytest.mark.parametrize("suffix", ["ts", "flv", "mkv"])
def test_random_damage_is_told_in_a_line_or_read_over(tmp_path: Path, suffix: str) -> None:
    """Damaged headers make streams appear in the middle of a file, at whose end PyAV then stumbles."""
    whole = numbered_video(tmp_path / f"whole.{suffix}", 60, sound=True).read_bytes()
    file, read = tmp_path / f"damaged.{suffix}", 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        for place in rng.integers(200, len(data), (3, 30, 300)[seed % 3]):
            data[place] = rng.integers(0, 256)
        file.write_bytes(data)
        try:
            with VideoSource(file) as source:
                frames = list(source.frames())
                shown = list(constant_rate(iter(frames), source.info.start_s, None, source.info.tick_s))
            assert len(shown) <= 25 * len(frames)
            read_sound(file)
            read += 1
        except UnreadableMediaError as error:
            assert str(file) in str(error) and "\n" not in str(error)
    assert read >= 4
