"""The motion of a video, written down on its way to the renderer: what the files next to the video are made of.

It lies in files without a name next to the video, which vanish with the process: 6 kB a frame, so memory stays flat.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from talkinghead.motion.motion import Motion
from talkinghead.motion.parts import PART
from talkinghead.motion.stream import MotionStream

_MANY_OUTSIDE = 0.01  # share of the landmarks beyond the portrait's own from which on a face leaves the image


class _Rows:
    """Rows of one array in a file."""

    def __init__(self, file: IO[bytes], like: np.ndarray) -> None:
        self._file = file
        self._shape, self._dtype = like.shape[1:], like.dtype
        self._count = 0

    def add(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self._count += len(rows)

    def parts(self) -> Iterator[np.ndarray]:
        row = int(np.prod(self._shape, dtype=int)) * self._dtype.itemsize
        self._file.seek(0)
        while data := self._file.read(PART * row):
            yield np.frombuffer(data, self._dtype).reshape(-1, *self._shape)

    def copy_to(self, target: IO[bytes]) -> None:
        """Write the array as an `.npy` file."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._count, *self._shape),
        }
        np.lib.format.write_array_header_1_0(target, header)
        self._file.seek(0)
        shutil.copyfileobj(self._file, target, 1 << 20)


class MotionRecord:
    """Landmarks of a motion and, where the arrays are wanted, its meshes and poses. Use it as a context manager.

    Args:
        folder: Folder of the files, that of the video.
        compat: Whether landmarks are projected as AniPortrait does.
        reference_pose_matrix: Head pose of the portrait, `[4, 4]`, that poses are told relative to.
        own_outside: Share of the portrait's own landmarks that lie beyond the image.
        arrays: Whether meshes and poses are kept too.
    """

    def __init__(
        self, folder: Path, *, compat: bool, reference_pose_matrix: np.ndarray, own_outside: float, arrays: bool
    ) -> None:
        self._folder = folder
        self._compat = compat
        self._reference = reference_pose_matrix
        self._most_outside = own_outside + _MANY_OUTSIDE
        self._arrays = arrays
        self._rows: dict[str, _Rows] = {}
        self._still: dict[str, np.ndarray] = {}
        self._stack = contextlib.ExitStack()
        self.frames = 0
        """Number of frames so far."""
        self.leaving = 0
        """Number of frames in which the face reaches further beyond the image than in the portrait."""

    def __enter__(self) -> MotionRecord:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def following(self, motion: MotionStream) -> MotionStream:
        """The motion, each part of which is written down when it is taken."""
        return motion.each(self._add)

    def landmarks(self) -> Iterator[np.ndarray]:
        """Landmarks `[n, 468, 2]` of all parts so far."""
        return self._rows["landmarks"].parts()

    def write_arrays(self, stream: IO[bytes]) -> None:
        """Write all arrays as an `.npz` file: the same bytes for the same motion."""
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name, rows in self._rows.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    rows.copy_to(member)
            for name, array in self._still.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)

    def _add(self, part: Motion, first: int) -> Motion:
        del first
        landmarks = part.landmarks(compat=self._compat)
        outside = ((landmarks < 0) | (landmarks > 1)).any(axis=2).mean(axis=1)  # [n], share of landmarks
        self.leaving += int((outside > self._most_outside).sum())
        self.frames += len(part)
        rows: dict[str, np.ndarray] = {"landmarks": landmarks}
        if self._arrays:
            poses = {"pose": part.pose_about(self._reference), "pose_matrix": part.pose_matrix}
            rows = {"mesh": part.meshes(), **poses, **rows}
            self._still = {"fps": np.array(part.fps, np.float64), "neutral": part.neutral}
        for name, array in rows.items():
            if name not in self._rows:
                file: Any = self._stack.enter_context(tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115  closed by the stack
                self._rows[name] = _Rows(file, array)
            self._rows[name].add(array)
        return part
