"""Makes the project's own expression basis: how the faces of real clips move, for weights that bring none.

    python -m annotate.mean_expression CLIPS… -o talkinghead/motion/mean_expression.npz

A training fits a basis to its own clips (`annotate.fits.expression`); published weights have none, and get this one. It
also holds how a mouth opens, which is all that can be told without blendshapes. The official bundle is needed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from annotate.engines import DEFAULT_ENGINE, make_engine
from annotate.mean_face import MIN_FRAMES, symmetric
from talkinghead.face.resolve import resolve_face_model
from talkinghead.geometry.blendshapes import NUM_BLENDSHAPES
from talkinghead.geometry.canonical import canonical_face
from talkinghead.geometry.face_mesh import metric_mesh
from talkinghead.media.video_source import VideoSource
from talkinghead.motion.expression import ExpressionFit
from talkinghead.motion.neutral import neutral_mesh
from talkinghead.provenance import hash_file
from talkinghead.runtime.command_line import run_command_line


def make_mean_expression(
    clips: tyro.conf.Positional[tuple[Path, ...]], out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
) -> str:
    """Make the project's own expression basis.

    Args:
        clips: Videos of one face each, upright, who speaks.
        out: The .npz file to write.
    """
    if not clips:
        raise ValueError("no clips: name videos of one face each")
    model = resolve_face_model("official")
    face = canonical_face(model.geometry_metadata)
    engine = make_engine(DEFAULT_ENGINE, model)
    # Two fits: all scores, and the opening of the mouth as the only score, which takes along all that goes with it.
    scored, opening = ExpressionFit(), ExpressionFit()
    for clip in clips:
        with VideoSource(clip) as source:
            found = engine(frame.image for frame in source.frames())
            mesh, _ = metric_mesh(found.points, source.info.width, source.info.height, face)
        frames = int(found.valid.sum())
        if frames < MIN_FRAMES:
            raise ValueError(f"{clip} has {frames} frames with a face, at least {MIN_FRAMES} are needed; leave it out")
        print(f"{clip.name}: {frames} of {len(mesh)} frames", file=sys.stderr)
        neutral = neutral_mesh(mesh.astype(np.float32), found.blendshapes, found.valid).mesh
        scored.add(mesh, neutral, found.blendshapes)
        opening.add(mesh, neutral, np.zeros((len(mesh), NUM_BLENDSHAPES), np.float32))
    basis = scored.basis()
    with out.open("wb") as file:
        # Half precision: an error of 0.0005 cm, in half the bytes.
        np.savez(
            file,
            offsets=basis.offsets.astype(np.float16),
            rest=basis.rest,
            opening=symmetric(opening.basis().offsets[-1], face).astype(np.float16),
            source_sha256=np.array([hash_file(clip) for clip in clips]),
        )
    return str(out)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command_line(make_mean_expression, arguments, prog="python -m annotate.mean_expression")


if __name__ == "__main__":
    sys.exit(main())
