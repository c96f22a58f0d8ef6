"""Videos with speech: the user's sound in step with the images, any layout and rate, whole or not there."""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from talkinghead.media.audio import read_whole_audio
from talkinghead.media.media_file import probe
from talkinghead.media.talking_video import write_talking_video
from tests.support.media_files import flat, write_audio, write_video
from tests.support.paths import ROOT
from tests.support.sound_files import click_times, repack, ticking, voice, with_bytes, write_pcm, write_runs

FRAME = 640


def frames(count: int, side: int = 64) -> Iterator[np.ndarray]:
    for number in range(count):
        yield flat(side, side, number % 200 + 20)


def chirp(seconds: float, rate: int) -> np.ndarray:
    """A sound that matches itself at one shift only."""
    time_s = np.arange(round(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * (200 * time_s + 150 * time_s**2))


def lag(played: np.ndarray, sent: np.ndarray) -> int:
    """Samples by which one sound comes later than the other."""
    size = 1 << (len(played) + len(sent)).bit_length()
    product = np.fft.rfft(played, size) * np.conj(np.fft.rfft(sent, size))
    best = int(np.argmax(np.fft.irfft(product, size)))
    return best - size if best > size // 2 else best


@pytest.mark.parametrize(
    ("rate", "channels", "kept"),
    [
        (16000, 1, (16000, 1)),
        (44100, 2, (44100, 2)),
        (96000, 8, (48000, 1)),
        (37800, 1, (48000, 1)),
        (8000, 9, (8000, 1)),
    ],
)
def test_sound_is_in_step(tmp_path: Path, rate: int, channels: int, kept: tuple[int, int]) -> None:
    sound = np.repeat(chirp(1.99, rate)[:, None], channels, axis=1)
    speech = write_pcm(tmp_path / "speech.wav", sound, rate)
    out = tmp_path / "out.mp4"
    assert write_talking_video(out, frames(50), width=64, height=64, fps=25, speech=speech) == 50
    found = probe(out)
    assert found.audio is not None and (found.audio.rate, found.audio.channels) == kept
    assert found.duration_s == pytest.approx(2.0, abs=0.03)
    sent, played = read_whole_audio(speech), read_whole_audio(out)
    assert abs(lag(played, sent)) <= 2, "a tenth of a millisecond; a frame is 640 samples"
    size = min(len(sent), len(played))
    assert np.corrcoef(sent[:size], played[:size])[0, 1] > 0.98


def test_sound_that_starts_late_or_ends_late(tmp_path: Path) -> None:
    """A video as the speech: its sound starts a second after its image, and goes on after ours."""
    speech = write_video(
        tmp_path / "speech.mov", frames(75), audio=chirp(2.0, 44100)[None], audio_start=44100, audio_rate=44100
    )
    out = tmp_path / "out.mp4"
    write_talking_video(out, frames(50), width=64, height=64, fps=25, speech=speech)
    played, sent = read_whole_audio(out), read_whole_audio(speech)
    assert np.abs(played[:15000]).max() < 0.01 and np.abs(played[17000:]).max() > 0.3
    assert abs(lag(played, sent[:32000])) <= 2
    assert len(played) <= 32000 + 1024, "cut where the last frame ends, up to the codec's frame"


def test_samples_as_speech_and_no_speech(tmp_path: Path) -> None:
    samples = chirp(1.0, 16000).astype(np.float32)
    write_talking_video(tmp_path / "a.mp4", frames(25), width=64, height=64, fps=25, speech=samples)
    assert abs(lag(read_whole_audio(tmp_path / "a.mp4"), samples)) <= 1
    write_talking_video(tmp_path / "c.mp4", frames(13), width=64, height=64, fps=25, speech=samples)
    played = read_whole_audio(tmp_path / "c.mp4")
    assert np.abs(played[8000:8200]).max() > 0.3 and np.abs(played[13 * FRAME + 200 :]).max(initial=0) < 0.05, "cut"
    write_talking_video(tmp_path / "b.mp4", frames(25), width=64, height=64, fps=25)
    assert probe(tmp_path / "b.mp4").audio is None


@pytest.mark.parametrize("count", [1, 5])
def test_a_single_sample_of_speech(tmp_path: Path, count: int) -> None:
    speech = write_pcm(tmp_path / "speech.wav", np.full((1, 1), 0.5), 16000)
    write_talking_video(tmp_path / "out.mp4", frames(count), width=64, height=64, fps=25, speech=speech)
    assert probe(tmp_path / "out.mp4").duration_s == pytest.approx(count / 25)


@pytest.mark.parametrize("fps", [25, 30, 29.97, 12.5])
def test_frames_are_shown_at_their_times(tmp_path: Path, fps: float) -> None:
    out = tmp_path / "out.mp4"
    write_talking_video(out, frames(31), width=64, height=48 + 16, fps=fps, speech=np.zeros(16000, np.float32))
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
    assert [frame.time for frame in decoded] == pytest.approx([k / fps for k in range(31)], abs=1e-3)
    levels = [frame.to_ndarray(format="gray")[32, 32] for frame in decoded]
    assert np.abs(np.diff(np.array(levels, float)) - np.diff(levels).mean()).max() < 2, "every image, in order"


def test_the_same_again_is_the_same_file(tmp_path: Path, media: Path) -> None:
    speech = media / "audio" / "whisper_jfk.flac"
    for name in ("a.mp4", "b.mp4"):
        write_talking_video(tmp_path / name, frames(60), width=64, height=64, fps=25, speech=speech)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data == (tmp_path / "b.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "plays before it is loaded"


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    speech = np.zeros(16000 * 120, np.float32)
    tracemalloc.start()
    write_talking_video(tmp_path / "out.mp4", frames(3000), width=64, height=64, fps=25, speech=speech)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000, "a few frames and pieces of sound (Python's share of it)"


def test_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    for width, height, message in [(63, 64, "even"), (8, 64, "16 to"), (64, 9000, "16 to")]:
        with pytest.raises(ValueError, match=message):
            write_talking_video(out, frames(1), width=width, height=height, fps=25)
    with pytest.raises(ValueError, match="frames per second"):
        write_talking_video(out, frames(1), width=64, height=64, fps=0)
    with pytest.raises(ValueError, match="at least one frame"):
        write_talking_video(out, [], width=64, height=64, fps=25)
    image_only = write_video(tmp_path / "silent.mp4", frames(5))
    with pytest.raises(ValueError, match="no audio"):
        write_talking_video(out, frames(1), width=64, height=64, fps=25, speech=image_only)
    assert {path.name for path in tmp_path.iterdir()} == {"silent.mp4"}


def test_a_damaged_end_of_the_speech(tmp_path: Path) -> None:
    """The part that can be decoded is written; the rest is silence."""
    whole = write_audio(tmp_path / "whole.flac", chirp(3.0, 16000)[None], 16000, "flac", "s16")
    cut = tmp_path / "cut.flac"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    write_talking_video(tmp_path / "out.mp4", frames(75), width=64, height=64, fps=25, speech=cut)
    played, sent = read_whole_audio(tmp_path / "out.mp4"), read_whole_audio(cut)
    assert abs(lag(played, sent)) <= 2


def heard(speech: Path, out: Path, seconds: float) -> np.ndarray:
    """The sound of a video that is written with this speech, `[C, N]` at its own rate."""
    write_talking_video(out, frames(round(seconds * 25)), width=64, height=64, fps=25, speech=speech)
    with av.open(str(out)) as container:
        played = [frame.to_ndarray() for frame in container.decode(container.streams.audio[0])]
    return np.concatenate(played, axis=1)


def test_a_rate_and_layout_that_change_in_the_middle(tmp_path: Path) -> None:
    """The best of them is kept, and every click is where it was."""
    clicks = [0.3, 0.8, 1.4, 1.9, 2.3, 2.8]
    runs = []
    for number, (rate, channels) in enumerate([(22050, 1), (48000, 2), (44100, 6)]):
        inside = [time - number for time in clicks if number < time < number + 1]
        runs.append((np.repeat(ticking(inside, 1.0, rate)[None], channels, axis=0), rate))
    speech = write_runs(tmp_path / "runs.ts", runs)
    played = heard(speech, tmp_path / "out.mp4", 3)
    found = probe(tmp_path / "out.mp4").audio
    assert found is not None and (found.rate, found.channels) == (48000, 2)
    # What it is compared with: the transport stream begins with the encoder's delay.
    expected = click_times(read_whole_audio(speech))
    for side in played:
        assert click_times(side, 48000) == pytest.approx(expected, abs=1.5e-3) and len(expected) == 6


def test_a_clock_that_begins_anew(tmp_path: Path) -> None:
    one, two = (
        write_audio(tmp_path / f"{n}.ts", ticking([0.2 + n / 10, 0.8], 1.0, 44100)[None], 44100, "aac", "fltp")
        for n in range(2)
    )
    speech = tmp_path / "both.ts"
    speech.write_bytes(one.read_bytes() + two.read_bytes())
    (played,) = heard(speech, tmp_path / "out.mp4", 2.2)
    expected = click_times(read_whole_audio(speech))
    assert len(expected) == 4 and click_times(played, 44100) == pytest.approx(expected, abs=1.5e-3)


def test_broken_packets_are_silence_of_their_length(tmp_path: Path) -> None:
    whole = write_audio(tmp_path / "a.mkv", ticking([0.1, 0.5, 1.5, 2.7], 3.0, 16000)[None], 16000, "flac", "s16")
    rng = np.random.default_rng(0)
    speech = repack(
        whole,
        tmp_path / "broken.mkv",
        lambda n, packet: with_bytes(packet, rng.bytes(packet.size)) if n in (1, 2) else packet,
    )
    (played,) = heard(speech, tmp_path / "out.mp4", 3)
    assert click_times(played, 16000) == pytest.approx(click_times(read_whole_audio(speech)), abs=1.5e-3)
    assert len(click_times(played, 16000)) == 3, "the second one was in a broken packet"


def test_no_numbers_and_channels_that_cancel(tmp_path: Path) -> None:
    """Both sides get the speech, not the channel that makes a listener with one ear hear nothing."""
    speech = voice(2.0, 16000)
    write_pcm(tmp_path / "inverted.wav", np.stack([speech, -speech], axis=1), 16000)
    left, right = heard(tmp_path / "inverted.wav", tmp_path / "out.mp4", 2)
    assert np.corrcoef(left, right)[0, 1] > 0.98
    assert np.corrcoef(left[: len(speech)], speech[: len(left)])[0, 1] > 0.98
    values = np.stack([np.full_like(speech, np.nan), speech], axis=1)
    values[100:200] = np.inf
    data = values.astype("<f4").tobytes()
    kind = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 2, 16000, 128_000, 8, 32)
    head = struct.pack("<4sI4s", b"RIFF", 36 + len(data), b"WAVE") + kind + struct.pack("<4sI", b"data", len(data))
    (tmp_path / "nan.wav").write_bytes(head + data)
    left, right = heard(tmp_path / "nan.wav", tmp_path / "out.mp4", 2)
    assert np.corrcoef(left, right)[0, 1] > 0.98
    assert np.corrcoef(left[1000 : len(speech)], speech[1000 : len(left)])[0, 1] > 0.98


def test_stereo_stays_so(tmp_path: Path) -> None:
    one, two = voice(2.0, 44100, seed=1), voice(2.0, 44100, seed=2)
    played = heard(write_pcm(tmp_path / "two.wav", np.stack([one, two], axis=1), 44100), tmp_path / "out.mp4", 2)
    for side, sent in zip(played, (one, two), strict=True):
        size = min(len(side), len(sent))
        assert np.corrcoef(side[:size], sent[:size])[0, 1] > 0.98


def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path: Path) -> None:
    speech = write_pcm(tmp_path / "long.wav", np.zeros((44100 * 60, 2)), 44100)
    tracemalloc.start()
    write_talking_video(tmp_path / "out.mp4", frames(1500), width=64, height=64, fps=25, speech=speech)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000, "some seconds of sound (Python's share of it); the whole has 21 MB as float"


_FILL = """
import sys
import numpy as np
from pathlib import Path
from talkinghead.media.talking_video import write_talking_video
noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
try:
    write_talking_video(Path(sys.argv[1]), (np.roll(noise, k, 0) for k in range(40)), width=128, height=128, fps=25,
                        speech=np.zeros(25600, np.float32))
    print("written")
except OSError as error:
    print(error.errno)
"""


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """Disks that fill up at the first frame, in the middle, and when the index is written."""
    write = f"'{sys.executable}' -c '{_FILL}'"
    script = tmp_path / "fill.sh"
    script.write_text(f"""
mount -t tmpfs -o size=64m none "$1" || exit 77
{write} "$1/whole.mp4" && size=$(stat -c %s "$1/whole.mp4") && rm "$1/whole.mp4"
for room in $((size / 30)) $((size / 2)) $((size - 9000)) $((size + 9000)); do
  mount -o remount,size=$room "$1"
  {write} "$1/out.mp4"; ls -A "$1"; rm -f "$1/out.mp4"
done
""")
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "sh", str(script), str(tmp_path / "disk")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip("this system does not allow a mount in a user namespace")
    assert done.stdout.split() == ["written", "28", "28", "28", "written", "out.mp4"], done.stdout + done.stderr
