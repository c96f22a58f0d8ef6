"""Folders of ours made of published files: one model for speech, or a whole pipeline, also out of trainings.

The networks of a pipeline are written one after the other, so that memory for the largest one is enough.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Container, Mapping
from pathlib import Path

from infer.weights.pipeline_weights import INDEX_FILE, NETWORKS, PipelinePlace, weight_hash
from infer.weights.published_files import PublishedFiles
from infer.weights.published_pipeline import SETTINGS, print_report, published_networks, with_mode
from infer.weights.speech_weights import CLASSES, ORIGIN_FILE, Chunking, Kind, WeightsPlace
from talkinghead.models.audio2lmk.published import load_published
from talkinghead.models.lmk2video.meta_networks import HollowNetworks
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.published import PoseGuiderMode
from talkinghead.models.noise_schedule import COMPAT_INFER
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from talkinghead.provenance import hash_file, pretty_json


def write_speech_model(kind: Kind, source: Path, folder: Path, *, chunking: Chunking | None = None) -> None:
    """Write a published file as `config.json` and safetensors; prints the key report on stderr.

    Args:
        kind: What the file holds.
        source: `audio2mesh.pt`, `audio2pose.pt`, or a safetensors file of it.
        folder: Empty folder.
        chunking: How the pose model decodes long speech; None: `continue`.

    Raises:
        ValueError: The file is damaged, or keys are missing, unexpected or of another shape.
        OSError: The disk is full.
    """
    model, report = load_published(kind, source)
    print(report, file=sys.stderr)
    if chunking is not None:
        model.register_to_config(chunking=chunking)
    model.save_pretrained(folder)
    origin = {"origin": "published", "kind": kind, "file": source.name, "sha256": hash_file(source)}
    (folder / ORIGIN_FILE).write_bytes(pretty_json(origin))


def write_pipeline(
    pipeline: PipelinePlace,
    speech: Mapping[Kind, WeightsPlace],
    folder: Path,
    *,
    pose_guider_mode: PoseGuiderMode | None = None,
) -> None:
    """Write what `TalkingHeadPipeline.from_pretrained` and `--weights` take; prints key reports on stderr.

    Args:
        pipeline: Published files, or a pipeline's folder.
        speech: The models for speech that go into it.
        folder: Empty folder.
        pose_guider_mode: How the PoseGuider of published weights normalises; None: as it is, or `published`.

    Raises:
        ValueError: Weights are damaged, missing or of another shape.
        OSError: The disk is full.
    """
    if pipeline.published is not None:
        _convert(pipeline.published, pose_guider_mode or "published", folder)
    else:
        _copy(pipeline.path, folder, leave_out=speech, pose_guider_mode=pose_guider_mode)
    for kind, place in speech.items():
        _add_speech(kind, place, folder / kind)
    # The index names the models for speech, as the pipeline itself would.
    index = json.loads((folder / INDEX_FILE).read_bytes())
    for kind in speech:
        index[kind] = [f"talkinghead.models.audio2lmk.{kind}", CLASSES[kind]]
    (folder / INDEX_FILE).write_bytes(pretty_json(index))


def _convert(files: PublishedFiles, mode: PoseGuiderMode, folder: Path) -> None:
    """AniPortrait's files as a pipeline's folder."""
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


def _copy(source: Path, folder: Path, *, leave_out: Container[str], pose_guider_mode: PoseGuiderMode | None) -> None:
    """A pipeline's folder with all that lies in it but the models for speech that come from elsewhere."""
    print(f"{source}: {', '.join(NETWORKS)}", file=sys.stderr)
    for entry in sorted(source.iterdir()):
        if entry.name in leave_out:
            continue
        if entry.is_dir():
            shutil.copytree(entry, folder / entry.name)
        else:
            shutil.copyfile(entry, folder / entry.name)
    if pose_guider_mode is not None:
        guider = with_mode(PoseGuider.from_pretrained(source / "pose_guider"), pose_guider_mode)
        guider.save_config(folder / "pose_guider")


def _add_speech(kind: Kind, place: WeightsPlace, folder: Path) -> None:
    """A model for speech with what its training left next to it, or converted."""
    if place.is_file:
        folder.mkdir()
        write_speech_model(kind, place.path, folder)
    else:
        print(f"{place.path}: {kind}", file=sys.stderr)
        shutil.copytree(place.path, folder)
