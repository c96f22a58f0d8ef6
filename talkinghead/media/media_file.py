"""Opens media files with FFmpeg's demuxers and describes them: the best video and audio stream, size, rotation, times.

Whatever is wrong with a file becomes one clear line. Only demuxers of self-contained audio and video files are allowed:
a playlist, a concat script, a subtitle or a text file (FFmpeg would "play" it as terminal art) that carries a video's
name is refused instead of followed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import av
import av.container
from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from talkinghead.files.foreign import open_regular
from talkinghead.media.deinterlace import FieldOrder, field_order
from talkinghead.media.display import Orientation, orientation_of
from talkinghead.media.errors import UnreadableMediaError
from talkinghead.media.limits import DECODER_OPTIONS, FRAME_PIXELS, check_frame_size
from talkinghead.media.pixels import MATRICES_NOT_READ
from talkinghead.media.tone_mapping import TRANSFERS

FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,ivf,obu,h264,hevc,m4v,yuv4mpegpipe,gif,rm,dv,"
    "wav,w64,flac,mp3,aac,ac3,eac3,aiff,au,caf,amr,ape,tta,wv"
)
"""Demuxers that may open a file (names of libavformat)."""

MediaFile = Path | BinaryIO
"""A path, or a seekable binary stream that holds the whole file."""


@contextmanager
def open_media(file: MediaFile, kind: str = "video") -> Iterator[av.container.InputContainer]:
    """Open a media file for reading.

    Args:
        file: Path or seekable stream.
        kind: Kind of file that was asked for, `video` or `audio`; only used in messages.

    Raises:
        ValueError: The file is a folder, empty, unreadable, truncated, or in no format that FFmpeg knows. The message
            names the file.
    """
    container = _open(file, kind)
    try:
        yield container
    finally:
        container.close()


def name_of(file: MediaFile) -> str:
    """The file's name for messages."""
    return str(file) if isinstance(file, Path) else str(getattr(file, "name", "stream"))


def start_of(container: av.container.InputContainer) -> float:
    """Presentation time of the earliest audio or video, in seconds: what players show as 0:00."""
    return 0.0 if container.start_time is None else container.start_time / av.time_base


def _open(file: MediaFile, kind: str) -> av.container.InputContainer:
    """The file, opened; every way in which that fails becomes one line that names the file."""
    try:
        if not isinstance(file, Path):
            return _open_safely(file)
        if file.is_dir():
            raise UnreadableMediaError("folder", f"{file} is a folder, not {_with_article(kind)} file")
        open_regular(file).close()  # no pipe, which might never open; and clearer errors than FFmpeg's
        if file.stat().st_size == 0:
            raise UnreadableMediaError("empty_file", f"{file} is empty (0 bytes)")
        # With `file:` and an absolute path, no name can be taken for an option, a protocol or a pattern.
        return _open_safely(f"file:{file.absolute()}")
    except MemoryError as error:  # one of FFmpeg's too: tables as long as a header says
        raise MemoryError(f"{name_of(file)} takes more memory to open than there is") from error
    except FFmpegError as error:
        cause = "its index is missing or damaged, or it is another kind of file"
        message = f"{name_of(file)} is not {_with_article(kind)} that can be opened: {cause} ({error.strerror})"
        raise UnreadableMediaError("not_media", message) from error
    except FileNotFoundError as error:
        raise UnreadableMediaError("not_found", f"{name_of(file)} is not there") from error
    except PermissionError as error:
        raise UnreadableMediaError("no_permission", f"{name_of(file)} may not be read by this user") from error
    except OSError as error:
        raise ValueError(f"{name_of(file)} cannot be read: {error.strerror or error}") from error


def _open_safely(file: str | BinaryIO) -> av.container.InputContainer:
    """The only place where a container is opened for reading: self-contained formats, and nothing but this file."""
    return av.open(
        file,
        "r",
        # Without the protocol list, a file could make FFmpeg open addresses on the network.
        container_options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
        options=DECODER_OPTIONS,  # for the frames that opening decodes
        metadata_errors="replace",
    )


def as_stream(data: bytes | BinaryIO) -> BinaryIO:
    """A binary stream over bytes; a stream passes through."""
    return io.BytesIO(data) if isinstance(data, bytes) else data


