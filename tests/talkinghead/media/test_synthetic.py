"""The note in a video that a model made it: read back, with the same frames, in the same bytes each time."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from talkinghead.media.synthetic import SyntheticNote
from talkinghead.media.talking_video import write_talking_video
from tests.support.media_files import flat

TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def write(path: Path, note: SyntheticNote | None) -> bytes:
    frames = [flat(64, 48, 20 * number) for number in range(8)]
    write_talking_video(path, frames, width=64, height=48, fps=25, speech=np.zeros(5120, np.float32), note=note)
    return path.read_bytes()


def read(path: Path) -> tuple[list[bytes], list[bytes], str | None]:
    """Pixels of the frames, packets of all streams, and the comment."""
    with av.open(str(path)) as container:
        images = [cast(VideoFrame, frame).to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux()]
        return images, packets, container.metadata.get("comment")


@pytest.mark.parametrize("kind", ["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"])
def test_the_note_comes_back_and_changes_no_frame(tmp_path: Path, kind: str) -> None:
    note = SyntheticNote(kind=kind)  # pyright: ignore[reportArgumentType]
    write(tmp_path / "plain.mp4", None)
    noted = write(tmp_path / "noted.mp4", note)
    assert write(tmp_path / "again.mp4", note) == noted, "the same bytes each time"
    images, packets, nothing = read(tmp_path / "plain.mp4")
    same_images, same_packets, comment = read(tmp_path / "noted.mp4")
    assert nothing is None and same_images == images and same_packets == packets
    assert comment is not None and comment.startswith("synthetic: ") and comment.endswith(TERM + kind)


def test_the_packet_is_a_box_of_its_own_at_the_end(tmp_path: Path) -> None:
    """Walked as ISO/IEC 14496-12 says; the index stays at the front."""
    data = write(tmp_path / "noted.mp4", SyntheticNote())
    names, place = [], 0
    while place < len(data):
        size, name = struct.unpack_from(">I4s", data, place)
        names.append(name)
        last, place = data[place : place + size], place + size
    assert place == len(data) and names[-1] == b"uuid" and names.index(b"moov") < names.index(b"mdat")
    assert last[8:24].hex() == "be7acfcb97a942e89c71999491e3afac", "XMP's"
    assert f"<Iptc4xmpExt:DigitalSourceType>{TERM}trainedAlgorithmicMedia</".encode() in last
    assert b"uuid" not in write(tmp_path / "plain.mp4", None)
