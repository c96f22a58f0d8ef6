"""The commands of `python -m infer`: each a function whose arguments are its options, returning its result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from infer.request import LandmarkRequest
from infer.weights import WeightsPlace, find_weights
from talkinghead.staging import check_writable

Flat = tyro.conf.OmitArgPrefixes
NewFolder = Annotated[Path, tyro.conf.arg(aliases=("-o",), help="New folder.")]


def landmarks(request: Flat[LandmarkRequest]) -> str:
    """Animate a portrait's landmarks from speech: the drawn video with the speech, and the arrays beside it."""
    from infer.landmarks import make_landmark_video

    return str(make_landmark_video(request))


def convert(
    output: NewFolder,
    audio2mesh: Annotated[Path | None, tyro.conf.arg(help="AniPortrait's audio2mesh.pt.")] = None,
    audio2pose: Annotated[Path | None, tyro.conf.arg(help="AniPortrait's audio2pose.pt.")] = None,
    chunking: Annotated[
        Literal["continue", "restart"] | None,
        tyro.conf.arg(help="Long speech with audio2pose: continue (default), or restart every 5 s, as its authors."),
    ] = None,
) -> str:
    """Turn a published file into a folder of weights (config.json and safetensors), after comparing every key."""
    from infer.convert import convert as convert_file

    if audio2mesh is not None and audio2pose is None:
        return str(convert_file("audio2mesh", audio2mesh, output, chunking=chunking))
    if audio2pose is not None and audio2mesh is None:
        return str(convert_file("audio2pose", audio2pose, output, chunking=chunking))
    raise ValueError("give one of --audio2mesh and --audio2pose: one file makes one folder")


def evaluate(
    data: Annotated[str, tyro.conf.arg(help="Data folder, or a URI such as s3://bucket/folder.")],
    split: Literal["train", "val", "test"] = "val",
    audio2mesh: Annotated[Path | None, tyro.conf.arg(help="Weights of the mesh model.")] = None,
    audio2pose: Annotated[Path | None, tyro.conf.arg(help="Weights of the head pose model.")] = None,
    version: Annotated[str | None, tyro.conf.arg(help="Annotation version; default: the newest.")] = None,
    limit: Annotated[int | None, tyro.conf.arg(help="Only the first so many clips.")] = None,
    output: Annotated[
        Path | None, tyro.conf.arg(aliases=("-o",), help="Folder for validation.json and validation.txt.")
    ] = None,
) -> str:
    """Measure weights on the annotated clips of a split, with baselines beside every number; prints the table."""
    place = _one_model(audio2mesh, audio2pose)
    from infer.evaluation_result import JSON_FILE

    if output is not None:
        check_writable(output / JSON_FILE)
    from infer.split_evaluation import evaluate_split, write_evaluation

    evaluation = evaluate_split(place, data, split, limit=limit, version=version)
    if output is None:
        return evaluation.table()
    print(evaluation.table(), file=sys.stderr)
    return str(write_evaluation(evaluation, split, output))


def _one_model(audio2mesh: Path | None, audio2pose: Path | None) -> WeightsPlace:
    if audio2mesh is not None and audio2pose is None:
        return find_weights("audio2mesh", audio2mesh)
    if audio2pose is not None and audio2mesh is None:
        return find_weights("audio2pose", audio2pose)
    raise ValueError("give one of --audio2mesh and --audio2pose")
