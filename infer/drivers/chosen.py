"""The driver, or the drivers of the parts of the face, that the options of `infer animate` name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from infer.drivers.composed import ComposedDriving
from infer.drivers.driving import Driving, FileDriving
from infer.drivers.motion_file import FileDriver, FileOptions
from infer.drivers.speech import SpeechDriving
from infer.drivers.still import StillDriving
from infer.drivers.video import VideoDriver, VideoDriving
from infer.part_source import PartSource
from infer.request import AnimateRequest
from talkinghead.pipelines import registry
from talkinghead.pipelines.landmark_renderer import LandmarkRenderer

DRIVERS: dict[str, Any] = {VideoDriver.name: VideoDriver, FileDriver.name: FileDriver}
"""Drivers that stand here, as they use the landmark engines of `annotate`; the others are in the registry."""
_OWN = ("audio", "video", "file", "still")
_POSES = ("keep", "still", "audio:FILE", "video:FILE", "file:FILE", "template:FILE.npy")


def driver_classes() -> dict[str, Any]:
    """All drivers by name: the library's, those of this package, and those of other packages."""
    found = {name: registry.driver_class(name) for name in registry.driver_names()}
    if taken := sorted(found.keys() & DRIVERS):
        raise ValueError(f"a package wants to be the driver {taken[0]!r}, which there is already: uninstall it")
    return found | DRIVERS


def chosen_driving(request: AnimateRequest) -> Driving:
    """What drives the portrait.

    Raises:
        ValueError: An option has none of its forms, or a file is missing among the options.
    """
    mouth_source, pose, own_pose = request.mouth_source, None, request.pose or "keep"
    # Speech and videos move the head themselves, in several ways; otherwise another driver does.
    mine = {
        "audio": ("keep", "audio", "still", "video:", "template:"),
        "video": ("keep", "relative", "absolute", "still"),
    }.get(mouth_source.kind, ("keep",))
    if not own_pose.startswith(mine):
        pose = _part(request, PartSource.parse("--pose", own_pose, *_POSES), sound=None)
        own_pose = "still" if mouth_source.kind in ("audio", "video") else "keep"
    elif own_pose.startswith("audio:"):
        pose, own_pose = _part(request, PartSource.parse("--pose", own_pose, *_POSES), sound=None), "still"

    mouth = _part(request, mouth_source, sound=request.audio, pose=own_pose)
    eyes = None if request.eyes == "keep" else _part(request, request.eyes_source, sound=None)
    return mouth if pose is None and eyes is None else ComposedDriving(mouth=mouth, pose=pose, eyes=eyes)


def _part(request: AnimateRequest, source: PartSource, *, sound: Path | None, pose: str = "keep") -> Driving:
    """Driving of one part; `pose` says how speech or a video moves the head."""
    kind, path = source.kind, source.path
    if kind == "audio" and path is not None:
        renders = request.renderer != LandmarkRenderer.name
        given = request.as_speech(path, {"keep": "audio"}.get(pose, pose))
        given.check_speech()
        return SpeechDriving(given, request.weights, renders=renders)
    if kind == "video" and path is not None:
        return VideoDriving(request.as_video(path, cast(Any, {"keep": "relative"}.get(pose, pose))))
    if kind in ("file", "template") and path is not None:
        options = FileOptions(
            neutralise=request.neutralise or "none",
            pose_gain=1.0 if request.pose_gain is None else request.pose_gain,
            template_fps=request.template_fps,
            seconds=request.seconds(request.limit_seconds),
        )
        return FileDriving(FileDriver(), path, options, sound=sound)
    if kind == "still":
        return StillDriving(sound)
    return FileDriving(driver_classes_of(kind)(), path, None, sound=sound)


def driver_classes_of(name: str) -> Any:
    """Class of a driver of another package; raises `ValueError` where there is none of the name."""
    found = driver_classes()
    if name not in found:
        raise ValueError(f"there is no driver {name!r}: take one of {', '.join(found)}")
    return found[name]
