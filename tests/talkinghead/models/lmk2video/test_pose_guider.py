"""PoseGuider: sizes, attention to the reference's landmarks, and what a frame's features depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from talkinghead.models.lmk2video.pose_guider import NORMALISATIONS, LandmarkAttention, PoseGuider, position_code
from talkinghead.models.lmk2video.published import PoseGuiderMode, fill, load_pose_guider, published_pose_guider
from talkinghead.models.lmk2video.sizes import pose_guider_config
from talkinghead.models.running_statistics import RunningStatistics
from tests.support.golden_weights import golden_state
from tests.support.lmk2video_networks import draw, shake, small_denoiser, small_guider

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def _images(batch: int = 2, frames: int = 4, seed: int = 0) -> Tensor:
    """Few bright lines on black, as guidance images are."""
    image = torch.full((batch, frames, 3, 64, 48), -1.0)
    draws = torch.Generator().manual_seed(seed)
    for index in torch.randint(0, 46, (batch * frames * 6,), generator=draws).split(6):
        frame = image.flatten(0, 1)[int(index.sum()) % (batch * frames)]
        frame[:, index] = torch.rand((3, 6, 1), generator=draws) * 2 - 1
    return image + 0.05 * torch.randn(image.shape, generator=draws)


def test_features_fit_the_denoiser() -> None:
    guider, denoiser = small_guider().eval(), small_denoiser().eval()
    for height, width in ((64, 48), (72, 40), (8, 8)):
        features = guider(draw(2, 3, 3, height, width), draw(2, 3, height, width))
        assert len(features) == 4
        latents = draw(2, 3, 4, height // 8, width // 8)
        assert denoiser(latents, 5, draw(2, 1, 12), pose=features).shape == latents.shape


def test_an_untrained_guider_leaves_the_denoiser_as_it_is() -> None:
    for feature in small_guider(shaken=False)(_images(), _images()[:, 0]):
        assert not feature.any()


def test_every_parameter_learns() -> None:
    guider = small_guider(shaken=False)
    images, reference = _images(), _images(seed=1)[:, 0]
    optimizer = torch.optim.SGD(guider.parameters(), lr=0.1)
    reached: set[str] = set()
    for _ in range(4):
        optimizer.zero_grad()
        torch.stack([(feature - 1).square().mean() for feature in guider(images, reference)]).sum().backward()
        reached |= {name for name, value in guider.named_parameters() if value.grad is not None and value.grad.any()}
        optimizer.step()
    assert reached == {name for name, _ in guider.named_parameters()}


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_what_a_frame_depends_on(normalisation: str) -> None:
    guider = small_guider(normalisation=normalisation).eval()
    images, reference = _images(1), _images(1, seed=1)[:, 0]
    with torch.no_grad():
        together = guider(images, reference)
        alone = guider(images[:, :1], reference)
        doubled = guider(images.repeat(2, 1, 1, 1, 1), reference.repeat(2, 1, 1, 1))
    assert guider.frames_are_independent == (normalisation in ("frame", "running"))
    for all_frames, one in zip(together, alone, strict=True):
        assert torch.allclose(all_frames[:, :1], one, **CLOSE) == guider.frames_are_independent
    # Doubling for guidance changes no mean and no variance.
    for all_frames, twice in zip(together, doubled, strict=True):
        torch.testing.assert_close(twice[1:], all_frames, rtol=1e-3, atol=1e-4)


def test_a_frame_is_the_same_in_training_and_in_use() -> None:
    guider = small_guider()
    images, reference = _images(), _images(seed=1)[:, 0]
    for trained, used in zip(guider.train()(images, reference), guider.eval()(images, reference), strict=True):
        torch.testing.assert_close(trained, used, rtol=0, atol=0)


@pytest.mark.parametrize("normalisation", ["published", "trained", "running"])
def test_running_statistics_move_once_a_step_of_training(normalisation: str) -> None:
    """No forward pass changes them; those of evaluation leave nothing to move by either."""
    guider = small_guider(normalisation=normalisation, reference_attention=False)
    statistics = RunningStatistics(guider)
    before = {name: value.clone() for name, value in guider.named_buffers()}
    for mode in (True, False):
        guider.train(mode)(_images())
        assert all(torch.equal(value, before[name]) for name, value in guider.named_buffers())
        statistics.note() if mode else statistics.drop()
    statistics.move(torch.tensor(True))
    assert all(torch.equal(value, before[name]) for name, value in guider.named_buffers())
    guider.train()(_images())
    statistics.note()
    statistics.move(torch.tensor(True))
    assert all(not torch.equal(value, before[name]) for name, value in guider.named_buffers())


def test_published_range_is_twice_the_pixel_value_less_one() -> None:
    pixels = torch.randint(0, 256, (1, 2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float()
    published = small_guider(normalisation="published", reference_attention=False).eval()
    raw = small_guider(normalisation="trained", reference_attention=False).eval()
    with torch.no_grad():
        for found, want in zip(published(pixels / 127.5 - 1), raw(2 * pixels - 1), strict=True):
            torch.testing.assert_close(found, want, **CLOSE)


def test_the_reference_is_attended_to() -> None:
    guider = small_guider().eval()
    images, reference = _images(), _images(seed=1)[:, 0]
    with torch.no_grad():
        plain = guider(images, reference)
        other = guider(images, reference.flip(0))
        kept = guider(images, guider.encode_reference(reference))
    assert torch.equal(plain[0], other[0])
    for before, after, again in zip(plain[1:], other[1:], kept[1:], strict=True):
        assert not torch.allclose(before, after, atol=1e-4)
        assert torch.equal(before, again)
    with pytest.raises(ValueError, match="give its guidance image too"):
        guider(images)
    with pytest.raises(ValueError, match="must be 2 guidance images"):
        guider(images, reference[:1])


def test_attention_finds_where_a_part_came_from() -> None:
    """A short training teaches it how far a mark has moved, which does not follow from the marks' appearance."""
    torch.manual_seed(0)
    attention, head = LandmarkAttention(16, 2), nn.Conv2d(16, 2, 1)
    optimizer = torch.optim.Adam([*attention.parameters(), *head.parameters()], lr=1e-2)
    errors, guesses = [], []
    for step in range(200):
        draws = torch.Generator().manual_seed(step)
        marks = torch.randint(0, 8, (2, 16, 2), generator=draws)
        maps = torch.zeros(2, 16, 16, 8, 8)
        for which in range(2):
            maps[which, torch.arange(16), :8, marks[which, :, 0], marks[which, :, 1]] = 3.0
        moved = (marks[0] - marks[1]).float() / 8
        shown = head(attention(maps[0], maps[1]))[torch.arange(16), :, marks[0, :, 0], marks[0, :, 1]]
        loss = (shown - moved).square().mean()
        errors.append(float(loss.detach()))
        guesses.append(float(moved.square().mean()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert np.mean(errors[-20:]) < 0.4 * np.mean(guesses), "no better than to guess that nothing moves"


def test_untrained_attention_adds_nothing_to_published_weights() -> None:
    plain = small_guider(**published_pose_guider("running")).eval()
    more = PoseGuider(**dict(plain.config, reference_attention=True)).eval()
    found = more.load_state_dict(plain.state_dict(), strict=False)
    assert all(key.startswith("reference_attentions.") for key in found.missing_keys) and not found.unexpected_keys
    for before, after in zip(plain(_images()), more(_images(), _images(seed=1)[:, 0]), strict=True):
        torch.testing.assert_close(after, before)


def test_position_code_tells_positions_apart_whatever_the_resolution() -> None:
    code = position_code(8, 6, 32)
    assert code.shape == (48, 32)
    assert torch.cdist(code, code)[~torch.eye(48, dtype=torch.bool)].min() > 0.5
    # The middle of each 2x2 patch of a finer grid lies where the coarse position does.
    fine = position_code(24, 18, 32).view(8, 3, 6, 3, 32)[:, 1, :, 1].flatten(0, 1)
    torch.testing.assert_close(fine, code, **CLOSE)


def test_sizes_and_settings() -> None:
    with torch.device("meta"):
        published = PoseGuider(**published_pose_guider())
        ours = PoseGuider(**pose_guider_config("sd15"))
    assert sum(value.numel() for value in published.parameters()) == 167_518_523
    assert sum(value.numel() for value in ours.parameters()) == 186_586_363
    with pytest.raises(ValueError, match="normalisation must be one of frame, published"):
        small_guider(normalisation="batch")
    with pytest.raises(ValueError, match="multiples of 8"):
        small_guider()(draw(1, 1, 3, 60, 64), draw(1, 3, 60, 64))


def test_round_trip_through_a_folder(tmp_path: Path) -> None:
    guider = small_guider().eval()
    guider.save_pretrained(tmp_path)
    images, reference = _images(), _images(seed=1)[:, 0]
    for found, want in zip(
        PoseGuider.from_pretrained(tmp_path)(images, reference), guider(images, reference), strict=True
    ):
        assert torch.equal(found, want)


def test_checkpointing_and_half_precision() -> None:
    guider = small_guider()
    images, reference = _images(), _images(seed=1)[:, 0]
    guider(images, reference)[3].square().mean().backward()
    want = {name: value.grad.clone() for name, value in guider.named_parameters() if value.grad is not None}
    guider.zero_grad()
    guider.enable_gradient_checkpointing()
    guider(images, reference)[3].square().mean().backward()
    for name, value in guider.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(value.grad, want[name])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = guider(images, reference)
    for found, plain in zip(mixed, guider(images, reference), strict=True):
        # Thirteen normalised layers, each on eight bits.
        assert (found.float() - plain).norm() / plain.norm() < 0.15


LIMITS = (1e-4, 1e-4, 1e-4, 5e-4, 1e-3)


@pytest.mark.slow
def test_equals_the_published_network(shared: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in PoseGuider(**published_pose_guider()).state_dict().items()}
    file = tmp_path / "pose_guider.pth"
    torch.save(golden_state("pose_guider.pth", shapes), file)
    with np.load(shared / "goldens" / "dev" / "pose_guider.npz") as golden:
        pixels = torch.from_numpy(golden["images"]).permute(0, 3, 1, 2)[None]
        images = (pixels / 255 - 0.5) / 0.5
        cases: tuple[tuple[PoseGuiderMode, str, int], ...] = (
            ("trained", "train_bn.unit", 2),
            ("trained", "train_bn.unit.frame0", 1),
            ("running", "eval_bn.unit", 2),
            ("published", "train_bn.raw", 2),
        )
        for mode, prefix, frames in cases:
            model, report = load_pose_guider(file, mode)
            assert report.complete and report.loaded == len(shapes) and not model.training
            with torch.no_grad():
                features = model(images[:, :frames])
            for index, feature in enumerate(features):
                found = feature.transpose(1, 2)
                want = torch.from_numpy(golden[f"{prefix}.F{index}"])
                mean_std = torch.from_numpy(golden[f"{prefix}.F{index}.mean_std"])
                if want.shape[1] != found.shape[1]:
                    torch.testing.assert_close(
                        torch.stack([found.double().mean(), found.double().std(correction=0)]),
                        mean_std,
                        rtol=1e-4,
                        atol=1e-5,
                    )
                    found = found[:, ::4]
                limit = 1e-4 if mode == "running" else LIMITS[index]
                assert (found - want).norm() / want.norm() < limit, f"{prefix}.F{index}"


def test_shaken_weights_fill_under_published_names() -> None:
    settings = published_pose_guider("trained")
    source, target = small_guider(**settings), small_guider(shaken=False, **settings)
    shake(source, 8)
    report = fill(target, source.state_dict(), "pose_guider", "pose_guider.pth")
    assert report.complete
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
