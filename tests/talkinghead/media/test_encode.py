"""Clips: same input, same bytes; key frames where they should be; windows equal to the full decode; true colours."""

from __future__ import annotations

import io
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talkinghead.media.clip import decode_clip, decode_window
from talkinghead.media.encode import encode_mp4, index_first
from talkinghead.media.encoder_settings import EncoderSettings

SETTINGS = EncoderSettings()


def _moving(count: int, width: int = 96, height: int = 64) -> list[np.ndarray]:
    """A smooth coloured image that moves, with a hard cut in the middle (which must not make a key frame)."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 4, 12, 3), dtype=np.uint8)
    wide = [cv2.resize(n, (width * 3, height), interpolation=cv2.INTER_CUBIC) for n in noise]
    return [np.roll(wide[k > count // 2], 2 * k, axis=1)[:, :width].copy() for k in range(count)]


@pytest.fixture(scope="module")
def clip() -> bytes:
    return encode_mp4(_moving(83), 96, 64, SETTINGS)


@pytest.fixture(scope="module")
def decoded(clip: bytes) -> np.ndarray:
    return np.stack(list(decode_clip(clip)))


def test_same_bytes_again(clip: bytes) -> None:
    assert encode_mp4(iter(_moving(83)), 96, 64, SETTINGS) == clip


def test_stream_is_what_the_contract_says(clip: bytes) -> None:
    with av.open(io.BytesIO(clip)) as container:
        assert len(container.streams) == 1
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 25)
        frames = list(container.decode(stream))
    assert [round(f.time * 25) for f in frames] == list(range(83))
    assert [i for i, f in enumerate(frames) if f.key_frame] == [0, 25, 50, 75]
    assert {(f.colorspace, f.color_range, f.color_primaries, f.color_trc) for f in frames} == {(1, 1, 1, 1)}
    assert clip.index(b"moov") < clip.index(b"mdat"), "the index comes first"
    assert index_first(clip) == clip


def test_images_and_colours_survive(decoded: np.ndarray) -> None:
    difference = decoded.astype(float) - np.stack(_moving(83))
    assert np.abs(difference).mean() < 3.0
    assert np.abs(difference.mean(axis=(0, 1, 2))).max() < 0.3, "no channel is shifted"


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_window_equals_the_full_decode(clip: bytes, decoded: np.ndarray, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, 82))
    stride = data.draw(st.integers(1, 30))
    count = data.draw(st.integers(1, (82 - first) // stride + 1))
    wanted = decoded[first : first + (count - 1) * stride + 1 : stride]
    assert np.array_equal(decode_window(clip, first, count, stride), wanted)


def test_window_reads_only_what_it_needs(clip: bytes) -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.taken += len(data)
            return data

    long = encode_mp4(_moving(1000), 96, 64, EncoderSettings(crf=4, preset="ultrafast"))
    stream = Counting(long)
    decode_window(stream, 900, 10)
    assert stream.taken < len(long) / 4


@pytest.mark.parametrize(("first", "count"), [(80, 4), (83, 1), (-1, 2), (0, 0), (500, 1)])
def test_window_outside_the_clip(clip: bytes, first: int, count: int) -> None:
    with pytest.raises(ValueError, match="frame"):
        decode_window(clip, first, count)
    with pytest.raises(ValueError, match="frame"):
        decode_window(clip, 3, 9, 10)


def test_bytes_that_are_no_clip() -> None:
    with pytest.raises(ValueError, match="is not a video"):
        next(decode_clip(b"nothing of the kind"))
    with pytest.raises(ValueError, match="at least one frame"):
        encode_mp4([], 64, 64, SETTINGS)
    with pytest.raises(ValueError, match="must be even"):
        encode_mp4([np.zeros((63, 64, 3), np.uint8)], 64, 63, SETTINGS)
    with pytest.raises(ValueError, match="crf"):
        EncoderSettings(crf=60)


def test_another_decoder_agrees_on_length_and_rate(clip: bytes, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip)
    capture = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 83 and capture.get(cv2.CAP_PROP_FPS) == 25
