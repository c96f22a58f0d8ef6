"""A driver that plays a saved motion: the arrays that `infer` writes next to a video of landmarks, or a pose template.

A saved motion is an `.npz` file with `mesh`, `pose` (relative to the portrait that it was made for), `pose_matrix` and
`fps`, and since version 2 of it `neutral`, the face that moved. On another portrait the expression is fitted to its
proportions (`retarget`), and the head moves from the portrait's own pose. A template moves the head alone; the face
stands still.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from infer.drivers.driving import reference_at_rest
from infer.drivers.pose_source import read_template
from infer.request import TEMPLATE_FPS
from talkinghead.face.portrait import Portrait
from talkinghead.files.foreign import open_regular, refuse_large
from talkinghead.geometry.face_regions import NUM_VERTICES
from talkinghead.motion.motion import Motion
from talkinghead.motion.neutral import neutral_mesh
from talkinghead.motion.resampling import resample_frames
from talkinghead.motion.rest_pose import placed_pose
from talkinghead.motion.retarget import transfer_expression
from talkinghead.motion.stream import MotionStream
from talkinghead.pipelines.protocols import MESHES, MotionKind
from talkinghead.runtime.progress import ProgressCallback

_MOST_BYTES = 2 << 30
_MOST_DEGREES, _MOST_CM = 1000.0, 1000.0  # limits of a plausible motion; more is another kind of array


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How a saved motion goes over to a portrait."""

    neutralise: Literal["none", "mouth", "all"] = "none"
    """What is taken out of the portrait's face first: nothing, an open mouth, or the whole expression."""
    pose_gain: float = 1.0
    """Factor of the head's angles."""
    template_fps: float = TEMPLATE_FPS
    """Frame rate of a pose template; the file does not contain it."""
    seconds: float | None = None
    """Longest length in seconds; None: all."""


@dataclass(frozen=True, kw_only=True)
class SavedMotion:
    """Motion as a file holds it."""

    pose: np.ndarray
    """Head pose relative to the portrait's, `[F, 6]` float64, degrees and cm."""
    mesh: np.ndarray | None
    """Meshes `[F, 468, 3]` float32, cm; None: the face stands still."""
    neutral: np.ndarray | None
    """Face at rest, `[468, 3]` float32, cm; None where there are no meshes."""
    fps: float


def read_motion(path: Path, template_fps: float = TEMPLATE_FPS) -> SavedMotion:
    """Read a saved motion (`.npz`) or a pose template (`.npy`).

    Raises:
        ValueError: No such file, or other content; the message tells what was found.
    """
    if path.suffix == ".npy":
        template = read_template(path, template_fps)
        return SavedMotion(pose=template.pose, mesh=None, neutral=None, fps=template.fps)
    try:
        with open_regular(path) as stream:
            refuse_large(str(path), path.stat().st_size, _MOST_BYTES, "motion")
            arrays = _arrays(stream)
    except FileNotFoundError:
        raise ValueError(f"the motion {path} is not there") from None
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} is no motion: wanted is the .npz that infer landmarks writes next to its video, or a pose template"
            f" .npy ({error})"
        ) from error
    return _checked(path, arrays)


def _arrays(stream: Any) -> dict[str, np.ndarray]:
    """The arrays that are needed, once their sizes as stored are known to be those that they unpack to."""
    with zipfile.ZipFile(stream) as archive:
        if sum(member.file_size for member in archive.infolist()) > _MOST_BYTES:
            raise ValueError("it unpacks to more than 2 GiB")
    stream.seek(0)
    with np.load(stream, allow_pickle=False) as content:
        names = [name for name in ("mesh", "pose", "fps", "neutral") if name in content]
        found = {name: content[name] for name in names}
    if missing := [name for name in ("mesh", "pose", "fps") if name not in found]:
        raise ValueError(f"it has no {', '.join(missing)}")
    return found


