"""A video file and an audio file as one file, packets copied (no ffmpeg program, no re-encoding)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream

_MP4_FAMILY = (".mp4", ".m4v", ".m4a", ".mov")


def muxed_suffix(video: Path, audio: Path) -> str:
    """`.mp4` when both come out of MP4, which keeps their exact times; otherwise `.mkv`, which holds any codec."""
    return ".mp4" if all(path.suffix.lower() in _MP4_FAMILY for path in (video, audio)) else ".mkv"


def mux(video: Path, audio: Path, target: Path) -> None:
    """Write the first video stream of one file and the first audio stream of another into `target`.

    Raises `ValueError` when a stream is missing or the container cannot hold it.
    """
    try:
        with av.open(str(video)) as first, av.open(str(audio)) as second, av.open(str(target), "w") as output:
            if not first.streams.video or not second.streams.audio:
                raise ValueError(f"{video.name} has no video or {audio.name} no audio stream")
            inputs = [(first, first.streams.video[0]), (second, second.streams.audio[0])]
            outputs = [output.add_stream_from_template(template=stream) for _, stream in inputs]
            packets = [_packets(container, stream, i) for i, (container, stream) in enumerate(inputs)]
            for _, index, packet in heapq.merge(*packets, key=lambda item: item[0]):
                packet.stream = outputs[index]
                output.mux(packet)
    except FFmpegError as error:
        raise ValueError(f"{video.name} and {audio.name} cannot be put into one file: {error.strerror}") from error


def _packets(container: InputContainer, stream: Stream, index: int) -> Iterator[tuple[float, int, Packet]]:
    """Decoding time in seconds, `index` and packet, in the order of the file."""
    time = 0.0
    for packet in container.demux(stream):
        if packet.size == 0:  # the end of the stream
            continue
        if packet.dts is not None and packet.time_base is not None:
            time = float(packet.dts * packet.time_base)
        yield time, index, packet


def check_video(path: Path) -> None:
    """Raise `ValueError` unless the file opens and has a video stream."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("what was downloaded has no video stream")
    except FFmpegError as error:
        raise ValueError(f"what was downloaded is not a video: {error.strerror}") from error
