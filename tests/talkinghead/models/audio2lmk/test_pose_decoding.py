"""Decoding frame by frame equals decoding all frames again for each pose, whatever the settings and the cuts."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
from talkinghead.models.audio2lmk.pose_decoding import KeyValueCache, decode, generate, redecode
from talkinghead.models.audio2lmk.published import published_config
from talkinghead.models.speech.weights import Pretrained
from tests.support.small_models import small_pose

TINY = Pretrained("tiny").wav2vec_config()

MODELS = st.fixed_dictionaries(
    {
        "context": st.sampled_from([None, 1, 2, 7]),
        "memory_attention": st.sampled_from(["window", "diagonal"]),
        "memory_window": st.integers(0, 4),
        "restart_frames": st.integers(1, 9),
        "position_period": st.integers(10, 30),
        "max_step": st.sampled_from([None, [0.1] * 6]),
        "pose_scale": st.just([4.0, 3.0, 2.0, 1.0, 1.0, 0.5]),
    }
)


@settings(max_examples=40, deadline=None)
@given(MODELS, st.integers(1, 45), st.integers(1, 3), st.data())
def test_cached_decoding_equals_decoding_again(
    model: dict[str, Any], frames: int, batch: int, data: st.DataObject
) -> None:
    """Over seams, wraps of the position code and of the cache, several rows, and speech that comes in pieces."""
    net = small_pose(TINY, **model)
    memory = torch.randn(batch, frames, 32, generator=torch.Generator().manual_seed(frames))
    identity = torch.arange(batch)
    want = redecode(net, memory, identity)
    got, _ = decode(net, memory, identity)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

    cuts = sorted(data.draw(st.lists(st.integers(0, frames), max_size=4)))
    parts, state = [], None
    for first, end in zip([0, *cuts], [*cuts, frames], strict=True):
        part, state = decode(net, memory[:, first:end], identity, state=state, final=end == frames)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), want, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([None, 3]), st.sampled_from(["window", "diagonal"]), st.integers(1, 18))
def test_what_is_decoded_is_what_one_pass_over_it_predicts(context: int | None, attention: str, frames: int) -> None:
    """Teacher forcing with the decoded poses gives them back: training and inference are one function."""
    net = small_pose(TINY, context=context, memory_attention=attention, memory_window=2)
    memory = torch.randn(1, frames, 32)
    poses, _ = decode(net, memory, 1)
    previous = torch.cat([torch.zeros(1, 1, 6), poses[:, :-1]], dim=1)
    torch.testing.assert_close(net.decode_known(memory, previous, torch.tensor([1])), poses, rtol=1e-4, atol=1e-4)


def test_decoding_repeats_bit_for_bit() -> None:
    net = small_pose(TINY, context=5)
    memory = torch.randn(1, 30, 32)
    assert torch.equal(decode(net, memory, 1)[0], decode(net, memory, 1)[0])


def test_the_last_frames_wait_for_the_speech_they_attend_to() -> None:
    net = small_pose(TINY, context=5, memory_window=4)
    memory = torch.randn(1, 12, 32)
    early, state = decode(net, memory[:, :3], 0, final=False)
    assert early.shape == (1, 0, 6)
    early, state = decode(net, memory[:, 3:9], 0, state=state, final=False)
    assert early.shape == (1, 5, 6)
    late, _ = decode(net, memory[:, 9:], 0, state=state)
    torch.testing.assert_close(torch.cat([early, late], 1), redecode(net, memory, 0), rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 40))
def test_a_bounded_cache_holds_the_newest_frames_in_order(context: int, frames: int) -> None:
    cache = KeyValueCache((2, 1, 1), context, torch.zeros(1))
    block = cache._block.data_ptr()
    for frame in range(frames):
        count = cache.open_frame()
        for layer in range(2):
            entry = torch.tensor([frame + 0.25 * layer, -frame]).view(2, 1, 1)
            keys, values = cache.write(layer, entry)
            want = torch.arange(frame - count + 1, frame + 1, dtype=torch.float32)
            assert torch.equal(keys.flatten(), want + 0.25 * layer)
            assert torch.equal(values.flatten(), -want)
        assert count == min(frame + 1, context)
    assert cache._block.data_ptr() == block, "a bounded cache is allocated once"


def test_state_of_long_speech_stays_small() -> None:
    for model in ({"context": 6}, {"restart_frames": 8}):
        net = small_pose(TINY, memory_window=3, **model)
        state, sizes = None, []
        for _ in range(6):
            _, state = decode(net, torch.randn(1, 300, 32), 0, state=state, final=False)
            sizes.append((state.memory.shape[1], len(state.poses), state.cache._block.numel()))
        assert len(set(sizes[1:])) == 1
        assert sizes[-1][0] <= 2 * 3 + 8
        assert state is not None and state.frame == 1797


def test_an_unknown_identity_is_told() -> None:
    net = small_pose(TINY)
    for number in (-1, 5):
        with pytest.raises(ValueError, match=r"0 … 4"):
            decode(net, torch.randn(1, 2, 32), number)


@pytest.mark.parametrize("chunking", ["continue", "restart"])
@pytest.mark.parametrize("samples", [1, 5000, 79_999, 80_000, 80_001, 160_000, 170_000])
def test_recordings_of_any_length_have_a_pose_for_each_frame(chunking: str, samples: int) -> None:
    net = small_pose(TINY, fps=30.0, memory_attention="diagonal", chunking=chunking)
    poses = generate(net, torch.randn(samples), 2)
    assert poses.shape == (-(-samples * 30 // 16000), 6)
    assert poses.isfinite().all()
    assert net.finish(poses).shape == poses.shape


def test_restarted_chunks_are_decoded_apart() -> None:
    net = small_pose(TINY, fps=25.0, chunking="restart", restart_frames=10)
    samples = torch.randn(27 * 640)
    poses = generate(net, samples, 1)
    for first, end in ((0, 10), (10, 27)):
        alone, _ = decode(net, net.encode(samples[None, first * 640 : end * 640], end - first), 1)
        assert torch.equal(poses[first:end], alone[0])


def test_finishing_applies_gain_to_angles_and_smooths() -> None:
    net = small_pose(TINY, angle_gain=0.5, smoothing=3)
    poses = torch.arange(30, dtype=torch.float32).reshape(5, 6) ** 2
    gained = poses * torch.tensor([0.5, 0.5, 0.5, 1, 1, 1])
    out = net.finish(poses)
    torch.testing.assert_close(out[2], gained[1:4].mean(0))
    torch.testing.assert_close(out[0], gained[:2].mean(0))


@pytest.mark.slow
def test_300_frames_of_the_published_size(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config: dict[str, Any] = published_config("audio2pose") | {"wav2vec": TINY}
    net = Audio2Pose(**config).eval()
    torch.nn.init.normal_(net.pose_map_r.weight, std=0.1)
    memory = torch.randn(1, 300, 512)
    begun = time.perf_counter()
    got, _ = decode(net, memory, 3)
    between = time.perf_counter()
    want = redecode(net, memory, 3)
    again = time.perf_counter() - between
    cached = between - begun
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    with capsys.disabled():
        print(f"\n300 frames: cached {cached:.2f} s, decoded again {again:.1f} s, {again / cached:.1f} times")
    assert again > 5 * cached
