"""decord: the same frames as PyAV, pixel by pixel what swscale makes of them; damage, threads, memory, fork, FFmpeg."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration import ROOT
from talkinghead.media import clip as pyav_clip
from talkinghead.media.decord_frames import decode_clip, decode_window
from talkinghead.media.encode import encode_mp4
from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.media.errors import UnreadableMediaError
from tests.support.damaged_packets import moving_scene
from tests.support.media_files import write_video

FRAMES = 83


@pytest.fixture(scope="module")
def clip() -> bytes:
    return encode_mp4(moving_scene(FRAMES, 128, 64), 128, 64, EncoderSettings())


@pytest.fixture(scope="module")
def decoded(clip: bytes) -> np.ndarray:
    return np.stack(list(decode_clip(clip)))


def plain_swscale(clip: bytes) -> np.ndarray:
    """All frames as PyAV converts them where nothing else is asked of it, `[F, H, W, 3]`."""
    with av.open(io.BytesIO(clip), "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_every_frame_is_bit_by_bit_the_one_that_pyav_decodes(clip: bytes, decoded: np.ndarray) -> None:
    assert np.array_equal(decoded, plain_swscale(clip))


def test_colours_are_within_the_stated_distance_of_the_other_engine() -> None:
    # Colours as strong as those of faces; in stronger ones chroma samples differ more.
    scene = [(77 + image * 0.4).astype(np.uint8) for image in moving_scene(30)]
    clip = encode_mp4(scene, 256, 256, EncoderSettings())
    difference = np.stack(list(decode_clip(clip))).astype(int) - np.stack(list(pyav_clip.decode_clip(clip)))
    assert -1.6 < difference.mean() < -0.8, "darker, as the docstring says"
    assert np.abs(difference).mean() < 1.6 and np.abs(difference).max() <= 32


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_window_equals_the_full_decode(clip: bytes, decoded: np.ndarray, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, FRAMES - 1))
    stride = data.draw(st.integers(1, 30))
    count = data.draw(st.integers(1, (FRAMES - 1 - first) // stride + 1))
    wanted = decoded[first : first + (count - 1) * stride + 1 : stride]
    assert np.array_equal(decode_window(io.BytesIO(clip), first, count, stride), wanted)


@pytest.mark.parametrize(("first", "count"), [(80, 4), (83, 1), (-1, 2), (0, 0), (500, 1)])
def test_window_outside_the_clip(clip: bytes, first: int, count: int) -> None:
    with pytest.raises(ValueError, match="frame"):
        decode_window(clip, first, count)


def test_a_damaged_clip_is_our_error(clip: bytes) -> None:
    # A packet without an image: the frames before it are given, and no copy of one in its place.
    with av.open(io.BytesIO(clip), "r") as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    lost, place = packets[40], clip.index(packets[40])
    filler = (len(lost) - 4).to_bytes(4, "big") + b"\x0c" + b"\xff" * (len(lost) - 6) + b"\x80"  # ITU-T H.264, 7.3.1
    damaged = clip[:place] + filler + clip[place + len(lost) :]
    got = 0
    with pytest.raises(UnreadableMediaError, match="cannot be decoded by decord: it is damaged") as told:
        for _ in decode_clip(damaged):
            got += 1
    assert got < 45 and "\n" not in str(told.value) and "/" not in str(told.value)
    with pytest.raises(UnreadableMediaError, match="cannot be decoded by decord"):
        decode_window(damaged, 38, 8)
    # A file that was cut short, and others that are no clips.
    for cut in range(len(clip) // 2, len(clip), len(clip) // 20):
        with pytest.raises(UnreadableMediaError, match=r"it is damaged|has no frames"):
            assert list(decode_clip(clip[:cut]))
    for nothing in (b"", clip[:200], clip[:40] + bytes(len(clip) - 40)):
        with pytest.raises(UnreadableMediaError, match=r"clip is not a video|cannot be opened by decord"):
            decode_window(nothing, 0, 1)


def test_nothing_but_mp4_is_opened(tmp_path: Path) -> None:
    """A playlist in the place of a clip would have FFmpeg read other files, or from the network."""
    secret = write_video(tmp_path / "secret.ts", moving_scene(30, 64, 64))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode()
    for content in (playlist, secret.read_bytes()):
        with pytest.raises(UnreadableMediaError, match="it is no MP4 file"):
            decode_window(content, 0, 1)


@pytest.mark.parametrize("width", [96, 144, 48])
def test_a_width_at_which_decord_mistakes_padding_for_channels_is_refused(width: int) -> None:
    clip = encode_mp4(moving_scene(4, width, 64), width, 64, EncoderSettings())
    for read in (lambda: decode_window(clip, 0, 2), lambda: next(decode_clip(clip))):
        with pytest.raises(UnreadableMediaError, match="width that decord reads wrongly: use pyav"):
            read()


@pytest.mark.parametrize("width", [98, 200, 320, 360])
def test_rows_with_padding_are_read_right(width: int) -> None:
    clip = encode_mp4(moving_scene(4, width, 64), width, 64, EncoderSettings())
    assert np.array_equal(decode_window(clip, 0, 4), plain_swscale(clip))


def test_a_clip_at_another_rate_is_refused(tmp_path: Path) -> None:
    other = write_video(tmp_path / "30.mp4", moving_scene(40, 64, 64), rate=30)
    with pytest.raises(UnreadableMediaError, match=r"has no frame in each 1/25 s.*decoder pyav"):
        decode_window(other.read_bytes(), 0, 1)


def _run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )


@pytest.fixture
def clip_file(clip: bytes, tmp_path: Path) -> str:
    (tmp_path / "clip.mp4").write_bytes(clip)
    return str(tmp_path / "clip.mp4")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads and memory as Linux shows them")
def test_readers_leave_no_memory_and_no_threads(clip_file: str) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from talkinghead.media.decord_frames import decode_clip, decode_window\n"
        "clip = Path(sys.argv[1]).read_bytes()\n"
        "def resident(): return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')\n"
        "def threads(): return len(os.listdir('/proc/self/task'))\n"
        "def use(count):\n"
        "    for number in range(count):\n"
        "        decode_window(clip, number % 60, 8)\n"
        "        given = decode_clip(clip); next(given); at_work = threads(); del given\n"
        "        try: decode_window(clip[: len(clip) // 2], 70, 8)\n"
        "        except ValueError: pass\n"
        "    return at_work\n"
        "before = threads(); use(100); first = resident()\n"
        "at_work = use(200)\n"
        "print(resident() - first, threads() - before, at_work - before)"
    )
    grown, left, at_work = map(int, _run(code, clip_file).stdout.split())
    assert grown < 40 << 20, "a leak of one reader's clip or images would be hundreds of MiB"
    assert left <= 1 and at_work <= 2, "one thread of decord's a reader"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_worker_decodes(clip_file: str) -> None:
    """A data loader's workers are forked from a process that has decoded already."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from talkinghead.media.decord_frames import decode_window\n"
        "clip = Path(sys.argv[1]).read_bytes()\n"
        "def decode(): return decode_window(clip, 30, 8).tobytes()\n"
        "here = decode()\n"
        "try: decode_window(clip[: len(clip) // 2], 70, 8)\n"
        "except ValueError as error: kept = error  # its traceback must not keep a reader\n"
        "process = os.fork()\n"
        "if not process:\n"
        "    kept = None\n"
        "    os._exit(0 if decode() == here else 3)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))"
    )
    assert _run(code, clip_file).stdout == "0\n"


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("ldd"), reason="only the GNU loader tells what it binds"
)
def test_pyav_and_opencv_keep_their_own_ffmpeg(clip_file: str, tmp_path: Path) -> None:
    """decord's library shows its FFmpeg to all that is loaded later: clips would be encoded by another x264."""
    code = (
        "import sys; from pathlib import Path\n"
        "from talkinghead.media.decord_frames import decode_window\n"
        "from talkinghead.media.encode import encode_mp4\n"
        "from talkinghead.media.encoder_settings import EncoderSettings\n"
        "import av.filter, cv2\n"
        "encode_mp4(decode_window(Path(sys.argv[1]).read_bytes(), 0, 3), 128, 64, EncoderSettings())"
    )
    _run(code, clip_file, LD_DEBUG="bindings", LD_DEBUG_OUTPUT=str(tmp_path / "bound"))
    lines = [line for file in tmp_path.glob("bound.*") for line in file.read_text(errors="replace").splitlines()]
    bound = [line.partition("binding file ")[2].partition(" to ") for line in lines if "binding file" in line]
    assert any("/av.libs/" in user and "/av.libs/" in used for user, _, used in bound)
    wrong = [
        (user, used)
        for user, _, used in bound
        if ("/av/" in user or "av.libs" in user or "/cv2/" in user)
        and any(f"decord2.libs/lib{name}-" in used for name in ("avcodec", "avformat", "avutil", "avfilter", "swscale"))
    ]
    assert not wrong, wrong[:3]
