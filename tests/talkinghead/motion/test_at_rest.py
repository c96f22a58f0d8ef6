"""Faces at rest: open mouths close, with blendshapes and without, on people whom the basis was not made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotate.engines import DEFAULT_ENGINE, make_engine
from talkinghead.face.model import load_official
from talkinghead.geometry.blendshapes import NUM_BLENDSHAPES
from talkinghead.geometry.canonical import canonical_face, mean_face
from talkinghead.geometry.face_mesh import metric_mesh
from talkinghead.geometry.face_regions import LOWER_FACE, lip_gap
from talkinghead.media.video_source import VideoSource
from talkinghead.motion.at_rest import at_rest, lips_closed, mean_expression
from talkinghead.motion.expression import NUM_SCORES, ExpressionBasis
from talkinghead.motion.neutral import neutral_mesh

LOWER = list(LOWER_FACE)


def test_the_projects_own_basis() -> None:
    known = mean_expression()
    assert known.basis.offsets.dtype == np.float32 and not known.basis.offsets[0].any(), "`_neutral` moves nothing"
    assert 0 < known.lip_gap_at_rest < 0.25
    apart = known.opening[13, 1] - known.opening[14, 1]
    assert apart == pytest.approx(1, abs=0.1), "the lips part by a centimetre for each centimetre"
    assert np.abs(known.opening[[33, 263, 6]]).max() < 0.1, "eyes and nose stay"


@pytest.fixture(scope="module")
def speaking(shared: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Meshes of frames with an open mouth, their blendshapes, and the person's neutral mesh."""
    model = load_official(shared / "models" / "face_landmarker.task")
    with VideoSource(shared / "media" / "hard" / "video-retalking_face_1.mp4") as source:
        found = make_engine(DEFAULT_ENGINE, model)(
            frame.image for number, frame in enumerate(source.frames()) if number % 3 == 0
        )
        mesh, _ = metric_mesh(
            found.points, source.info.width, source.info.height, canonical_face(model.geometry_metadata)
        )
    mesh = mesh.astype(np.float32)
    opened = lip_gap(mesh) > 0.6
    assert opened.sum() >= 5
    return mesh[opened], found.blendshapes[opened], neutral_mesh(mesh, found.blendshapes, found.valid).mesh


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("what", ["mouth", "all"])
def test_an_open_mouth_comes_near_to_rest(
    speaking: tuple[np.ndarray, np.ndarray, np.ndarray], what: str, scored: bool
) -> None:
    meshes, blendshapes, neutral = speaking
    rest = np.stack(
        [
            at_rest(mesh, scores if scored else None, what)  # pyright: ignore[reportArgumentType]
            for mesh, scores in zip(meshes, blendshapes, strict=True)
        ]
    )
    before, after = (np.linalg.norm(values[:, LOWER] - neutral[LOWER], axis=-1).mean() for values in (meshes, rest))
    assert after < 0.6 * before and lip_gap(rest).mean() < 0.4 * lip_gap(meshes).mean()
    if not scored:
        upper = sorted(set(range(468)) - set(LOWER))
        assert np.array_equal(rest[:, upper], meshes[:, upper]), "only the lower face moves"


def test_a_closed_mouth_stays() -> None:
    shut = mean_face().vertices.astype(np.float32)
    shut[14] = shut[13] - (0, 0.1, 0)
    assert np.array_equal(lips_closed(shut), shut)


def test_the_basis_of_a_training_comes_first() -> None:
    mesh = mean_face().vertices.astype(np.float32)
    offsets = np.zeros((NUM_SCORES, 468, 3), np.float32)
    basis = ExpressionBasis(offsets=offsets, rest=np.zeros(NUM_SCORES, np.float32))
    scores = np.full(NUM_BLENDSHAPES, 0.5, np.float32)
    assert np.array_equal(at_rest(mesh, scores, "all", basis), mesh), "it takes nothing out"
    assert not np.array_equal(at_rest(mesh, scores, "all"), mesh)
