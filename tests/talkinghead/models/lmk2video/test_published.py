"""Published Lmk2Video files: every key has its place, and errors name those that have none."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.published import (
    Kind,
    fill,
    kind_of,
    load_denoising_unet,
    load_motion_module,
    load_pose_guider,
    load_reference_unet,
    published_names,
    published_pose_guider,
    read_sd15_unet,
)
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.lmk2video.sizes import denoiser_config, pose_guider_config, reference_net_config
from talkinghead.models.weight_files import read_weights
from talkinghead.models.weights import compare_keys
from tests.support.lmk2video_networks import inputs, small_denoiser, small_reference_net

MOTION = ".motion_modules."


def _published(model: nn.Module, *, motion: bool) -> dict[str, Tensor]:
    """Tensors of a model as a published file holds them: of the motion modules, or all others."""
    return {
        name: value.clone()
        for key, value in model.state_dict().items()
        if (MOTION in key) == motion
        for name in published_names(key)
    }


@pytest.mark.parametrize("kind", ["reference_unet", "denoising_unet", "motion_module", "pose_guider"])
def test_names_and_shapes_are_those_of_the_published_files(shared: Path, kind: Kind) -> None:
    keys = json.loads((shared / "specs" / "aniportrait_state_dict_keys.json").read_text())[f"{kind}.pth"]
    with torch.device("meta"):
        model = {
            "reference_unet": ReferenceNet,
            "denoising_unet": Denoiser,
            "motion_module": lambda: Denoiser(motion=True),
            "pose_guider": lambda: PoseGuider(**published_pose_guider()),
        }[kind]()
    found = _published(model, motion=kind == "motion_module")
    assert {name: list(value.shape) for name, value in found.items()} == keys
    assert kind_of(found) == kind
    wanted = {name: tuple(shape) for name, shape in keys.items()}
    report = compare_keys(
        f"{kind}.pth", kind, {name: torch.empty(shape, device="meta") for name, shape in wanted.items()}, wanted
    )
    assert report.complete and report.loaded == len(keys)


def test_a_denoiser_comes_back_from_its_two_files() -> None:
    source, target = small_denoiser(motion=True).eval(), small_denoiser(motion=True, seed=5).eval()
    spatial = fill(target, _published(source, motion=False), "denoising_unet", "denoising_unet.pth")
    motion = fill(target, _published(source, motion=True), "motion_module", "motion_module.pth")
    assert spatial.complete and motion.complete
    assert motion.loaded == 28 * 10, "28 tensors of each module, the position code twice"
    given = inputs()
    with torch.no_grad():
        torch.testing.assert_close(target(**given), source(**given), rtol=0, atol=0)


def test_each_file_fills_its_own_part_only() -> None:
    source, target = small_denoiser(motion=True), small_denoiser(motion=True, seed=5)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    fill(target, _published(source, motion=True), "motion_module", "m.ckpt")
    for name, value in target.state_dict().items():
        assert torch.equal(value, (source.state_dict() if MOTION in name else before)[name])


def test_half_precision_files_become_float32_and_nothing_is_shared() -> None:
    source, target = small_reference_net(), small_reference_net(seed=9)
    found = {name: value.to(torch.float16) for name, value in _published(source, motion=False).items()}
    fill(target, found, "reference_unet", "reference_unet.pth")
    assert {value.dtype for value in target.state_dict().values()} == {torch.float32}
    full = _published(source, motion=False)
    fill(target, full, "reference_unet", "reference_unet.pth")
    full["conv_in.weight"].zero_()
    assert target.conv_in.weight.any()


def test_whatever_does_not_fit_is_named() -> None:
    good = _published(small_denoiser(motion=True), motion=True)
    one = next(name for name in good if name.endswith("proj_out.bias"))
    code = next(name for name in good if name.endswith("pos_encoder.pe"))
    for change, text in (
        ({one: None}, rf"missing: 1 \({one}\)"),
        ({"odd.weight": torch.zeros(1)}, r"unexpected: 1 \(odd\.weight\)"),
        ({one: torch.zeros(3)}, rf"of another shape: 1 \({one} \(3,\) for"),
        ({code: good[code] + 1}, "differ, and the network has one such table"),
    ):
        wrong = {name: value for name, value in (good | change).items() if value is not None}
        with pytest.raises(ValueError, match=text):
            fill(small_denoiser(motion=True), wrong, "motion_module", "motion_module.pth")
    spatial = _published(small_denoiser(), motion=False)
    with pytest.raises(ValueError, match="It looks like a denoising_unet"):
        fill(small_reference_net(), spatial, "reference_unet", "reference_unet.pth")


def test_a_refused_file_changes_nothing() -> None:
    model = small_denoiser(motion=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrong = _published(small_denoiser(motion=True, seed=5), motion=True)
    wrong.popitem()
    with pytest.raises(ValueError, match="does not hold the weights"):
        fill(model, wrong, "motion_module", "motion_module.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("form", ["plain", "wrapped", "parallel", "legacy", "safetensors"])
def test_motion_modules_of_every_form(tmp_path: Path, form: str) -> None:
    """Files as AniPortrait, AnimateDiff and data-parallel training save them."""
    source, target = small_denoiser(motion=True), small_denoiser(motion=True, seed=5)
    tensors = _published(source, motion=True)
    file = tmp_path / ("motion_module.safetensors" if form == "safetensors" else "mm_sd_v15_v2.ckpt")
    if form == "safetensors":
        safetensors.torch.save_file(tensors, file)
    else:
        content: dict[str, Any] = {f"module.{name}": value for name, value in tensors.items()}
        content = content if form == "parallel" else tensors
        if form == "wrapped":
            content = {"state_dict": content, "epoch": 3, "global_step": 7, "animatediff_config": {"steps": 9}}
        torch.save(content, file, _use_new_zipfile_serialization=form != "legacy")
    assert load_motion_module(target, file).complete
    for name, value in target.state_dict().items():
        if MOTION in name:
            assert torch.equal(value, source.state_dict()[name])


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("bomb-went-off"),))


def test_files_that_are_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = tmp_path / "whole.pth"
    torch.save(_published(small_denoiser(), motion=False), whole)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:-2000])
    text = tmp_path / "text.pth"
    text.write_text("<html>not found</html>")
    tensor = tmp_path / "tensor.pth"
    torch.save(torch.zeros(3), tensor)
    bomb = tmp_path / "bomb.pth"
    torch.save({"conv_in.weight": Bomb()}, bomb)
    pickled = tmp_path / "pickled.pth"
    pickled.write_bytes(pickle.dumps(Bomb()))
    empty = tmp_path / "empty.safetensors"
    empty.write_bytes(b"")
    for file in (cut, text, bomb, pickled, empty):
        with pytest.raises(ValueError, match="cannot be read as weights"):
            read_weights(file)
    with pytest.raises(ValueError, match="holds no table of tensors"):
        read_weights(tensor)
    with pytest.raises(ValueError, match="there is no file"):
        read_weights(tmp_path / "nowhere.pth")
    assert not (tmp_path / "bomb-went-off").exists()


def test_loaders_refuse_weights_of_another_size(tmp_path: Path) -> None:
    file = tmp_path / "small.pth"
    torch.save(_published(small_denoiser(), motion=False), file)
    for load in (load_reference_unet, load_denoising_unet, load_pose_guider):
        with pytest.raises(ValueError, match=r"small\.pth does not hold the weights of"):
            load(file)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"is not of Stable Diffusion 1\.5"):
        read_sd15_unet(tmp_path)
    with pytest.raises(ValueError, match="no UNet in"):
        read_sd15_unet(tmp_path / "elsewhere")


def test_named_sizes_fit_each_other() -> None:
    for size in ("tiny", "small", "sd15"):
        with torch.device("meta"):
            net = ReferenceNet(**reference_net_config(size))
            denoiser = Denoiser(**denoiser_config(size, motion=True))
            guider = PoseGuider(**pose_guider_config(size))
            latents = torch.empty(1, 2, 4, 16, 24)
            token = torch.empty(1, 1, denoiser.config["cross_attention_dim"])
            images = torch.empty(1, 2, 3, 128, 192)
            reference, pose = net(latents[:, 0], token), guider(images, images[:, 0])
            assert denoiser(latents, 5, token, reference=reference, pose=pose).shape == latents.shape
    assert denoiser_config("tiny", motion=True) == denoiser_config("tiny", motion=False) | {"motion": True}
    with pytest.raises(ValueError, match="size must be one of tiny, small, sd15"):
        reference_net_config("huge")  # pyright: ignore[reportArgumentType]