def _with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """The chosen video stream. Times are seconds on the file's presentation timeline, which starts at 0."""

    index: int
    """Stream number in the file."""
    codec: str
    """FFmpeg's name of the codec, such as `h264`."""
    pixel_format: str
    """FFmpeg's name of the decoded frames' format, such as `yuv420p`."""
    coded_width: int
    """Width of the decoded frame, pixels: before sample aspect ratio and rotation."""
    coded_height: int
    """Height of the decoded frame, pixels."""
    width: int
    """Width of the upright frame with square pixels: after sample aspect ratio, then rotation."""
    height: int
    """Height of the upright frame with square pixels."""
    rotation: int
    """Degrees clockwise that make the frame upright: 0, 90, 180 or 270; before `mirrored`."""
    sample_aspect_ratio: Fraction
    """Width of a coded pixel over its height; 1 where the file does not say."""
    fps: float | None
    """Average frame rate that the container announces; never used for timing."""
    start_s: float
    """Announced time of the first frame."""
    end_s: float | None
    """Announced end; None when the container does not say."""
    tick_s: float
    """Resolution of the time stamps."""
    mirrored: bool = False
    """Whether left and right are exchanged after the rotation to make the frame upright."""
    hdr: str | None = None
    """`PQ` or `HLG` for high dynamic range, which is mapped to BT.709 when pixels are converted."""
    field_order: FieldOrder | None = None
    """Field order of interlaced video, as its first frames show it; None for progressive video."""

    @property
    def interlaced(self) -> bool:
        """Whether frames are woven from two moments and have to be deinterlaced."""
        return self.field_order is not None

    @property
    def orientation(self) -> Orientation:
        """What makes a decoded frame upright."""
        return Orientation(self.rotation, self.mirrored)


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    """The chosen audio stream. Times are seconds on the file's presentation timeline, which starts at 0."""

    index: int
    """Stream number in the file."""
    codec: str
    """FFmpeg's name of the codec, such as `aac`."""
    rate: int
    """Sampling rate, Hz."""
    channels: int
    start_s: float
    """Announced time of the first sample."""
    end_s: float | None
    """Announced end; None when the container does not say."""


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """Description of a video file."""

    container: str
    """Demuxer, e.g. `mov` or `matroska`."""
    duration_s: float | None
    """Announced duration, seconds; None when the container does not say."""
    video: VideoInfo
    audio: AudioInfo | None
    """None when there is no audio stream that can be decoded."""


def probe(file: MediaFile) -> MediaInfo:
    """Description of a video file, from its headers and its first frame.

    Among several streams the best one counts, in FFmpeg's ranking (disposition, then resolution or channels, then bit
    rate); cover images do not count as video.

    Raises:
        ValueError: The file cannot be opened, or has no video stream, or no frame of it can be decoded.
    """
    with open_media(file) as container:
        stream = video_stream(container, name_of(file))
        frame = first_frame(container, stream)
        if frame is None:
            raise no_frame_error(name_of(file), stream)
        audio = audio_stream(container)
        return MediaInfo(
            container=container.format.name.split(",")[0],
            duration_s=None if container.duration is None else container.duration / av.time_base,
            video=describe_video(container, stream, frame, name_of(file)),
            audio=None if audio is None else describe_audio(container, audio),
        )


def video_stream(container: av.container.InputContainer, name: str) -> VideoStream:
    """The best video stream, set to decode on one thread.

    Raises:
        ValueError: There is none, no decoder for it, or its frames are too large.
    """
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        sound = "sound, but " if container.streams.best("audio") else ""
        raise UnreadableMediaError("no_video", f"{name} has {sound}no video stream")
    video = cast(VideoStream, stream)
    if video.codec_context is None:
        raise UnreadableMediaError("undecodable", f"{name}: there is no decoder for its video stream")
    check_frame_size(name, video.codec_context.width, video.codec_context.height)
    video.codec_context.options = DECODER_OPTIONS
    video.codec_context.thread_count = 1  # FFmpeg would take every core for itself
    return video


def audio_stream(container: av.container.InputContainer) -> AudioStream | None:
    """The best audio stream that can be decoded, or None."""
    stream = cast(AudioStream | None, container.streams.best("audio"))
    if stream is None or stream.codec_context is None:
        return None
    stream.codec_context.options = DECODER_OPTIONS
    stream.codec_context.thread_count = 1
    return stream


