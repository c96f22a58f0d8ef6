"""The expression basis: recovered from faces made with a known one, and a mouth closed on unseen faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from talkinghead.geometry.blendshapes import NAMES, PARTS
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.face_regions import LIPS, lip_gap
from talkinghead.motion.expression import NUM_SCORES, ExpressionBasis, ExpressionFit

SMILE, BROW, JAW = NAMES.index("mouthSmileLeft"), NAMES.index("browInnerUp"), NAMES.index("jawOpen")


def made_face(frames: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mesh, neutral mesh and blendshapes of a person: smile moves y by 2 cm, brow moves z by 1 cm, jaw opens the lips.

    At rest the smile is 0.2 for everyone.
    """
    rng = np.random.default_rng(seed)
    neutral = mean_face().vertices + rng.normal(0, 0.1, (468, 3))
    neutral[14] = neutral[13] - [0, 0.1, 0]
    scores = np.zeros((frames, 52))
    scores[:, SMILE] = 0.2 + rng.uniform(0, 0.5, frames) * (np.arange(frames) >= frames // 4)
    scores[:, [BROW, JAW]] = rng.uniform(0, 0.8, (frames, 2)) * (np.arange(frames) >= frames // 4)[:, None]
    mesh = np.repeat(neutral[None], frames, axis=0)
    mesh[..., 1] += 2 * (scores[:, SMILE, None] - 0.2)
    mesh[..., 2] += scores[:, BROW, None]
    mesh[:, 14, 1] -= 3 * scores[:, JAW]
    return mesh.astype(np.float32), neutral.astype(np.float32), scores.astype(np.float32)


def fitted(*people: tuple[np.ndarray, np.ndarray, np.ndarray], ridge: float = 1e-8) -> ExpressionBasis:
    fit = ExpressionFit()
    for person in people:
        fit.add(*person)
    return fit.basis(ridge=ridge)


def test_a_known_basis_is_found() -> None:
    basis = fitted(made_face(120, 0), made_face(80, 1))
    np.testing.assert_allclose(basis.offsets[SMILE, :, 1], 2, atol=1e-3)
    np.testing.assert_allclose(basis.offsets[BROW, :, 2], 1, atol=1e-3)
    assert (basis.offsets[0] == 0).all()
    assert basis.rest[SMILE] == pytest.approx(0.2, abs=1e-3)
    assert basis.rest[-1] == pytest.approx(0.1, abs=1e-3)


def test_only_the_parts_asked_for_are_taken_out() -> None:
    basis = fitted(made_face(120, 0))
    mesh, neutral, scores = made_face(10, 7)
    np.testing.assert_allclose(basis.neutralise(mesh, scores, tuple(PARTS)), [neutral] * 10, atol=2e-3)
    without_smile = basis.neutralise(mesh, scores, ("smile",))
    np.testing.assert_allclose(without_smile[..., 2], mesh[..., 2], atol=2e-3)
    np.testing.assert_allclose(lip_gap(without_smile), lip_gap(mesh), atol=2e-3)
    np.testing.assert_allclose(lip_gap(basis.neutralise(mesh, scores, ("mouth",))), 0.1, atol=2e-3)
    one = basis.neutralise(mesh[3], scores[3], ("brows",))
    np.testing.assert_allclose(one[:, 2], neutral[:, 2], atol=2e-3)


def test_clips_one_by_one_are_all_at_once_and_missing_frames_do_not_count() -> None:
    """A person's constant shape and constant scores do not enter, so two clips of one person are one clip."""
    mesh, neutral, scores = made_face(60, 3)
    holes = np.insert(mesh, 5, np.nan, axis=0), neutral, np.insert(scores, 5, np.nan, axis=0)
    np.testing.assert_allclose(fitted(holes).offsets, fitted((mesh, neutral, scores)).offsets, atol=1e-6)
    shifted = mesh + 1, neutral + 1, scores
    np.testing.assert_allclose(
        fitted((mesh, neutral, scores), shifted).offsets, fitted((mesh, neutral, scores)).offsets, atol=1e-4
    )


def test_ridge_shrinks_what_was_not_shown() -> None:
    mesh, neutral, scores = made_face(60, 3)
    basis = ExpressionBasis.fit(mesh, neutral, scores)
    unmoved = [index for index in range(52) if index not in (SMILE, BROW, JAW)]
    assert (basis.offsets[unmoved] == 0).all()
    assert 0 < basis.offsets[SMILE, :, 1].mean() < 2


def test_sums_of_two_fits_are_those_of_both() -> None:
    first, second, both = ExpressionFit(), ExpressionFit(), ExpressionFit()
    for fit, seed in ((first, 0), (second, 1)):
        fit.add(*made_face(60, seed))
        both.add(*made_face(60, seed))
    sums = {name: values + second.sums()[name] for name, values in first.sums().items()}
    merged = ExpressionFit.from_sums(sums)
    assert merged.num_frames == both.num_frames == 120
    np.testing.assert_allclose(merged.basis().offsets, both.basis().offsets, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(merged.basis().rest, both.basis().rest)
    # It goes on from there.
    merged.add(*made_face(60, 2))
    assert merged.num_frames == 180 and first.num_frames == 60
    for broken in ({name: values for name, values in sums.items() if name != "gram"}, sums | {"rest": np.zeros(2)}):
        with pytest.raises(ValueError, match="no sums of an expression fit"):
            ExpressionFit.from_sums(broken)


def test_round_trip_and_refusals(tmp_path: Path) -> None:
    basis = fitted(made_face(60, 0))
    path = tmp_path / "expression.safetensors"
    basis.save(path)
    found = ExpressionBasis.load(path)
    assert (found.offsets == basis.offsets).all()
    assert (found.rest == basis.rest).all()
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"expression\.safetensors is no expression basis"):
        ExpressionBasis.load(path)
    mesh, neutral, scores = made_face(4, 0)
    with pytest.raises(ValueError, match="no part nose"):
        basis.neutralise(mesh, scores, ("nose",))
    with pytest.raises(ValueError, match="gives 52 blendshapes"):
        basis.neutralise(mesh, np.full_like(scores, np.nan))
    with pytest.raises(ValueError, match="no frame has blendshapes"):
        fitted((mesh, neutral, np.full_like(scores, np.nan)))
    with pytest.raises(ValueError, match="do not fit"):
        fitted((mesh, neutral, scores[:2]))
    with pytest.raises(ValueError, match="has offsets"):
        ExpressionBasis(offsets=np.zeros((52, 468, 3), np.float32), rest=np.zeros(NUM_SCORES, np.float32))


def test_lips_region_follows_the_smile() -> None:
    basis = fitted(made_face(60, 0))
    mesh, _, scores = made_face(5, 1)
    moved = basis.expression(mesh, scores, ("smile",))[:, LIPS, 1]
    np.testing.assert_allclose(moved, np.repeat(2 * (scores[:, SMILE, None] - 0.2), len(LIPS), axis=1), atol=5e-3)
