"""Motion: a face that moves in the image of a portrait, the one language between drivers and renderers.

A driver gives motion, a renderer takes it, edits and conversions stand between. Motion says where the head is (a matrix
for each frame), whose face it is (the neutral mesh), and what the face does: as metric meshes, as coefficients of a
named space, or not at all (the head alone moves).

Convention:
    Canonical space, camera and image are those of `talkinghead.geometry`. The camera is that of the portrait as it is
    cropped: its middle is the middle of an image of `width` x `height` pixels. Frame k shows [k / fps, (k + 1) / fps).
    In frames that are not valid every number may be NaN.

What conversions lose:
    poses ↔ matrices        1e-9 degrees and cm; the scale of a measured matrix (1 to about 1e-5) is dropped
    meshes → landmarks      float32: 6e-8 of the image, 3e-5 px at 512; at most 0.07 px between the two projections
    meshes → coefficients   what lies outside of the space; the mesh that comes back is the nearest one in it
    landmarks → meshes      `geometry.face_mesh`: 0.001 degrees and cm for a motion that was measured by it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from talkinghead.geometry.camera import check_size, project
from talkinghead.geometry.face_regions import NUM_VERTICES
from talkinghead.geometry.pose import matrix_from_pose, pose_from_matrix
from talkinghead.motion.rest_pose import relative_pose

Change = Callable[[np.ndarray], np.ndarray]
"""Function of time: values `[F, …]` → `[G, …]`, each column for itself; NaN where it uses a NaN."""

_CHUNK = 500
"""Number of frames projected at once: float64 copies of more would cost more memory than the result."""


class CoefficientSpace(Protocol):
    """Space of coefficients that stand for meshes, such as a morphable model's expressions."""

    id: str
    """Name by which motion refers to it; it changes with the content (`basis:<sha256>`)."""

    def encode(self, mesh: np.ndarray, neutral: np.ndarray) -> np.ndarray:
        """Coefficients of meshes: `[F, 468, 3]` cm of the face whose neutral mesh is `[468, 3]` → `[F, K]`."""
        ...

    def decode(self, values: np.ndarray, neutral: np.ndarray) -> np.ndarray:
        """Meshes of coefficients: `[F, K]` and the neutral mesh `[468, 3]` of a face → `[F, 468, 3]`, cm."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Coefficients:
    """What a face does, in the numbers of a named space."""

    space: str
    """Name of the space, `CoefficientSpace.id`; or a family's own, which gives no meshes (`bfm-deep3d`)."""
    values: np.ndarray
    """`[F, K]` float32."""
    pose: np.ndarray | None = None
    """Head pose in the units of a family's own space, `[F, 6]` float32; None: that of the motion counts alone."""
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What else a family's renderer takes: name → `[F, …]` float32."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name, each with F rows."""
        pose = {} if self.pose is None else {"pose": self.pose}
        return {"values": self.values, **pose, **{f"extras {name}": array for name, array in self.extras.items()}}

    def changed(self, change: Change) -> Coefficients:
        """The coefficients with every array changed in time."""
        return Coefficients(
            space=self.space,
            values=change(self.values),
            pose=None if self.pose is None else change(self.pose),
            extras={name: change(array) for name, array in self.extras.items()},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """Motion of one face over F frames, F at least 1."""

    pose_matrix: np.ndarray
    """Head pose: `[F, 4, 4]` float64, canonical → camera, cm."""
    neutral: np.ndarray
    """Face that moves, at rest: `[468, 3]` float32, cm, canonical space."""
    mesh: np.ndarray | None = None
    """Meshes: `[F, 468, 3]` float32, cm, canonical space (pose removed); None: coefficients, or only the head moves."""
    coefficients: Coefficients | None = None
    """What the face does in the numbers of a space; None: only as meshes, or not at all."""
    eyes: np.ndarray | None = None
    """How far the right and the left eye are shut: `[F, 2]` float32, 0 open, 1 closed; None: as the meshes show."""
    valid: np.ndarray
    """Frames that hold motion: `[F]` bool. In the others no face was found."""
    fps: float
    """Frame rate in frames per second."""
    width: int
    """Width of the portrait's image in pixels; only its ratio to `height` matters for where points lie."""
    height: int
    """Height of the portrait's image in pixels."""

    def __post_init__(self) -> None:
        check_size(self.width, self.height)
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"a motion has a frame rate above 0, not {self.fps}")
        frames = len(self.valid)
        if self.valid.shape != (frames,) or self.valid.dtype != bool or not frames:
            raise ValueError(f"valid is [F] bool with at least one frame, not {self.valid.shape} {self.valid.dtype}")
        _check("neutral", self.neutral, (NUM_VERTICES, 3), np.float32, None)
        _check("pose_matrix", self.pose_matrix, (frames, 4, 4), np.float64, self.valid)
        if self.mesh is not None:
            _check("mesh", self.mesh, (frames, NUM_VERTICES, 3), np.float32, self.valid)
        if self.eyes is not None:
            _check("eyes", self.eyes, (frames, 2), np.float32, self.valid)
        if self.coefficients is not None:
            shapes = {"values": (frames, *self.coefficients.values.shape[1:2]), "pose": (frames, 6)}
            for name, array in self.coefficients.arrays().items():
                shape = shapes.get(name, (frames, *array.shape[1:]))
                _check(f"coefficients' {name}", array, shape, np.float32, self.valid)

    def __len__(self) -> int:
        return len(self.valid)

    # --- views --------------------------------------------------------------------------------------------------------

    @property
    def pose(self) -> np.ndarray:
        """Head pose in the camera as six numbers, `[F, 6]` float64: degrees and cm; NaN in frames that have none."""
        return pose_from_matrix(self.pose_matrix)

    def pose_about(self, reference: np.ndarray) -> np.ndarray:
        """Head motion about a reference's pose matrix `[4, 4]`, in its axes: `[F, 6]` float64, degrees and cm."""
        return relative_pose(self.pose_matrix, reference)

    def meshes(self) -> np.ndarray:
        """The meshes, `[F, 468, 3]`.

        Raises:
            ValueError: There are none.
        """
        if self.mesh is not None:
            return self.mesh
        if self.coefficients is None:
            raise ValueError("this motion moves the head only: it has no meshes of the face")
        raise ValueError(
            f"this motion has no meshes but coefficients of the space {self.coefficients.space}: decode them first,"
            " if that space can"
        )

    def landmarks(self, *, compat: bool = False) -> np.ndarray:
        """Points of the face in the image: `[F, 468, 2]` float32, x/width and y/height; outside 0 … 1 beyond the image.

        Which projection is right is a property of the weights that will see the points.

        Args:
            compat: Project as AniPortrait does (`camera.project`), for its published weights.

        Raises:
            ValueError: There are no meshes, or the head moves behind the camera.
        """
        mesh = self.meshes()
        landmarks = np.empty((len(self), NUM_VERTICES, 2), np.float32)
        for first in range(0, len(self), _CHUNK):
            part = slice(first, first + _CHUNK)
            pixels = project(mesh[part], self.pose_matrix[part], self.width, self.height, compat=compat)
            landmarks[part] = pixels / (self.width, self.height)
        return landmarks

    # --- in time ------------------------------------------------------------------------------------------------------

    def part(self, first: int, count: int) -> Motion:
        """Frames `first` … `first + count - 1`, without copying their arrays.

        Raises:
            ValueError: The motion has no such frames.
        """
        if first < 0 or count < 1 or first + count > len(self):
            raise ValueError(f"a motion of {len(self)} frames has no part of {count} frames from frame {first}")

        def cut(array: np.ndarray) -> np.ndarray:
            return array[first : first + count]

        return replace(
            self,
            pose_matrix=cut(self.pose_matrix),
            mesh=None if self.mesh is None else cut(self.mesh),
            coefficients=self.coefficients and self.coefficients.changed(cut),
            eyes=None if self.eyes is None else cut(self.eyes),
            valid=cut(self.valid),
        )

    @staticmethod
    def join(parts: Sequence[Motion]) -> Motion:
        """Parts of one motion in order, as one.

        Raises:
            ValueError: No parts; or they differ in face, image, frame rate, or in what they hold.
        """
        if not parts:
            raise ValueError("a motion is joined from at least one part")
        first = parts[0]
        for number, part in enumerate(parts[1:], 1):
            if difference := _difference(first, part):
                raise ValueError(f"part {number} is no part of the same motion: {difference}")

        def joined(arrays: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(arrays)

        coefficients = [part.coefficients for part in parts if part.coefficients is not None]
        return replace(
            first,
            pose_matrix=joined([part.pose_matrix for part in parts]),
            mesh=None if first.mesh is None else joined([part.meshes() for part in parts]),
            coefficients=_joined_coefficients(coefficients) if coefficients else None,
            eyes=None if first.eyes is None else joined([part.eyes for part in parts if part.eyes is not None]),
            valid=joined([part.valid for part in parts]),
        )

    def over_time(self, change: Change, *, fps: float | None = None) -> Motion:
        """The motion with all that it holds changed by one function of time; head poses are changed as six numbers.

        Frames are valid where the function gives numbers for a column that has them in valid frames only.

        Args:
            change: Function of time.
            fps: Frame rate of the result; None: the same.
        """

        def changed(array: np.ndarray) -> np.ndarray:
            return change(array).astype(array.dtype, copy=False)

        return replace(
            self,
            pose_matrix=matrix_from_pose(change(self.pose)),
            mesh=None if self.mesh is None else changed(self.mesh),
            coefficients=self.coefficients and self.coefficients.changed(changed),
            eyes=None if self.eyes is None else changed(self.eyes),
            valid=np.isfinite(change(np.where(self.valid, 0.0, np.nan))),
            fps=self.fps if fps is None else fps,
        )

    # --- conversions --------------------------------------------------------------------------------------------------

    def with_pose(self, pose: np.ndarray) -> Motion:
        """The motion with other head poses, `[F, 6]` degrees and cm in the camera; raises as `with_pose_matrix`."""
        return self.with_pose_matrix(matrix_from_pose(pose))

    def with_pose_matrix(self, pose_matrix: np.ndarray) -> Motion:
        """The motion with other head poses, `[F, 4, 4]` canonical → camera.

        Raises:
            ValueError: The coefficients hold a head pose of their own, which these would contradict.
        """
        if self.coefficients is not None and self.coefficients.pose is not None:
            raise ValueError(f"coefficients of {self.coefficients.space} hold the head's pose: it cannot be changed")
        return replace(self, pose_matrix=pose_matrix)

    def with_meshes(self, mesh: np.ndarray) -> Motion:
        """The motion with other meshes, `[F, 468, 3]` cm; coefficients are left out, as they stand for the old ones."""
        return replace(self, mesh=mesh.astype(np.float32, copy=False), coefficients=None)

    def with_mesh(self, space: CoefficientSpace) -> Motion:
        """The motion with the meshes that its coefficients stand for.

        Raises:
            ValueError: There are no coefficients, or they are of another space.
        """
        if self.coefficients is None:
            raise ValueError("this motion has no coefficients to make meshes of")
        if self.coefficients.space != space.id:
            raise ValueError(f"coefficients of the space {self.coefficients.space} cannot be decoded by {space.id}")
        mesh = np.full((len(self), NUM_VERTICES, 3), np.nan, np.float32)
        mesh[self.valid] = space.decode(self.coefficients.values[self.valid], self.neutral)
        return replace(self, mesh=mesh)

    def with_coefficients(self, space: CoefficientSpace) -> Motion:
        """The motion with its meshes also as coefficients of a space, in place of any others.

        Raises:
            ValueError: There are no meshes.
        """
        encoded = space.encode(self.meshes()[self.valid], self.neutral)
        values = np.full((len(self), encoded.shape[1]), np.nan, np.float32)
        values[self.valid] = encoded
        return replace(self, coefficients=Coefficients(space=space.id, values=values))


def _check(name: str, array: np.ndarray, shape: tuple[int, ...], dtype: type, valid: np.ndarray | None) -> None:
    """Refuse an array of another shape or type, or with values that are not finite where it must have them."""
    if array.shape != shape or array.dtype != dtype:
        wanted = f"{shape} {np.dtype(dtype)}"
        raise ValueError(f"a motion's {name} is {wanted}, not {array.shape} {array.dtype}")
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not (finite if valid is None else finite | ~valid).all():
        raise ValueError(f"a motion's {name} holds values that are not finite")


def _difference(one: Motion, other: Motion) -> str:
    """What keeps two motions from being parts of one; empty if nothing does."""
    if not np.array_equal(one.neutral, other.neutral):
        return "it is of another face"
    for name in ("fps", "width", "height"):
        if getattr(one, name) != getattr(other, name):
            return f"its {name} is {getattr(other, name)}, not {getattr(one, name)}"
    for name in ("mesh", "coefficients", "eyes"):
        if (getattr(one, name) is None) != (getattr(other, name) is None):
            return f"only one of them has {name}"
    if one.coefficients is not None and other.coefficients is not None:
        if one.coefficients.space != other.coefficients.space:
            return f"its coefficients are of {other.coefficients.space}, not of {one.coefficients.space}"
        if one.coefficients.arrays().keys() != other.coefficients.arrays().keys():
            return "its coefficients hold other arrays"
    return ""


def _joined_coefficients(parts: Sequence[Coefficients]) -> Coefficients:
    """Coefficients of the parts of a motion as one."""
    first = parts[0]
    return Coefficients(
        space=first.space,
        values=np.concatenate([part.values for part in parts]),
        pose=None if first.pose is None else np.concatenate([part.pose for part in parts if part.pose is not None]),
        extras={name: np.concatenate([part.extras[name] for part in parts]) for name in first.extras},
    )
