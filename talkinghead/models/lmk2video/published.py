"""AniPortrait's published Lmk2Video files (Apache-2.0, arXiv 2403.17694), AnimateDiff's motion modules, and SD1.5.

| file | model | loader |
|---|---|---|
| `reference_unet.pth` | `ReferenceNet` | `load_reference_unet` |
| `denoising_unet.pth` | `Denoiser` | `load_denoising_unet` |
| `motion_module.pth`, `mm_sd_v15_v2.ckpt` | its motion modules | the same, or `load_motion_module` |
| `pose_guider.pth` | `PoseGuider` | `load_pose_guider` |
| `unet/` of a Stable Diffusion 1.5 folder | first weights of both | `read_sd15_unet` |

Each `.pth` may also be a `.safetensors` with the same names. Every tensor must find its place and every place its
tensor; the report says which do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from talkinghead.models.lmk2video.denoiser import Denoiser
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.reference_net import ReferenceNet
from talkinghead.models.weights import KeyReport, compare_keys, read_weights

Kind = Literal["reference_unet", "denoising_unet", "motion_module", "pose_guider"]
PoseGuiderMode = Literal["published", "trained", "running"]
"""See `pose_guider.Normalisation`; the published weights have no other."""

_SD15_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_MOTION = ".motion_modules."
_BLOCK = "temporal_transformer.transformer_blocks.0."
_MOTION_NAMES = (
    (r"transformer_blocks\.0\.attn([12])\.", lambda match: f"{_BLOCK}attention_blocks.{int(match[1]) - 1}."),
    (r"transformer_blocks\.0\.norm([12])\.", lambda match: f"{_BLOCK}norms.{int(match[1]) - 1}."),
    (r"transformer_blocks\.0\.norm3\.", lambda _: f"{_BLOCK}ff_norm."),
    (r"transformer_blocks\.0\.ff\.", lambda _: f"{_BLOCK}ff."),
    (r"(norm|proj_in|proj_out)\.", lambda match: f"temporal_transformer.{match[1]}."),
)
"""How a parameter within a motion module begins here → in AnimateDiff's files."""


def published_names(key: str) -> tuple[str, ...]:
    """Under which names the published files have one of our tensors: one, but for the motion modules' position code.

    That code is a fixed table, which AnimateDiff stores twice for each module.
    """
    module, separator, rest = key.partition(_MOTION)
    if not separator:
        return (key,)
    index, _, rest = rest.partition(".")
    prefix = f"{module}{_MOTION}{index}."
    if rest == "transformer_blocks.0.pos_embed.pe":
        return tuple(f"{prefix}{_BLOCK}attention_blocks.{number}.pos_encoder.pe" for number in range(2))
    for pattern, new in _MOTION_NAMES:
        if match := re.match(pattern, rest):
            return (f"{prefix}{new(match)}{rest[match.end() :]}",)
    raise AssertionError(f"a motion module has no {rest}")


def load_reference_unet(file: str | Path) -> tuple[ReferenceNet, KeyReport]:
    """`reference_unet.pth` → the network in evaluation mode, float32, and the report.

    Raises:
        ValueError: The file is missing, damaged, or holds other tensors; the report is in the text.
    """
    with torch.device("meta"):
        model = ReferenceNet()
    report = fill(model, read_weights(file), "reference_unet", Path(file).name)
    return model.eval(), report


def load_denoising_unet(file: str | Path, motion_module: str | Path | None = None) -> tuple[Denoiser, list[KeyReport]]:
    """`denoising_unet.pth`, and motion modules from `motion_module.pth` or `mm_sd_v15_v2.ckpt`.

    Args:
        file: The spatial weights.
        motion_module: None: a network without motion modules, for single frames.

    Returns:
        The network in evaluation mode, float32, and the reports of both files.

    Raises:
        ValueError: A file is missing, damaged, or holds other tensors; the report is in the text.
    """
    with torch.device("meta"):
        model = Denoiser(motion=motion_module is not None)
    reports = [fill(model, read_weights(file), "denoising_unet", Path(file).name)]
    if motion_module is not None:
        reports.append(load_motion_module(model, motion_module))
    return model.eval(), reports


