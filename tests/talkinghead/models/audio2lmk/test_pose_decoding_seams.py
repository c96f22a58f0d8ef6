"""Seams of long speech: lengths add up, and no step at a seam is larger than allowed."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from talkinghead.models.audio2lmk.pose_decoding import SeamSpreader, restart_lengths


@settings(deadline=None)
@given(st.integers(1, 2_000), st.integers(1, 300))
def test_chunks_add_up_and_are_one_to_two_lengths_long(total: int, length: int) -> None:
    lengths = restart_lengths(total, length)
    assert sum(lengths) == total
    assert all(part == length for part in lengths[:-1])
    assert lengths == [total] if total < length else length <= lengths[-1] < 2 * length


def test_the_published_chunks() -> None:
    assert restart_lengths(179_200, 80_000) == [80_000, 99_200]
    assert restart_lengths(160_000, 80_000) == [80_000, 80_000]
    assert restart_lengths(64_000, 80_000) == [64_000]


def spread(poses: torch.Tensor, seams: set[int], max_step: torch.Tensor | None, frames: int) -> torch.Tensor:
    spreader = SeamSpreader(max_step, frames)
    return torch.stack([spreader.emit(pose[None], at in seams)[0] for at, pose in enumerate(poses)])


@settings(deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(2, 60),
    st.sets(st.integers(1, 59), max_size=4),
    st.integers(1, 12),
    st.booleans(),
)
def test_no_seam_steps_farther_than_it_may(
    seed: int, count: int, seams: set[int], frames: int, given_limit: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    poses = torch.randn(count, 6, generator=generator).cumsum(0)
    for seam in seams:
        poses[seam:] += 40 * torch.randn(6, generator=generator)
    limit = torch.full((6,), 1.5) if given_limit else None
    shown = spread(poses, seams, limit, frames)
    for seam in sorted(seam for seam in seams if seam < count):
        step = (shown[seam] - shown[seam - 1]).abs()
        before = [at for at in seams if at < seam]
        settled = not before or seam - max(before) > frames  # nothing of an earlier seam is still given back
        if not settled:
            continue
        if given_limit:
            assert (step <= 1.5 + 1e-3).all()
        elif seam - max(before, default=0) > 1:
            usual = poses[max(before, default=0) : seam].diff(dim=0).abs().amax(0)
            assert (step <= usual + 1e-3).all()
    far = [at for at in range(count) if all(not seam <= at < seam + frames for seam in seams)]
    assert torch.equal(shown[far], poses[far]), "away from seams nothing changes"


def test_the_excess_comes_back_evenly() -> None:
    poses = torch.zeros(12, 6)
    poses[4:] = 10.0
    shown = spread(poses, {4}, torch.full((6,), 2.0), 4)[:, 0]
    torch.testing.assert_close(shown, torch.tensor([0, 0, 0, 0, 2, 4, 6, 8, 10, 10, 10, 10], dtype=torch.float32))


def test_a_small_step_at_a_seam_stays() -> None:
    poses = torch.randn(10, 6).cumsum(0)
    assert torch.equal(spread(poses, {5}, torch.full((6,), 99.0), 4), poses)
