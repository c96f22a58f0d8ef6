"""Length and frame size of a source, without decoding it: what its unit's time limit and progress are worked out from.

A header is believed where its length fits the size of the file. Where it does not, and in formats that have none (a
transport stream's length is guessed from its last time stamp), the packets are counted instead, none of them for more
than a second: so a few damaged bytes can neither ask for weeks nor let a long video be stopped early. A source that
tells nothing has the extent 0.

FFmpeg reads the files, which may be a stranger's, in a process of its own: what crashes it, hangs, or takes all memory
costs that file its extent and nothing else. Nothing here enters a provenance key.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import selectors
import subprocess
import sys
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from talkinghead.runtime.child_process import end_with

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_ROOT = Path(__file__).parents[1]
_NO_HEADER = {"mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc", "obu", "dv"}  # FFmpeg guesses the length of these
_LEAST_RATE = 1000.0  # bytes of a file in a second of talking, images and sound: fewer than any encoder makes
_MOST_PIXEL_BYTES = 0.1  # bytes for a pixel: 5 MB/s at 1080p and 25 fps, five times what cameras and sites make
_MOST_PACKET_S = 1.0  # seconds that a packet counts for, as on the mended clock (talkinghead/media/timeline.py)
_PACKET_S = 0.04  # seconds of a packet without a stamp
_HEADER_S = 60.0  # wall time that a file's headers may take, seconds
_READ_RATE = 10e6  # bytes in a second that counting packets goes through at the least
_CHILD_BYTES = 2 << 30  # memory of the process


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Length and frame size of a source, as far as they are known; 0 where they are not."""

    seconds: float = 0.0
    """Length; 0 for a folder of images, whose frame rate the metadata tells."""
    frames: int = 0
    """Pictures in it."""
    width: int = 0
    """Width of a frame in pixels, before it is made upright."""
    height: int = 0
    """Height of a frame in pixels."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) and value >= 0 for value in astuple(self)):
            raise ValueError(f"no extent: {astuple(self)}")

    @property
    def fps(self) -> float:
        """Pictures in a second on average; 0 where it is not known."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0


UNKNOWN = Extent()
"""Extent of a source that tells nothing."""


def measure(path: Path) -> Extent:
    """Extent of a video file, or of a folder of images, read in this process.

    Raises:
        ValueError: It cannot be read as one.
    """
    if path.is_dir():
        return _measure_folder(path)
    # Here only: planning a job imports this module, and PyAV is for those who open media.
    import av

    from talkinghead.media.media_file import open_media, video_stream

    with open_media(path) as container:
        stream = video_stream(container, path.name)
        width, height = stream.codec_context.width, stream.codec_context.height
        # The header: the longest of what it says, in the container or for the frames.
        announced = 0.0 if container.duration is None else container.duration / av.time_base
        if stream.duration is not None and stream.time_base is not None:
            announced = max(announced, float(stream.duration * stream.time_base))
        frames = max(stream.frames, round(announced * float(stream.average_rate or 0)))
        guessed = not _NO_HEADER.isdisjoint(container.format.name.split(","))
        if guessed or not _is_plausible(path.stat().st_size, announced, frames, width * height):
            announced, frames = _count_packets(container, stream)
    return Extent(seconds=round(announced, 3), frames=frames, width=width, height=height)


def _is_plausible(size: int, seconds: float, frames: int, pixels: int) -> bool:
    """Whether a file of so many bytes can be so long, neither far shorter nor far longer."""
    return frames > 0 and seconds > 0 and _LEAST_RATE * seconds <= size <= _MOST_PIXEL_BYTES * pixels * frames


def _count_packets(container: InputContainer, stream: VideoStream) -> tuple[float, int]:
    """Length in seconds and number of frames, from the packets and the steps between their stamps."""
    from av.error import FFmpegError

    from talkinghead.media.media_file import packets_of

    seconds, frames, last = 0.0, 0, None
    with contextlib.suppress(FFmpegError):  # as far as it can be read
        for packet in packets_of(container, stream):
            if not packet.size:
                continue
            frames += 1
            step = _PACKET_S if last is None or packet.dts is None else float((packet.dts - last) * packet.time_base)
            seconds += min(max(step, 0.0), _MOST_PACKET_S)
            last = packet.dts if packet.dts is not None else last
    return seconds, frames


def _measure_folder(folder: Path) -> Extent:
    from talkinghead.media.image_file import open_image

    files = sorted(file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())
    for file in files:
        with contextlib.suppress(ValueError, OSError), open_image(file) as image:
            return Extent(frames=len(files), width=image.width, height=image.height)
    return UNKNOWN


class ExtentReader:
    """Reads extents one after the other in a child process, which starts with the first file. A context manager."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ExtentReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def read(self, path: Path, size: int) -> Extent:
        """Extent of a source; `UNKNOWN` when it cannot be read, or reading it crashes or hangs.

        Args:
            path: File or folder of images.
            size: Its size in bytes, which bounds the time.
        """
        child = self._child if self._child is not None and self._child.poll() is None else self._start()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(str(path)).encode() + b"\n")
            child.stdin.flush()
            answer = _line(child.stdout.fileno(), _HEADER_S + size / _READ_RATE)
        except OSError:  # it ended
            answer = None
        if answer is None:
            self._stop()
            return UNKNOWN
        seconds, frames, width, height = json.loads(answer)
        return Extent(seconds=seconds, frames=frames, width=width, height=height)

    def _start(self) -> subprocess.Popen[bytes]:
        self._stop()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "ingest.extent", str(os.getpid())],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return self._child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()


def _line(descriptor: int, seconds: float) -> bytes | None:
    """The next line from a pipe; None when it ends, or nothing more comes in time."""
    deadline, line = time.monotonic() + seconds, b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            if not (more := os.read(descriptor, 4096)):
                return None
            line += more
    return line


def main() -> None:
    """The child: a path on each line of stdin, its extent on a line of stdout."""
    end_with(int(sys.argv[1]))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_CHILD_BYTES, hard))
    # Libraries print to stdout too: the answers go to a private copy of it.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            extent = measure(Path(json.loads(line)))
        except (ValueError, OSError, MemoryError):
            extent = UNKNOWN
        print(json.dumps(astuple(extent)), file=answers, flush=True)


if __name__ == "__main__":
    main()