def packets_of(container: av.container.InputContainer, *streams: Stream) -> Iterator[Packet]:
    """All packets of some streams from where the container is, then an empty one for each.

    Raises:
        FFmpegError: The file ends in the middle.
    """
    packets = container.demux(list(streams))
    while True:
        try:
            packet = next(packets, None)
        except IndexError:
            # PyAV 18.1 stumbles at the end of a file in which further streams have appeared: all packets were there.
            return
        if packet is None:
            return
        yield packet


def first_frame(container: av.container.InputContainer, stream: VideoStream) -> VideoFrame | None:
    """The first frame that can be decoded, or None; the container is left at the packet after it."""
    return next(_frames(container, stream), None)


def _frames(container: av.container.InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Frames from where the container is, as many as can be decoded."""
    try:
        for packet in packets_of(container, stream):
            try:
                yield from cast(list[VideoFrame], packet.decode())
            except FFmpegError:
                continue  # a broken packet: a later one may decode
    except FFmpegError:
        return


def no_frame_error(name: str, stream: VideoStream) -> UnreadableMediaError:
    """The error for a video stream of which no frame can be decoded."""
    # A decoder forgets the size of frames that are larger than it may decode.
    unknown = not stream.codec_context.width
    hint = f"; it is damaged, or the frames have more than {FRAME_PIXELS / 1e6:.0f} million pixels" if unknown else ""
    return UnreadableMediaError(
        "undecodable", f"{name}: no frame of its {stream.codec_context.name} video can be decoded{hint}"
    )


def describe_video(
    container: av.container.InputContainer, stream: VideoStream, frame: VideoFrame, name: str
) -> VideoInfo:
    """Description of a video stream.

    Args:
        container: The file.
        stream: The video stream.
        frame: Its first frame, just decoded: the display matrix is known from a frame only. To see whether the video
            is interlaced, a few more are decoded after it.
        name: Name of the file, for the message.

    Raises:
        ValueError: Made upright and with square pixels, its frames are too large; or their colours cannot be read.
    """
    # Square pixels: the frame grows along the longer side of its pixels, so no detail is lost.
    aspect = Fraction(stream.sample_aspect_ratio or 0)
    if not Fraction(1, 8) <= aspect <= 8:  # 0 and nonsense mean: unknown
        aspect = Fraction(1)
    width, height = frame.width, frame.height
    if aspect > 1:
        width = round(width * aspect)
    else:
        height = round(height / aspect)
    # Then upright.
    orientation = orientation_of(frame)
    if orientation.swaps_sides:
        width, height = height, width
    check_frame_size(name, width, height)
    if matrix := MATRICES_NOT_READ.get(frame.colorspace):
        raise UnreadableMediaError(
            "undecodable", f"{name}: its colours are stored as {matrix}, which is not read: convert it to BT.709 first"
        )
    # Times on the timeline of the file; a negative start is before what players show.
    tick = stream.time_base or Fraction(1, 1000)
    origin = start_of(container)
    begin = _seconds(stream.start_time, tick, origin)
    begin = max(0.0, begin if begin is not None else 0.0)
    return VideoInfo(
        index=stream.index,
        codec=stream.codec_context.name,
        pixel_format=frame.format.name,
        coded_width=frame.width,
        coded_height=frame.height,
        width=width,
        height=height,
        rotation=orientation.degrees,
        mirrored=orientation.mirrored,
        sample_aspect_ratio=aspect,
        fps=float(stream.average_rate) if stream.average_rate else None,
        start_s=begin,
        end_s=None if stream.duration is None else begin + float(stream.duration * tick),
        tick_s=float(tick),
        hdr=TRANSFERS.get(frame.color_trc),
        field_order=field_order(chain([frame], _frames(container, stream)), frame.interlaced_frame),
    )


def describe_audio(container: av.container.InputContainer, stream: AudioStream) -> AudioInfo:
    """Description of an audio stream, from its header."""
    tick = stream.time_base or Fraction(1, stream.rate)
    begin = _seconds(stream.start_time, tick, start_of(container)) or 0.0
    return AudioInfo(
        index=stream.index,
        codec=stream.codec_context.name,
        rate=stream.rate,
        channels=stream.channels,
        start_s=begin,
        end_s=None if stream.duration is None else begin + float(stream.duration * tick),
    )


def _seconds(ticks: int | None, tick: Fraction, origin: float) -> float | None:
    """A stream's time stamp as seconds on the file's timeline, which starts at `origin`."""
    return None if ticks is None else float(ticks * tick) - origin