def _checked(path: Path, arrays: dict[str, np.ndarray]) -> SavedMotion:
    mesh, pose, fps = arrays["mesh"], arrays["pose"], arrays["fps"]
    frames = len(pose) if pose.ndim == 2 else 0
    shapes = {"mesh": (frames, NUM_VERTICES, 3), "pose": (frames, 6), "fps": ()}
    for name, shape in shapes.items():
        if arrays[name].shape != shape or arrays[name].dtype.kind not in "fiu" or not frames:
            raise ValueError(f"{name} of the motion {path} is {list(arrays[name].shape)}, not {list(shape)}")
    if not (np.isfinite(mesh).all() and np.isfinite(pose).all() and 0 < float(fps) < 1000):
        raise ValueError(f"the motion {path} holds values that are not finite numbers, or no frame rate")
    if np.abs(pose).max() > _MOST_DEGREES or np.abs(mesh).max() > _MOST_CM:
        raise ValueError(f"the motion {path} holds angles beyond 1000 degrees or moves beyond 10 m")
    mesh = mesh.astype(np.float32, copy=False)
    neutral = arrays.get("neutral")
    if neutral is None:
        neutral = neutral_mesh(mesh, None, np.ones(frames, bool)).mesh
    elif neutral.shape != (NUM_VERTICES, 3) or not np.isfinite(neutral).all():
        raise ValueError(f"neutral of the motion {path} is no mesh [{NUM_VERTICES}, 3]")
    return SavedMotion(
        pose=pose.astype(np.float64), mesh=mesh, neutral=neutral.astype(np.float32, copy=False), fps=float(fps)
    )


class FileDriver:
    """A saved motion or a pose template. Its source is a path; its options `FileOptions`."""

    name = "file"
    gives = MotionKind(space=MESHES, needs=("mesh",), delay=None)

    def __init__(self) -> None:
        self._read: dict[tuple[Path, float], SavedMotion] = {}

    def check(self, portrait: Portrait, source: Path, options: FileOptions | None = None) -> None:
        """Read the file, so that `move` need not; raises `ValueError` as `read_motion`."""
        del portrait
        self._saved(source, options or FileOptions())

    def move(
        self,
        portrait: Portrait,
        source: Path,
        options: FileOptions | None = None,
        *,
        fps: float | None = None,
        seed: int = 0,
        progress: ProgressCallback | None = None,
    ) -> MotionStream:
        """Motion of the portrait's face, whole, in parts; arguments as `protocols.Driver.move`."""
        del seed, progress
        options = options or FileOptions()
        saved = self._saved(source, options)
        rate = fps or saved.fps
        seconds = len(saved.pose) / saved.fps
        length = seconds if options.seconds is None else min(seconds, options.seconds)
        count = max(1, round(length * rate))

        # The head: from the portrait's own pose, as it moved from that of the portrait that the motion was made for.
        pose = saved.pose.copy()
        pose[:, :3] *= options.pose_gain
        # The face: the same one, or another one in whose proportions the expression is put.
        neutral = np.asarray(reference_at_rest(portrait, options.neutralise), np.float32)
        if saved.mesh is None or saved.neutral is None:
            mesh = np.repeat(neutral[None], count, axis=0)
        else:
            mesh = saved.mesh
            if not np.array_equal(saved.neutral, neutral):
                mesh = transfer_expression(mesh, saved.neutral, neutral).astype(np.float32)
            mesh = resample_frames(mesh, saved.fps, rate, count)
        motion = Motion(
            pose_matrix=placed_pose(resample_frames(pose, saved.fps, rate, count), portrait.pose_matrix),
            neutral=neutral,
            mesh=mesh,
            valid=np.ones(count, bool),
            fps=rate,
            width=portrait.width,
            height=portrait.height,
        )
        return MotionStream.of(motion)

    def about(self) -> dict[str, dict[str, Any]]:
        """Number of frames and rate of the file."""
        for saved in self._read.values():
            return {"input": {"frames": len(saved.pose), "fps": saved.fps}}
        return {}

    def _saved(self, source: Path, options: FileOptions) -> SavedMotion:
        key = (source, options.template_fps)
        if key not in self._read:
            self._read = {key: read_motion(*key)}
        return self._read[key]
