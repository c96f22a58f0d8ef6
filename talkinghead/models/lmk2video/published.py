"""AniPortrait's published Lmk2Video files (Apache-2.0, arXiv 2403.17694), AnimateDiff's motion modules, and SD1.5.

| file | model | loader |
|---|---|---|
| `reference_unet.pth` | `ReferenceNet` | `load_reference_unet` |
| `denoising_unet.pth` | `Denoiser` | `load_denoising_unet` |
| `motion_module.pth`, `mm_sd_v15_v2.ckpt` | `Denoiser`'s motion modules | `load_denoising_unet`, `load_motion_module` |
| `pose_guider.pth` | `PoseGuider` | `load_pose_guider` |
| `unet/` of a Stable Diffusion 1.5 folder | first weights of both | `read_sd15_unet` |

Each `.pth` may also be a `.safetensors` with the same names. Every tensor of a file must have a place in the model, and
every tensor of the model one in the file; the report names those that do not.
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
from talkinghead.models.weight_files import read_weights
from talkinghead.models.weights import KeyReport, compare_keys

Kind = Literal["reference_unet", "denoising_unet", "motion_module", "pose_guider"]
PoseGuiderMode = Literal["published", "trained", "running"]
"""Normalisations that the published weights fit, see `pose_guider.Normalisation`."""

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
"""Beginning of a parameter's name within our motion modules → the same in AnimateDiff's files."""


def published_names(key: str) -> tuple[str, ...]:
    """Names of one of our tensors in the published files: one name, or two for a motion module's position code.

    The position code is a fixed table, which AnimateDiff stores twice for each module.

    Args:
        key: Name in our model's `state_dict`.
    """
    # Spatial parameters have the same name in both; only motion modules are named differently.
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
    """Reference network from `reference_unet.pth`.

    Args:
        file: The published file.

    Returns:
        The network in evaluation mode, float32, and the report.

    Raises:
        ValueError: The file is missing, damaged, or holds other tensors; the report is in the text.
    """
    with torch.device("meta"):
        model = ReferenceNet()
    report = fill(model, read_weights(file), "reference_unet", Path(file).name)
    return model.eval(), report


def load_denoising_unet(file: str | Path, motion_module: str | Path | None = None) -> tuple[Denoiser, list[KeyReport]]:
    """Denoiser from `denoising_unet.pth`, with motion modules from `motion_module.pth` or `mm_sd_v15_v2.ckpt`.

    Args:
        file: File of the spatial weights.
        motion_module: File of the motion modules; None: a network without them, for single frames.

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
    """Fill the motion modules of a denoiser, in place; all other parameters stay as they are.

    Args:
        model: Denoiser with motion modules.
        file: `motion_module.pth` or `mm_sd_v15_v2.ckpt`.

    Raises:
        ValueError: The file is missing, damaged, or holds other tensors (such as AnimateDiff's first version, which has
            no module in the middle and 24 positions); the report is in the text.
    """
    return fill(model, read_weights(file), "motion_module", Path(file).name)


def load_pose_guider(file: str | Path, mode: PoseGuiderMode = "published") -> tuple[PoseGuider, KeyReport]:
    """PoseGuider from `pose_guider.pth`, without attention to the reference, as it was trained.

    Args:
        file: The published file.
        mode: Normalisation. `published` computes what the published program does; `trained` and `running` take images
            in the range of its training.

    Returns:
        The network in evaluation mode, float32, and the report.

    Raises:
        ValueError: The file is missing, damaged, or holds other tensors; the report is in the text.
    """
    with torch.device("meta"):
        model = PoseGuider(**published_pose_guider(mode))
    report = fill(model, read_weights(file), "pose_guider", Path(file).name)
    return model.eval(), report


def published_pose_guider(mode: PoseGuiderMode = "published") -> dict[str, Any]:
    """Settings of the published PoseGuider, as arguments of `PoseGuider`."""
    return {"normalisation": mode, "reference_attention": False, "zero_outputs": False}


def read_sd15_unet(folder: str | Path) -> dict[str, Tensor]:
    """Weights of Stable Diffusion 1.5's UNet, float32, for `ReferenceNet.load_denoiser` and `Denoiser.load_spatial`.

    Args:
        folder: Folder of a whole model in the layout of `diffusers`, or its `unet` folder.

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
    # A single-frame denoiser of the default sizes has exactly the tensors of that UNet.
    report = compare_keys(file.name, "UNet of Stable Diffusion 1.5", found, wanted)
    if not report.complete:
        raise ValueError(f"{file} is not of Stable Diffusion 1.5\n{report}")
    return {key: value.to(torch.float32, copy=True) for key, value in found.items()}


def fill(model: nn.Module, found: Mapping[str, Tensor], kind: Kind, file: str) -> KeyReport:
    """Fill a model, or the part of it that a published file holds, with tensors under their published names.

    Args:
        model: Model to fill, in place; its tensors may be on the meta device.
        found: Tensors of any precision by their published names; they are copied to float32.
        kind: Kind of the file.
        file: Name of the file, for the report.

    Returns:
        The report, which is complete.

    Raises:
        ValueError: A tensor is missing, left over, or of another shape; the report is in the text.
    """
    # Compare names and shapes of this file's part of the model, under their published names.
    own = {key: value for key, value in model.state_dict().items() if _belongs(key, kind)}
    names = {key: published_names(key) for key in own}
    wanted = {name: own[key].shape for key in own for name in names[key]}
    report = compare_keys(file, kind, found, wanted)
    if not report.complete:
        # The usual mistake is to mix the files up, so the error says what this one looks like.
        likely = kind_of(found)
        hint = f"\nIt looks like a {likely}" if likely not in (None, kind) else ""
        raise ValueError(f"{file} does not hold the weights of a {kind}\n{report}{hint}")

    # The two copies of a position code must agree, because the model keeps only one.
    for several in (value for value in names.values() if len(value) > 1):
        if not torch.equal(found[several[0]], found[several[1]]):
            raise ValueError(f"{file}: {several[0]} and {several[1]} differ, and the network has one such table")

    # Assigned rather than copied, because the model's own tensors may be on the meta device; not strict, because a file
    # may hold only a part of the model.
    state = {key: _copy(found[names[key][0]], own[key]) for key in own}
    model.load_state_dict(state, assign=True, strict=False)
    return report


def kind_of(names: Iterable[str]) -> Kind | None:
    """Kind of the published file that has these tensors, recognised by a name or two; None: another file."""
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
    # A copy, not a view of the file, which may be mapped into memory and change. Counters stay whole numbers.
    dtype = torch.float32 if like.is_floating_point() else like.dtype
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
