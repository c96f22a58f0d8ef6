"""What a sample's members must hold, and whether they agree with each other."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import numpy as np

from shards.layout import NPY_HEAD, WAV_HEADER, check_wav_header, npy_layout
from talkinghead.annotation import ANNOTATION_MEMBERS, COLUMN, COLUMNS, check_arrays, decode_column
from talkinghead.schema import MEDIA_MEMBERS, ClipInfo, SampleIndex
from talkinghead.timebase import FPS, samples_in


def check_media(row: SampleIndex, contents: Mapping[str, bytes]) -> ClipInfo:
    """Check the members of a media sample, except the frames themselves, against its row of the index.

    Raises:
        ValueError: A member is missing, unknown or unreadable, or states another key or length.
    """
    if tuple(contents) != MEDIA_MEMBERS:
        raise ValueError(f"has the members {', '.join(contents)}, expected {', '.join(MEDIA_MEMBERS)}")
    try:
        info = ClipInfo.from_json(contents["json"])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"json is no clip info: {error}") from error
    for name in ("key", "clip_key", "dataset", "person", "split_group", "licence"):
        if getattr(info, name) != getattr(row, name):
            raise ValueError(f"json says {name} {getattr(info, name)!r}, index {getattr(row, name)!r}")
    num_frames = row.num_frames
    if info.num_frames != num_frames or len(info.source_pts) != num_frames:
        raise ValueError(f"json says {info.num_frames} frames ({len(info.source_pts)} times), index {num_frames}")
    check_wav_header(contents["wav"][:WAV_HEADER], num_frames)
    if len(contents["wav"]) != WAV_HEADER + 2 * samples_in(num_frames):
        raise ValueError(f"wav has {len(contents['wav'])} bytes, {num_frames} frames need another number")
    return info


def check_frames(data: bytes, info: ClipInfo) -> None:
    """Decode all frames of an `mp4` member.

    Raises:
        ValueError: It cannot be decoded, or is not H.264 yuv420p at constant 25 fps of the stated size and length,
            without audio.
    """
    from av.error import FFmpegError

    try:
        _decode(data, info)
    except (FFmpegError, ValueError) as error:
        raise ValueError(f"mp4: {error}") from error


def _decode(data: bytes, info: ClipInfo) -> None:
    from talkinghead.media.container import open_media

    with open_media(io.BytesIO(data)) as container:
        if len(container.streams) != 1 or not container.streams.video:
            raise ValueError(f"has {len(container.streams)} streams, expected one video stream")
        stream = container.streams.video[0]
        if stream.codec_context.name != "h264" or stream.codec_context.pix_fmt != "yuv420p":
            raise ValueError(f"is {stream.codec_context.name} {stream.codec_context.pix_fmt}, not h264 yuv420p")
        if (stream.width, stream.height) != (info.width, info.height):
            raise ValueError(f"is {stream.width}x{stream.height}, json says {info.width}x{info.height}")
        count = 0
        for frame in container.decode(stream):
            if frame.time is None or abs(frame.time - count / FPS) > 1e-3:
                raise ValueError(f"shows frame {count} at {frame.time} s, not at {count / FPS} s")
            count += 1
    if count != info.num_frames:
        raise ValueError(f"has {count} frames, json says {info.num_frames}")


def check_annotation(contents: Mapping[str, bytes], num_frames: int) -> None:
    """Check the members of an annotation sample against each other.

    A version with `valid` is a face annotation and must be complete; another set of columns (latents, …) only needs
    rows for all frames.

    Raises:
        ValueError: A member is missing or unreadable, has another length, or is not NaN exactly where `valid` is 0.
    """
    if "valid.npy" in contents and (missing := set(ANNOTATION_MEMBERS) - contents.keys()):
        raise ValueError(f"lacks {', '.join(sorted(missing))}")
    arrays: dict[str, np.ndarray] = {}
    for suffix, data in contents.items():
        if suffix.endswith(".json"):
            json.loads(data)
            continue
        name = suffix.removesuffix(".npy")
        layout = npy_layout(data[:NPY_HEAD])
        if layout.size != len(data) or layout.shape[0] != num_frames:
            raise ValueError(f"{suffix} is {layout.shape} in {len(data)} bytes, the clip has {num_frames} frames")
        if name in COLUMN:
            arrays[name] = decode_column(COLUMN[name], data)
    if len(arrays) == len(COLUMNS):
        check_arrays(arrays)