def load_motion_module(model: Denoiser, file: str | Path) -> KeyReport:
    """Fill the motion modules of a denoiser, in place; all else stays as it is.

    Raises:
        ValueError: The file is missing, damaged, or holds other tensors (such as AnimateDiff's first version, which has
            no module in the middle and 24 positions); the report is in the text.
    """
    return fill(model, read_weights(file), "motion_module", Path(file).name)


def load_pose_guider(file: str | Path, mode: PoseGuiderMode = "published") -> tuple[PoseGuider, KeyReport]:
    """`pose_guider.pth` → the network in evaluation mode, float32, and the report.

    The published network does not attend to the reference: it was trained without.

    Args:
        file: The published file.
        mode: How it normalises. `published` is what the published program shows; `trained` and `running` are in the
            range that it was trained in.

    Raises:
        ValueError: The file is missing, damaged, or holds other tensors; the report is in the text.
    """
    with torch.device("meta"):
        model = PoseGuider(**published_pose_guider(mode))
    report = fill(model, read_weights(file), "pose_guider", Path(file).name)
    return model.eval(), report


def published_pose_guider(mode: PoseGuiderMode = "published") -> dict[str, Any]:
    """Settings of the published PoseGuider."""
    return {"normalisation": mode, "reference_attention": False, "zero_outputs": False}


def read_sd15_unet(folder: str | Path) -> dict[str, Tensor]:
    """The UNet of a Stable Diffusion 1.5 folder, to begin training from.

    Give it to `ReferenceNet.load_denoiser` and `Denoiser.load_spatial`.

    Args:
        folder: In the layout of `diffusers`, or its `unet` folder.

    Raises:
        ValueError: There are no weights, or they are of another network.
    """
    places = [Path(folder) / "unet", Path(folder)]
    file = next((place / name for place in places for name in _SD15_FILES if (place / name).is_file()), None)
    if file is None:
        raise ValueError(f"no UNet in {folder}: wanted is unet/{_SD15_FILES[0]} (or .bin) of Stable Diffusion 1.5")
    found = read_weights(file)
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in Denoiser().state_dict().items()}
    report = compare_keys(file.name, "UNet of Stable Diffusion 1.5", found, wanted)
    if not report.complete:
        raise ValueError(f"{file} is not of Stable Diffusion 1.5\n{report}")
    return {key: value.to(torch.float32, copy=True) for key, value in found.items()}


def fill(model: nn.Module, found: Mapping[str, Tensor], kind: Kind, file: str) -> KeyReport:
    """Fill a model, or the part of it that a published file holds, with tensors under their published names.

    Args:
        model: Changed in place; its tensors may be on the meta device.
        found: Published name → tensor, of any precision; they are copied to float32.
        kind: Which file they are of.
        file: Its name, for the report.

    Raises:
        ValueError: A tensor is missing, left over, or of another shape; the report is in the text.
    """
    own = {key: value for key, value in model.state_dict().items() if _belongs(key, kind)}
    names = {key: published_names(key) for key in own}
    wanted = {name: own[key].shape for key in own for name in names[key]}
    report = compare_keys(file, kind, found, wanted)
    if not report.complete:
        likely = kind_of(found)
        hint = f"\nIt looks like a {likely}" if likely not in (None, kind) else ""
        raise ValueError(f"{file} does not hold the weights of a {kind}\n{report}{hint}")
    for several in (value for value in names.values() if len(value) > 1):
        if not torch.equal(found[several[0]], found[several[1]]):
            raise ValueError(f"{file}: {several[0]} and {several[1]} differ, and the network has one such table")
    state = {key: _copy(found[names[key][0]], own[key]) for key in own}
    model.load_state_dict(state, assign=True, strict=False)
    return report


def kind_of(names: Iterable[str]) -> Kind | None:
    """Which published file has these tensors, told from a name or two; None: none of them."""
    names = set(names)
    if any(_MOTION in name for name in names):
        return "motion_module"
    if "cross_attn1.norm.weight" in names:
        return "pose_guider"
    if "mid_block.attentions.0.norm.weight" in names:
        return "denoising_unet" if "conv_out.weight" in names else "reference_unet"
    return None


def _belongs(key: str, kind: Kind) -> bool:
    if kind == "motion_module":
        return _MOTION in key
    return kind != "denoising_unet" or _MOTION not in key


def _copy(tensor: Tensor, like: Tensor) -> Tensor:
    # Not a view of the file, which may change; counters stay whole numbers.
    dtype = torch.float32 if like.is_floating_point() else like.dtype
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
