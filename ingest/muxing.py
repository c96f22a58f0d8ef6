"""Video and sound that a site keeps apart, put into one file; packets are copied, not encoded again."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream

from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.media_file import open_media, packets_of

# Suffixes of containers whose time stamps MP4 keeps exactly.
_MP4_FAMILY = (".mp4", ".m4v", ".m4a", ".mov")


def muxed_suffix(video: Path, audio: Path) -> str:
    """Suffix for a muxed file: `.mp4` when both come out of MP4, which keeps their exact times; otherwise `.mkv`, which
    holds any codec."""
    return ".mp4" if all(path.suffix.lower() in _MP4_FAMILY for path in (video, audio)) else ".mkv"


def mux(video: Path, audio: Path, target: Path) -> None:
    """Write the first video stream of one file and the first audio stream of another into `target`.

    Packets are copied, not encoded again.

    Raises:
        ValueError: A stream is missing, or the container cannot hold it.
    """
    # A stranger's files, so they are opened as media only: no playlist that leads to other files or addresses.
    with contextlib.ExitStack() as stack:
        try:
            first, second = (stack.enter_context(open_media(file)) for file in (video, audio))
            output = stack.enter_context(av.open(f"file:{target.absolute()}", "w"))
            if not first.streams.video or not second.streams.audio:
                raise ValueError(f"{video.name} has no video or {audio.name} no audio stream")
            # Both files are read at once and their packets merged by time, as a player needs them interleaved.
            inputs = [(first, first.streams.video[0]), (second, second.streams.audio[0])]
            outputs = [output.add_stream_from_template(template=stream) for _, stream in inputs]
            packets = [_packets(container, stream, i) for i, (container, stream) in enumerate(inputs)]
            for _, index, packet in heapq.merge(*packets, key=lambda item: item[0]):
                packet.stream = outputs[index]
                output.mux(packet)
        except (FFmpegError, UnreadableMediaError) as error:
            raise ValueError(f"{video.name} and {audio.name} cannot be put into one file: {error}") from error


def _packets(container: InputContainer, stream: Stream, index: int) -> Iterator[tuple[float, int, Packet]]:
    """Decoding time in seconds, `index` and packet for each packet of a stream, in the order of the file."""
    time = 0.0
    for packet in packets_of(container, stream):
        if packet.size == 0:  # the end of the stream
            continue
        if packet.dts is not None and packet.time_base is not None:
            time = float(packet.dts * packet.time_base)
        yield time, index, packet


def check_video(path: Path) -> None:
    """Raise `ValueError` unless the file opens and has a video stream."""
    try:
        with open_media(path) as container:
            if not container.streams.video:
                raise ValueError("what was downloaded has no video stream")
    except UnreadableMediaError as error:
        raise ValueError(f"what was downloaded is not a video: {error}") from error
