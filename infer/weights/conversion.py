"""One folder that holds a whole pipeline: AniPortrait's files converted, or trainings put together.

The networks are written one after the other, so that memory for the largest one is enough.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infer.weights.pipeline_weights import INDEX_FILE, NETWORKS, PipelinePlace, weight_hash
from infer.weights.speech_weights import CLASSES, ORIGIN_FILE, Kind, WeightsPlace
from talkinghead.files.atomic import check_writable, staged_folder
from talkinghead.provenance import pretty_json

if TYPE_CHECKING:
    from infer.weights.published_files import PublishedFiles
    from talkinghead.models.lmk2video.published import PoseGuiderMode

from typing import Literal

from infer.weights.published_files import PublishedFiles
from infer.weights.speech_weights import PUBLISHED_SUFFIXES
from talkinghead.provenance import hash_file

Chunking = Literal["continue", "restart"]


def convert(kind: Kind, source: Path, folder: Path, *, chunking: Chunking | None = None) -> Path:
    """Turn a published file into a folder with `config.json` and safetensors; prints the key report on stderr.

    Args:
        kind: What the file holds.
        source: `audio2mesh.pt`, `audio2pose.pt`, or a safetensors file of it.
        folder: New or empty.
        chunking: How the pose model decodes long speech: `continue` (also when None), or `restart`, as its authors do:
            every 5 s from pose 0, and the head jumps there.

    Raises:
        ValueError: A chunking for the mesh model; the file is damaged, or keys are missing, unexpected or of another
            shape; or the folder is in use.
        OSError: The disk is full, or the folder cannot be written.
    """
    if chunking is not None and kind != "audio2pose":
        raise ValueError("--chunking is of the head pose model: leave it out for --audio2mesh")
    if not source.is_file() or source.suffix not in PUBLISHED_SUFFIXES:
        raise ValueError(f"{source} is no published file: wanted is {kind}.pt")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} is there already: give another name, or remove it first")
    check_writable(folder / ORIGIN_FILE if folder.is_dir() else folder)
    with staged_folder(folder) as scratch:
        write_speech_model(kind, source, scratch, chunking=chunking)
    return folder


def write_speech_model(kind: Kind, source: Path, folder: Path, *, chunking: Chunking | None = None) -> None:
    """Write the content of such a folder; see `convert`."""
    from talkinghead.models.audio2lmk.published import load_published

    model, report = load_published(kind, source)
    print(report, file=sys.stderr)
    if chunking is not None:
        model.register_to_config(chunking=chunking)
    model.save_pretrained(folder)
    origin = {"origin": "published", "kind": kind, "file": source.name, "sha256": hash_file(source)}
    (folder / ORIGIN_FILE).write_bytes(pretty_json(origin))


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What goes into one folder."""

    pipeline: PipelinePlace
    audio2mesh: WeightsPlace | None = None
    audio2pose: WeightsPlace | None = None
    pose_guider_mode: PoseGuiderMode | None = None
    """Of published weights; None: as they are, or `published`."""

    @property
    def speech(self) -> dict[Kind, WeightsPlace]:
        """The models for speech that there are."""
        both: dict[Kind, WeightsPlace | None] = {"audio2mesh": self.audio2mesh, "audio2pose": self.audio2pose}
        return {kind: place for kind, place in both.items() if place is not None}


def write_bundle(bundle: Bundle, folder: Path) -> Path:
    """Write a folder that `TalkingHeadPipeline.from_pretrained` and `--weights` take; prints key reports on stderr.

    Args:
        bundle: What goes into it.
        folder: New or empty. It appears when it is whole.

    Raises:
        ValueError: Weights are damaged, missing or of another shape; or the folder is in use.
        OSError: The disk is full, or the folder cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} is there already: give another name, or remove it first")
    check_writable(folder / ORIGIN_FILE if folder.is_dir() else folder)
    place = bundle.pipeline
    with staged_folder(folder) as scratch:
        if place.published is not None:
            _convert(place.published, bundle.pose_guider_mode or "published", scratch)
        else:
            _copy(bundle, scratch)
        for kind, speech in bundle.speech.items():
            _write_speech(kind, speech, scratch / kind)
        _name_speech(scratch, bundle.speech)
    return folder


def _convert(files: PublishedFiles, mode: PoseGuiderMode, folder: Path) -> None:
    from infer.weights.published_pipeline import SETTINGS, print_report, published_networks
    from talkinghead.models.lmk2video.meta_networks import HollowNetworks
    from talkinghead.models.noise_schedule import COMPAT_INFER
    from talkinghead.pipelines.talking_head import TalkingHeadPipeline

    for name, network in published_networks(files, mode, print_report):
        network.save_pretrained(folder / name)
        del network  # before the next one is read
    scheduler = COMPAT_INFER.sampler("ddim")
    scheduler.save_pretrained(folder / "scheduler")
    # The index as the pipeline itself writes it, without holding the weights of all networks.
    TalkingHeadPipeline(**vars(HollowNetworks.of_folder(folder)), scheduler=scheduler, **SETTINGS).save_config(folder)
    hashes = {name: {"file": path.name, "sha256": weight_hash(path)} for name, path in vars(files).items()}
    origin = {"origin": "published", "kind": "lmk2video", "pose_guider": mode, "files": hashes}
    (folder / ORIGIN_FILE).write_bytes(pretty_json(origin))


def _copy(bundle: Bundle, folder: Path) -> None:
    """A pipeline's folder, and what lies beside it; its models for speech only where none are given."""
    source = bundle.pipeline.path
    print(f"{source}: {', '.join(NETWORKS)}", file=sys.stderr)
    for entry in sorted(source.iterdir()):
        if entry.name in bundle.speech:
            continue
        if entry.is_dir():
            shutil.copytree(entry, folder / entry.name)
        else:
            shutil.copyfile(entry, folder / entry.name)
    if bundle.pose_guider_mode is not None:
        from infer.weights.published_pipeline import with_mode
        from talkinghead.models.lmk2video.pose_guider import PoseGuider

        guider = with_mode(PoseGuider.from_pretrained(source / "pose_guider"), bundle.pose_guider_mode)
        guider.save_config(folder / "pose_guider")


def _write_speech(kind: Kind, place: WeightsPlace, folder: Path) -> None:
    """A model for speech with what its training left beside it, or converted."""
    if place.is_file:
        folder.mkdir()
        write_speech_model(kind, place.path, folder)
    else:
        print(f"{place.path}: {kind}", file=sys.stderr)
        shutil.copytree(place.path, folder)


def _name_speech(folder: Path, kinds: Iterable[Kind]) -> None:
    """Name the models for speech in the pipeline's index, as the pipeline itself would."""
    index = json.loads((folder / INDEX_FILE).read_bytes())
    for kind in kinds:
        index[kind] = [f"talkinghead.models.audio2lmk.{kind}", CLASSES[kind]]
    (folder / INDEX_FILE).write_bytes(pretty_json(index))
