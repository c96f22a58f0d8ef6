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
from infer.own_options import own_options
from infer.part_source import PartSource
from infer.request import AnimateRequest, part_forms
from talkinghead.pipelines import registry
from talkinghead.pipelines.landmark_renderer import LandmarkRenderer

DRIVERS: dict[str, Any] = {VideoDriver.name: VideoDriver, FileDriver.name: FileDriver}
"""Drivers that stand here, as they use the landmark engines of `annotate`; the others are in the registry."""
_KINDS = {"audio", "template", "keep", "relative", "absolute", *DRIVERS}
"""Words of `--mouth`, `--pose` and `--eyes` that no driver of another package can have as its name."""
_POSES_OF = {
    "audio": ("keep", "audio", "still", "video:", "template:"),
    "video": ("keep", "relative", "absolute", "still"),
}
"""Ways in which speech and videos move the head themselves; other drivers know `keep` alone."""
_NO_POSE = {"audio": "still", "video": "still"}
"""What these are told where another driver moves the head, so that no work is done in vain."""
_POSES = ("keep", "still", "audio:FILE", "video:FILE", "file:FILE", "template:FILE.npy")


def driver_classes() -> dict[str, Any]:
    """All drivers by name: the library's, those of this package, and those of other packages."""
    found = {name: registry.driver_class(name) for name in registry.driver_names()}
    if taken := sorted(found.keys() & _KINDS):
        raise ValueError(f"a package wants to be the driver {taken[0]!r}, which means another thing here: uninstall it")
    return found | DRIVERS


def chosen_driving(request: AnimateRequest) -> Driving:
    """What drives the portrait.

    Raises:
        ValueError: An option has none of its forms, or a file is missing among the options.
    """
    # Speech and videos move the head themselves, in several ways; otherwise another driver does.
    mouth, asked = request.mouth_source, request.pose or "keep"
    word, colon, _ = asked.partition(":")
    moves_itself = word + colon in _POSES_OF.get(mouth.kind, ("keep",))
    pose = None if moves_itself else PartSource.parse("--pose", asked, *part_forms(*_POSES))
    eyes = None if request.eyes == "keep" else request.eyes_source
    _check_options(request, [source for source in (mouth, pose, eyes) if source is not None])

    driving = _part(
        request, mouth, sound=request.audio, pose=asked if moves_itself else _NO_POSE.get(mouth.kind, "keep")
    )
    if pose is None and eyes is None:
        return driving
    return ComposedDriving(
        mouth=driving,
        pose=None if pose is None else _part(request, pose, sound=None),
        eyes=None if eyes is None else _part(request, eyes, sound=None),
    )


def _check_options(request: AnimateRequest, sources: list[PartSource]) -> None:
    """Refuse options for a driver of another package where none takes part, or several do."""
    others = sorted({source.kind for source in sources} & set(registry.other_drivers()))
    if request.driver_option and len(others) != 1:
        found = f"{' and '.join(others)} take part" if others else "none takes part"
        raise ValueError(f"--driver-option is for one driver of another package, but {found}")


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
    other = _other_class(kind)
    options = own_options(other, request.driver_option, "--driver-option")
    return FileDriving(other(), path, options, sound=sound)


def _other_class(name: str) -> Any:
    """Class of a driver of another package; raises `ValueError` where there is none of the name."""
    found = driver_classes()
    if name not in found:
        raise ValueError(f"there is no driver {name!r}: take one of {', '.join(found)}")
    return found[name]
