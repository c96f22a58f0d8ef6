"""Weights of a whole pipeline: found and checked first, loaded later, and described in the sidecar.

A user may name a pipeline's folder (made by `infer convert`, or a training's `pretrained_model/`), the RUN folder
of a training of Lmk2Video, a folder that holds one of these in `lmk2video/`, `stage2/` or `stage1/`, or the folder
of AniPortrait's published files.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer.weights.adapters import AdapterPlace
from infer.weights.licences import published_licence, trained_licence
from infer.weights.published_files import PUBLISHED_FPS, PUBLISHED_SIZE, PublishedFiles, holds_published
from infer.weights.speech_weights import CONFIG_FILE, EXPORT_FOLDER, ORIGIN_FILE, not_there
from talkinghead.models.network_settings import read_settings
from talkinghead.provenance import hash_bytes, hash_file, hash_files
from talkinghead.timebase import FPS

if TYPE_CHECKING:
    import torch

    from talkinghead.models.lmk2video.published import PoseGuiderMode
    from talkinghead.pipelines.talking_head import TalkingHeadPipeline

log = logging.getLogger(__name__)

INDEX_FILE = "model_index.json"
PIPELINE_CLASS = "TalkingHeadPipeline"
NETWORKS = ("vae", "image_encoder", "reference_net", "denoiser", "pose_guider")
FOLDERS = ("lmk2video", "stage2", "stage1")
"""Folders below the named one that are searched for a pipeline or a training; the first one counts."""

_LARGEST_SIDE = 8192
_LARGEST_STEP = 32
_LEVELS = 8
# Suffixes of weight files, best first.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class PipelinePlace:
    """Place of a pipeline's weights; nothing is loaded."""

    path: Path
    """Folder of the pipeline, or of the published files."""
    published: PublishedFiles | None = None
    """AniPortrait's files where they are not converted; None for a pipeline's folder."""
    size: tuple[int, int]
    """Width and height that the networks have learnt, pixels."""
    size_step: int
    """Number of pixels that must divide width and height."""
    fps: float
    """Frame rate of the training."""
    compat: bool
    """Whether landmarks are projected as AniPortrait does."""
    adapter: AdapterPlace | None = None
    """Adapter that is merged into the networks when they are loaded."""

    @property
    def origin(self) -> str:
        """Origin of the weights: `published` (also when converted) or `trained`."""
        return "published" if self.published or (self.path / ORIGIN_FILE).is_file() else "trained"


def find_pipeline(path: Path) -> PipelinePlace:
    """Find the pipeline under a path that the user gave.

    Raises:
        ValueError: There is none, or it is damaged; the message tells what is wanted.
    """
    if path.name == INDEX_FILE:
        path = path.parent
    if not path.exists():
        raise not_there("the weights", path)
    if path.is_file():
        raise ValueError(f"{path} is a file: give the folder of a pipeline, or of the published files")
    # First a finished pipeline: in the folder itself, in one below, or in the export folder of these. A training that
    # was passed over on the way is named, because the user may have meant it.
    unfinished: list[Path] = []
    for folder in (path, *(path / name for name in FOLDERS)):
        for place in (folder, folder / EXPORT_FOLDER):
            if (place / INDEX_FILE).is_file():
                for other in unfinished:
                    log.warning("warning: the training in %s has not ended: %s is taken", other, place)
                return _of_folder(place)
        if (folder / "checkpoints").is_dir():
            unfinished.append(folder)
    # Then published files; only then a training that has not exported yet is the likely cause.
    for folder in (path, *(path / name for name in FOLDERS)):
        if holds_published(folder):
            return published_place(PublishedFiles.named({}, folder))
        if (folder / "checkpoints").is_dir() and not (folder / EXPORT_FOLDER).is_dir():
            raise ValueError(
                f"the training in {folder} has no {EXPORT_FOLDER} yet: it writes one when it ends; give its command"
                " again to finish it, or name the weights of a step that was validated (weights/step-…)"
            )
    raise ValueError(
        f"no pipeline in {path}: wanted is a folder with {INDEX_FILE} (a training's {EXPORT_FOLDER}, or made by python"
        f" -m infer convert), one that holds such in {', '.join(f'{n}/' for n in FOLDERS)}, or AniPortrait's files"
        " (denoising_unet.pth, …)"
    )


def published_place(files: PublishedFiles) -> PipelinePlace:
    """Place of a pipeline of AniPortrait's files."""
    return PipelinePlace(
        path=files.denoising_unet.parent,
        published=files,
        size=PUBLISHED_SIZE,
        size_step=_size_step(files.vae / CONFIG_FILE),
        fps=PUBLISHED_FPS,
        compat=True,
    )


