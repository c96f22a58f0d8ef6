"""Makes the project's own canonical face: the mean metric mesh of real clips.

    python -m annotate.mean_face CLIPS… -o talkinghead/geometry/mean_face.npz

The 468-point fallback model brings no canonical face, so it gets this one. Each clip counts the same however long it
is, and every face also counts mirrored, so that a clip in which someone looks to one side leaves no trace in what
counts as looking straight ahead. The official bundle is needed: its canonical face sets the space and the scale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import av
import numpy as np
import tyro

from annotate.engines import make_engine
from annotate.landmarks import LandmarkEngine
from talkinghead.face.resolve import resolve_face_model
from talkinghead.geometry.canonical import CanonicalFace, canonical_face
from talkinghead.geometry.face_mesh import metric_mesh
from talkinghead.provenance import hash_file
from talkinghead.runtime.command_line import run_command_line

MIN_FRAMES = 30
"""Fewest frames with a face that a clip needs."""


def make_mean_face(
    clips: tyro.conf.Positional[tuple[Path, ...]], out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
) -> str:
    """Make the project's own canonical face: the mean metric mesh of real clips.

    Args:
        clips: Videos of one face each, upright.
        out: The .npz file to write.
    """
    if not clips:
        raise ValueError("no clips: name videos of one face each")
    model = resolve_face_model("official")
    face = canonical_face(model.geometry_metadata)
    engine = make_engine("tasks", model)
    # The mean over clips, not over frames: each clip counts the same however long it is.
    means = [clip_mean(clip, engine, face) for clip in clips]
    vertices = symmetric(np.mean(means, axis=0), face)
    # Report how far it lies from MediaPipe's face, and write it with the hashes of its clips.
    offset = np.linalg.norm(vertices - face.vertices, axis=1)
    print(
        f"{len(means)} clips; distance to MediaPipe's canonical face: mean {offset.mean():.2f}, "
        f"largest {offset.max():.2f} cm",
        file=sys.stderr,
    )
    with out.open("wb") as file:
        hashes = np.array([hash_file(clip) for clip in clips])
        np.savez(file, vertices=vertices.astype(np.float32), source_sha256=hashes)
    return str(out)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command_line(make_mean_face, arguments, prog="python -m annotate.mean_face")


def clip_mean(clip: Path, engine: LandmarkEngine, face: CanonicalFace) -> np.ndarray:
    """Mean metric mesh `[468, 3]` of the frames of a clip that show a face, cm, canonical space.

    Raises:
        ValueError: Fewer than `MIN_FRAMES` frames show one.
    """
    size = _size(clip)
    landmarks = engine(_frames(clip))
    mesh, _ = metric_mesh(landmarks.points, *size, face)
    found = int(landmarks.valid.sum())
    if found < MIN_FRAMES:
        raise ValueError(f"{clip} has {found} frames with a face, at least {MIN_FRAMES} are needed; leave it out")
    print(f"{clip.name}: {found} of {len(mesh)} frames", file=sys.stderr)
    return mesh[landmarks.valid].mean(axis=0)


def symmetric(vertices: np.ndarray, face: CanonicalFace) -> np.ndarray:
    """Mean of a face `[468, 3]` and its mirror image.

    Args:
        vertices: The face, in canonical space (x to the side).
        face: A symmetric face, which tells which landmarks mirror each other.
    """
    # The twin of a landmark is the nearest one to its mirror image.
    flip = np.array([-1.0, 1.0, 1.0])
    distance = np.linalg.norm(face.vertices[:, None] - face.vertices * flip, axis=-1)
    twin = distance.argmin(axis=1)
    assert (twin[twin] == np.arange(len(twin))).all(), "the canonical face is not symmetric"
    return (vertices + vertices[twin] * flip) / 2


def _frames(clip: Path) -> Iterator[np.ndarray]:
    """Frames of a clip, RGB uint8 `[H, W, 3]`."""
    with av.open(str(clip)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def _size(clip: Path) -> tuple[int, int]:
    """Width and height of a clip in pixels."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        return stream.width, stream.height


if __name__ == "__main__":
    sys.exit(main())
