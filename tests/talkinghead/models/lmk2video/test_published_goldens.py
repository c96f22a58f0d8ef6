"""Full-size networks compute what the published ones do (weights by a formula; gigabytes and minutes)."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.published import Kind, fill, published_names, published_pose_guider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from tests.support.golden_weights import golden_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

Golden = Mapping[str, np.ndarray]
LIMIT = 5e-5
GUIDANCE = 3.5


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    with np.load(shared / "goldens" / "dev" / "unet.npz") as file:
        return dict(file)


def _filled(model: nn.Module, kind: Kind) -> None:
    shapes = {
        name: tuple(value.shape)
        for key, value in model.state_dict().items()
        if (".motion_modules." in key) == (kind == "motion_module")
        for name in published_names(key)
    }
    fill(model, golden_state(f"{kind}.pth", shapes), kind, f"{kind}.pth")


@pytest.fixture(scope="module")
def reference_net() -> Iterator[list[ReferenceNet]]:
    """Reference network in a list, which is emptied before the denoiser is made: both need too much memory at once."""
    with torch.device("meta"):
        net = ReferenceNet()
    _filled(net, "reference_unet")
    held = [net.eval()]
    del net
    yield held
    held.clear()


@pytest.fixture(scope="module")
def features(golden: Golden, reference_net: list[ReferenceNet]) -> dict[str, dict[str, Tensor]]:
    """Features of both references, of the first one alone (as guidance uses it), and of one that is not square."""
    latents, tokens = _tensor(golden, "ref_latent"), _tensor(golden, "clip")
    net = reference_net[0]
    with torch.no_grad():
        return {
            "both": net(latents, tokens),
            "first": net(latents[:1], tokens[:1]),
            "rect": net(_tensor(golden, "rect.ref_latent"), tokens[1:2]),
        }


@pytest.fixture(scope="module")
def denoiser(features: Any, reference_net: list[ReferenceNet]) -> Iterator[Denoiser]:
    """Denoiser with motion modules; apart from them it is also the network of single frames."""
    reference_net.clear()
    gc.collect()
    with torch.device("meta"):
        model = Denoiser(motion=True)
    _filled(model, "denoising_unet")
    _filled(model, "motion_module")
    yield model.eval()
    del model
    gc.collect()


@pytest.fixture(scope="module")
def still(denoiser: Denoiser) -> Denoiser:
    """Denoiser without motion modules, on the same weights in memory."""
    with torch.device("meta"):
        model = Denoiser()
    state = {key: value for key, value in denoiser.state_dict().items() if ".motion_modules." not in key}
    model.load_state_dict(state, assign=True)
    return model.eval()


def _tensor(golden: Golden, key: str) -> Tensor:
    return torch.from_numpy(golden[key])


def _video(golden: Golden, key: str) -> Tensor:
    """Latents `[B, F, C, h, w]`, stored as `(b, c, f, h, w)`."""
    return _tensor(golden, key).transpose(1, 2)


def _pose(golden: Golden, case: str) -> list[Tensor]:
    def draws(name: str, shape: tuple[int, ...]) -> Tensor:
        generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        return torch.from_numpy(np.float32(0.5) * generator.standard_normal(shape, dtype=np.float32)).transpose(1, 2)

    shapes = golden[f"{case}.pose.shapes"].tolist()
    return [draws(str(name), tuple(shape)) for name, shape in zip(golden[f"{case}.pose.names"], shapes, strict=True)]


def _error(found: Tensor, want: Tensor) -> float:
    return float((found - want).norm() / want.norm())


def test_reference_features(golden: Golden, features: dict[str, dict[str, Tensor]]) -> None:
    both = features["both"]
    assert set(both) == set(golden["ref.bank.names"].tolist())
    for index, name in enumerate(golden["ref.bank.names"].tolist()):
        feature = both[name]
        assert tuple(feature.shape) == tuple(golden["ref.bank.shape"][index])
        middle = feature.shape[1] // 3
        assert _error(feature[:, [middle, -1]], _tensor(golden, f"ref.bank.{name}.tokens")) < LIMIT, name
        mean_std = torch.stack([feature.mean((1, 2)), feature.std((1, 2), correction=0)], dim=1)
        torch.testing.assert_close(mean_std.double(), _tensor(golden, "ref.bank.mean_std")[index], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_single_frames(golden: Golden, features: dict[str, dict[str, Tensor]], still: Denoiser) -> None:
    given: dict[str, Any] = {
        "latents": _video(golden, "stage1.latent"),
        "timestep": _tensor(golden, "stage1.timestep"),
        "token": _tensor(golden, "clip"),
        "reference": features["both"],
        "pose": _pose(golden, "stage1"),
    }
    want = _video(golden, "stage1.out")
    assert _error(still(**given), want) < LIMIT
    kept = still.project_reference(features["both"])
    assert _error(still(**dict(given, reference=kept), fold=True), want) < LIMIT
    assert _error(still(**dict(given, pose=None)), _video(golden, "stage1.out_no_pose")) < LIMIT
    without = _video(golden, "stage1.out_no_reference")
    assert _error(still(**dict(given, reference=None)), without) < LIMIT
    assert _error(still(**given, dropped=torch.tensor([True, True])), without) < LIMIT


@torch.no_grad()
def test_video(golden: Golden, features: dict[str, dict[str, Tensor]], denoiser: Denoiser) -> None:
    tokens = _tensor(golden, "clip")
    latents, timestep = _video(golden, "video.latent"), _tensor(golden, "video.timestep")
    pose, first = _pose(golden, "video"), features["first"]
    conditional = denoiser(latents, timestep, tokens[:1], reference=first, pose=pose)
    assert _error(conditional, _video(golden, "video.out")) < LIMIT
    assert _error(denoiser(latents, timestep, tokens[:1], pose=pose), _video(golden, "video.out_no_reference")) < LIMIT
    rect = denoiser(
        _video(golden, "rect.latent"),
        _tensor(golden, "rect.timestep"),
        tokens[1:2],
        reference=features["rect"],
        pose=_pose(golden, "rect"),
    )
    assert _error(rect, _video(golden, "rect.out")) < LIMIT
    unconditional = denoiser(latents, timestep, torch.zeros(1, 1, 768), pose=pose, fold=True)
    assert _error(torch.cat([unconditional, conditional]), _video(golden, "cfg.out")) < LIMIT
    guided = unconditional + GUIDANCE * (conditional - unconditional)
    assert _error(guided, _video(golden, "cfg.guided")) < 2 * LIMIT
    half = {name: value.half().float() for name, value in first.items()}
    rounded = denoiser(latents, timestep, tokens[:1], reference=half, pose=pose)
    assert _error(torch.cat([unconditional, rounded]), _video(golden, "cfg.out_half_bank")) < LIMIT


@torch.no_grad()
def test_first_step_of_the_sampler(shared: Path, features: dict[str, dict[str, Tensor]], denoiser: Denoiser) -> None:
    """All networks together, on two windows, with the published normalisation of the PoseGuider."""
    with torch.device("meta"):
        guider = PoseGuider(**published_pose_guider("published"))
    _filled(guider, "pose_guider")
    guider.eval()
    with np.load(shared / "goldens" / "dev" / "sampler.npz") as file:
        golden = dict(file)
    images = torch.from_numpy(golden["images"]).permute(0, 3, 1, 2)[None] / 127.5 - 1
    latents = _video(golden, "latent")
    step = int(golden["timesteps"][0])
    kept = denoiser.project_reference(features["first"])
    total, coverage = torch.zeros(2, *latents.shape[1:]), torch.zeros(latents.shape[1])
    for window in torch.from_numpy(golden["windows"]).long():
        pose = guider(images[:, window])
        part = latents[:, window]
        token = torch.from_numpy(golden["clip"])
        total[0, window] += denoiser(part, step, torch.zeros_like(token), pose=pose, fold=True)[0]
        total[1, window] += denoiser(part, step, token, reference=kept, pose=pose, fold=True)[0]
        coverage[window] += 1
    unconditional, conditional = total / coverage[None, :, None, None, None]
    guided = unconditional + GUIDANCE * (conditional - unconditional)
    assert _error(guided[None], _video(golden, "guided_first")) < 1e-4