def _of_folder(folder: Path) -> PipelinePlace:
    """Place of the pipeline in a folder, checked by its index and the folders of its networks."""
    index = _read(folder / INDEX_FILE)
    found = index.get("_class_name")
    if found != PIPELINE_CLASS:
        raise ValueError(f"{folder} holds {found or 'no pipeline'}, but {PIPELINE_CLASS} is wanted")
    # A copy that was broken off lacks folders: found here and not after minutes of loading.
    missing = [name for name in (*NETWORKS, "scheduler") if not (folder / name).is_dir()]
    if missing:
        raise ValueError(f"{folder} has no {', '.join(missing)}, though its {INDEX_FILE} names them: copy it again")
    size = (index.get("width") or PUBLISHED_SIZE[0], index.get("height") or PUBLISHED_SIZE[1])
    if not all(isinstance(side, int) and 0 < side <= _LARGEST_SIDE for side in size):
        raise ValueError(f"{folder / INDEX_FILE} gives the size {size[0]!r}x{size[1]!r}: copy the folder again")
    fps = index.get("fps", FPS)
    if not isinstance(fps, int | float) or not 0 < fps < 1000:
        raise ValueError(f"{folder / INDEX_FILE} gives the frame rate {fps!r}: copy the folder again")
    return PipelinePlace(
        path=folder,
        size=size,
        size_step=_size_step(folder / "vae" / CONFIG_FILE),
        fps=float(fps),
        compat=bool(index.get("compat")),
    )


def _size_step(config: Path) -> int:
    """Step of both sides in pixels, as in `check_image_size` of the VAEs, but without loading PyTorch."""
    settings = _read(config)
    if settings.get("_class_name") in ("CosineVae", "CosineCodec"):  # the second before it was renamed
        patch = settings.get("patch")
        if not isinstance(patch, int) or not 0 < patch <= _LARGEST_STEP:
            raise ValueError(f"{config} has blocks of {patch!r} pixels, which no VAE has: copy the folder again")
        return patch
    # Every block of the VAE of Stable Diffusion but the last halves the image.
    widths = settings.get("block_out_channels")
    if not isinstance(widths, list) or not 1 <= len(widths) <= _LEVELS:
        raise ValueError(f"{config} does not describe a VAE: copy the folder again")
    return 2 ** (len(widths) - 1)


def _read(file: Path) -> dict[str, Any]:
    """Settings in a JSON file; `ValueError` tells what to do about a missing or damaged one."""
    try:
        return read_settings(file, "JSON")
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}): copy the folder again") from error


def load_pipeline(
    place: PipelinePlace,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    pose_guider_mode: PoseGuiderMode | None = None,
) -> tuple[TalkingHeadPipeline, dict[str, Any]]:
    """Load a pipeline; published files are read where they are.

    Args:
        place: Place that `find_pipeline` found.
        dtype: Precision of the networks; None: single.
        device: Device of the networks.
        pose_guider_mode: Normalisation of a published PoseGuider. None: as converted, or `published`.

    Returns:
        Pipeline in evaluation mode, and `{"pipeline": …}` for the sidecar: path, origin, hashes of the weights.

    Raises:
        ValueError: Weights are damaged, missing or of another shape; or a mode for weights that are not published.
    """
    # Imported here: loading PyTorch and diffusers takes seconds, and finding weights needs neither. An adapter belongs
    # to weights in single precision.
    precision = dtype if place.adapter is None else None
    if place.published is not None:
        from infer.weights.published_pipeline import load_published_pipeline

        pipeline = load_published_pipeline(place.published, mode=pose_guider_mode or "published", dtype=precision)
    else:
        from talkinghead.pipelines.talking_head import TalkingHeadPipeline

        pipeline = TalkingHeadPipeline.from_pretrained(place.path, dtype=precision)
        if pose_guider_mode is not None:
            from infer.weights.published_pipeline import with_mode

            guider: Any = with_mode(pipeline.pose_guider, pose_guider_mode)
            pipeline.register_modules(pose_guider=guider if precision is None else guider.to(precision))
    if place.adapter is not None:
        _merge(place.adapter, pipeline, str(place.path))
        pipeline = pipeline if dtype is None else pipeline.to(dtype)
    pipeline = pipeline.to(device)
    about = provenance(place) | {"pose_guider": pipeline.pose_guider.config["normalisation"]}
    return pipeline, {"pipeline": about}


def _merge(adapter: AdapterPlace, pipeline: TalkingHeadPipeline, name: str) -> None:
    from torch import nn

    parts = {part: getattr(pipeline, part) for part in ("denoiser", "reference_net", "pose_guider")}
    adapter.merge(nn.ModuleDict(parts), name)


def provenance(place: PipelinePlace) -> dict[str, Any]:
    """Path, origin, licence and hashes of a pipeline's weights: a hash per file or network, and one over all."""
    if place.published is not None:
        paths = {name: Path(path) for name, path in vars(place.published).items()}
    else:
        paths = {name: place.path / name for name in NETWORKS}
    files = {name: weight_hash(path) for name, path in paths.items()}
    # One hash names the whole pipeline in a sidecar.
    whole = hash_bytes(json.dumps(files, sort_keys=True).encode())
    found = {"path": str(place.path), "origin": place.origin, "sha256": whole, "files": files}
    published = place.origin == "published"
    found["licence"] = published_licence(list(files)) if published else trained_licence(place.path)
    return found if place.adapter is None else found | {"adapter": place.adapter.provenance()}


def weight_hash(path: Path) -> str | None:
    """SHA-256 of a file of weights, or of those in a network's folder (over all, where it has several parts).

    None for a network without weights.
    """
    if path.is_file():
        return hash_file(path)
    # One form is enough where a folder has several: safetensors come first.
    for suffix in _WEIGHT_SUFFIXES:
        parts = sorted(part for part in path.glob(f"*{suffix}") if part.is_file())
        if parts:
            return hash_files(parts)
    return None
