"""Conversion of published files and trainings to folders of ours: one model for speech, or a whole pipeline.

The networks of a pipeline are written one after the other, so that memory for the largest one is enough.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Container, Mapping
from pathlib import Path

from infer.weights.licences import TRAINING_FILE
from infer.weights.pipeline_weights import INDEX_FILE, NETWORKS, PipelinePlace, weight_hash
from infer.weights.published_files import PublishedFiles
from infer.weights.published_pipeline import SETTINGS, print_report, published_networks, with_mode
from infer.weights.speech_weights import CLASSES, CONFIG_FILE, ORIGIN_FILE, Chunking, Kind, WeightsPlace
from talkinghead.files.foreign import JSON_BYTES, read_limited
from talkinghead.models.audio2lmk.published import load_published
from talkinghead.models.lmk2video.meta_networks import HollowNetworks
from talkinghead.models.lmk2video.pose_guider import PoseGuider
from talkinghead.models.lmk2video.published import PoseGuiderMode
from talkinghead.models.network_settings import read_settings
from talkinghead.models.noise_schedule import COMPAT_INFER
from talkinghead.models.weight_files import read_weights
from talkinghead.pipelines.talking_head import TalkingHeadPipeline
from talkinghead.provenance import hash_file, pretty_json

_SETTINGS_FILES = (INDEX_FILE, CONFIG_FILE, "scheduler_config.json", ORIGIN_FILE, TRAINING_FILE, "speakers.json")
_WEIGHT_SUFFIXES = (".safetensors", ".bin")


def write_speech_model(kind: Kind, source: Path, folder: Path, *, chunking: Chunking | None = None) -> None:
    """Write a published file as `config.json` and safetensors; prints the key report on stderr.

    Args:
        kind: Model that the file holds.
        source: `audio2mesh.pt`, `audio2pose.pt`, or a safetensors file of it.
        folder: Empty folder to write into.
        chunking: Way in which the pose model decodes long speech; None: `continue`.

    Raises:
        ValueError: The file is damaged, or keys are missing, unexpected or of another shape.
        OSError: The disk is full.
    """
    # Load with the keys renamed; the report tells which were found, missing or left over.
    model, report = load_published(kind, source)
    print(report, file=sys.stderr)
    if chunking is not None:
        model.register_to_config(chunking=chunking)
    model.save_pretrained(folder)
    # Marks the weights as published, which decides how images are projected (`compat`).
    origin = {"origin": "published", "kind": kind, "file": source.name, "sha256": hash_file(source)}
    (folder / ORIGIN_FILE).write_bytes(pretty_json(origin))


def write_pipeline(
    pipeline: PipelinePlace,
    speech: Mapping[Kind, WeightsPlace],
    folder: Path,
    *,
    pose_guider_mode: PoseGuiderMode | None = None,
) -> None:
    """Write a folder for `TalkingHeadPipeline.from_pretrained` and `--weights`; prints key reports on stderr.

    Args:
        pipeline: Published files, or a pipeline's folder.
        speech: Models for speech that go into the folder, by kind.
        folder: Empty folder to write into.
        pose_guider_mode: Normalisation of a published PoseGuider; None: the one it has, or `published`.

    Raises:
        ValueError: Weights are damaged, missing or of another shape.
        OSError: The disk is full.
    """
    # The networks, then each model for speech in a folder of its own.
    if pipeline.published is not None:
        _convert(pipeline.published, pose_guider_mode or "published", folder)
    else:
        _copy(pipeline.path, folder, leave_out=speech, pose_guider_mode=pose_guider_mode)
    for kind, place in speech.items():
        _add_speech(kind, place, folder / kind)
    # The index names the models for speech, as the pipeline itself would.
    index = read_settings(folder / INDEX_FILE, "JSON")
    for kind in speech:
        index[kind] = [f"talkinghead.models.audio2lmk.{kind}", CLASSES[kind]]
    (folder / INDEX_FILE).write_bytes(pretty_json(index))


def _convert(files: PublishedFiles, mode: PoseGuiderMode, folder: Path) -> None:
    """Write AniPortrait's files as a pipeline's folder."""
    # One network in memory at a time: all together take 10 GB.
    for name, network in published_networks(files, mode, print_report):
        network.save_pretrained(folder / name)
        del network  # before the next one is read
    # The schedule of AniPortrait's program, which its networks were trained for.
    scheduler = COMPAT_INFER.sampler("ddim")
    scheduler.save_pretrained(folder / "scheduler")
    # The index as the pipeline itself writes it, without holding the weights of all networks.
    TalkingHeadPipeline(**vars(HollowNetworks.of_folder(folder)), scheduler=scheduler, **SETTINGS).save_config(folder)
    # Where the folder comes from: file names and hashes, for the sidecars of videos made with it.
    hashes = {name: {"file": path.name, "sha256": weight_hash(path)} for name, path in vars(files).items()}
    origin = {"origin": "published", "kind": "lmk2video", "pose_guider": mode, "files": hashes}
    (folder / ORIGIN_FILE).write_bytes(pretty_json(origin))


def _copy(source: Path, folder: Path, *, leave_out: Container[str], pose_guider_mode: PoseGuiderMode | None) -> None:
    """Copy a pipeline's folder, without the models for speech that are replaced."""
    print(f"{source}: {', '.join(NETWORKS)}", file=sys.stderr)
    _copy_files(source, folder, source)
    for name in (*NETWORKS, "scheduler", *CLASSES):
        if name not in leave_out and (source / name).is_dir():
            (folder / name).mkdir()
            _copy_files(source / name, folder / name, source)
    # The mode is a setting only: the weights stay as copied.
    if pose_guider_mode is not None:
        guider = with_mode(PoseGuider.from_pretrained(source / "pose_guider"), pose_guider_mode)
        guider.save_config(folder / "pose_guider")


def _add_speech(kind: Kind, place: WeightsPlace, folder: Path) -> None:
    """Add a model for speech: its whole folder with speakers and expression basis, or a published file converted."""
    if place.is_file:
        folder.mkdir()
        write_speech_model(kind, place.path, folder)
    else:
        print(f"{place.path}: {kind}", file=sys.stderr)
        folder.mkdir()
        _copy_files(place.path, folder, place.path)


def _copy_files(source: Path, folder: Path, root: Path) -> None:
    """Copy the settings and weights of one network, and nothing else that lies next to them.

    The folder may be a stranger's, and a copy of it may be passed on: a file that is a link, or no weights, could be
    any file of the user's. Links to weights may stay links: what they lead to is read as tensors first.
    """
    for file in sorted(source.iterdir()):
        if file.is_dir():
            continue
        if file.name in _SETTINGS_FILES or file.name.endswith(".index.json"):
            if any(part.is_symlink() for part in (file, *file.parents) if part.is_relative_to(root) and part != root):
                raise ValueError(f"{file} is a link, which could lead to any file of yours: put the file in its place")
            content = read_limited(file, JSON_BYTES, "file of settings")
            # The folder where the network lay on the machine that made it, of no use to anybody.
            if b"_name_or_path" in content:
                settings = read_settings(file)
                content = pretty_json({name: value for name, value in settings.items() if name != "_name_or_path"})
            (folder / file.name).write_bytes(content)
        elif file.suffix in _WEIGHT_SUFFIXES:
            read_weights(file)
            shutil.copyfile(file, folder / file.name)
        else:
            print(f"{file}: left out, it is neither settings nor weights", file=sys.stderr)
