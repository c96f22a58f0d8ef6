"""`infer convert`: convert published files into folders of weights, or put trainings together into one folder."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from infer.weights.pipeline_weights import find_pipeline, published_place
from infer.weights.published_files import PublishedFiles
from infer.weights.speech_weights import (
    ORIGIN_FILE,
    PUBLISHED_SUFFIXES,
    Chunking,
    Kind,
    WeightsPlace,
    find_weights,
)
from talkinghead.files.atomic import check_writable, staged_folder


@dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """Options of `infer convert`: files and folders of a whole pipeline, or of one speech model, and the new folder."""

    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    """Folder to write; it must not exist, or be empty."""
    weights: Path | None = None
    """Folder of AniPortrait's files (denoising_unet.pth, reference_unet.pth, motion_module.pth, pose_guider.pth,
    sd-vae-ft-mse/, image_encoder/; audio2mesh.pt and audio2pose.pt if present)."""
    lmk2video: Path | None = None
    """A training of Lmk2Video (its RUN), or another pipeline's folder, to put speech models next to."""
    denoising_unet: Path | None = None
    """AniPortrait's denoising_unet.pth. This option and the next five name the files of --weights one by one."""
    reference_unet: Path | None = None
    """AniPortrait's reference_unet.pth."""
    motion_module: Path | None = None
    """AniPortrait's motion_module.pth, or AnimateDiff's mm_sd_v15_v2.ckpt."""
    pose_guider: Path | None = None
    """AniPortrait's pose_guider.pth."""
    vae: Path | None = None
    """Folder sd-vae-ft-mse."""
    image_encoder: Path | None = None
    """Folder image_encoder of sd-image-variations-diffusers."""
    audio2mesh: Path | None = None
    """audio2mesh.pt, or a folder of such weights: alone, or to go into the pipeline's folder."""
    audio2pose: Path | None = None
    """audio2pose.pt, or a folder of such weights: alone, or to go into the pipeline's folder."""
    pose_guider_mode: Literal["published", "trained", "running"] | None = None
    """Normalisation of the published PoseGuider. published (default): over the frames of a window, as the published
    program does. trained: as in its training. running: each frame by itself, so that its features are computed once."""
    chunking: Chunking | None = None
    """Handling of long speech, for audio2pose.pt alone: continue (default), or restart every 5 s as its authors do."""

    @property
    def files(self) -> dict[str, Path | None]:
        """Options that name a single file of AniPortrait's Lmk2Video → its path, or None."""
        return {field.name: getattr(self, field.name) for field in fields(PublishedFiles)}


def convert_weights(request: ConvertRequest) -> Path:
    """Convert a whole pipeline, or one speech model.

    Args:
        request: Options of the command.

    Returns:
        Path of the new folder.

    Raises:
        ValueError: Options do not go together, weights are damaged, missing or of another shape, or the folder is
            there already.
        OSError: The disk is full, or the folder cannot be written.
    """
    if request.weights or request.lmk2video or any(request.files.values()):
        return _convert_pipeline(request)
    return _convert_speech_model(request)


def _convert_speech_model(request: ConvertRequest) -> Path:
    """Convert one published speech model into a folder of its own."""
    # Mistakes in the request are reported before PyTorch and the networks' code are imported.
    if request.pose_guider_mode is not None:
        raise ValueError("--pose-guider-mode belongs to a whole pipeline: give --weights too")
    both: dict[Kind, Path | None] = {"audio2mesh": request.audio2mesh, "audio2pose": request.audio2pose}
    named: list[tuple[Kind, Path]] = [(kind, path) for kind, path in both.items() if path is not None]
    if len(named) != 1:
        raise ValueError(
            "give one of --audio2mesh and --audio2pose (one file makes one folder), or a whole pipeline: --weights,"
            " --lmk2video, or the single files"
        )
    kind, source = named[0]
    if request.chunking is not None and kind != "audio2pose":
        raise ValueError("--chunking belongs to the head pose model: leave it out for --audio2mesh")
    if not source.is_file() or source.suffix not in PUBLISHED_SUFFIXES:
        raise ValueError(f"{source} is no published file: wanted is {kind}.pt")
    _check_free(request.output)

    from infer.weights.conversion import write_speech_model

    # Written next to its place and renamed when it is whole.
    with staged_folder(request.output) as scratch:
        write_speech_model(kind, source, scratch, chunking=request.chunking)
    return request.output


def _convert_pipeline(request: ConvertRequest) -> Path:
    """Write a whole pipeline: the image networks, and the speech models that are named or lie next to them."""
    # As above, mistakes come first. The image networks have one of three sources.
    if request.chunking is not None:
        raise ValueError("--chunking goes with --audio2pose alone: convert it first, then name the new folder")
    if request.lmk2video is not None:
        if request.weights is not None or any(request.files.values()):
            raise ValueError("--lmk2video names the whole of a pipeline: leave --weights and single files out")
        pipeline = find_pipeline(request.lmk2video)
    elif any(request.files.values()):
        pipeline = published_place(PublishedFiles.named(request.files, request.weights))
    else:
        assert request.weights is not None
        pipeline = find_pipeline(request.weights)

    # Speech models go into the same folder. A pipeline's folder is copied only if something is added or changed.
    both: dict[Kind, WeightsPlace | None] = {
        "audio2mesh": _speech("audio2mesh", request.audio2mesh, request.weights),
        "audio2pose": _speech("audio2pose", request.audio2pose, request.weights),
    }
    speech: dict[Kind, WeightsPlace] = {kind: place for kind, place in both.items() if place is not None}
    if pipeline.published is None and not speech and request.pose_guider_mode is None:
        raise ValueError(f"{pipeline.path} is a pipeline's folder already: there is nothing to convert")
    _check_free(request.output)

    from infer.weights.conversion import write_pipeline

    with staged_folder(request.output) as scratch:
        write_pipeline(pipeline, speech, scratch, pose_guider_mode=request.pose_guider_mode)
    return request.output


def _check_free(folder: Path) -> None:
    """Raise `ValueError` when the new folder is there already, or `OSError` when it cannot be written."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} is there already: give another name, or remove it first")
    check_writable(folder / ORIGIN_FILE if folder.is_dir() else folder)


def _speech(kind: Kind, given: Path | None, folder: Path | None) -> WeightsPlace | None:
    """Location of a speech model that is named, else of one in the folder of weights; None without either."""
    if given is not None:
        return find_weights(kind, given)
    # Without the option a model is optional, so its absence is no error as in `find_weights`.
    here = folder is not None and any(
        place.exists() for place in (folder / kind, *(folder / f"{kind}{suffix}" for suffix in PUBLISHED_SUFFIXES))
    )
    return find_weights(kind, folder) if here and folder is not None else None
