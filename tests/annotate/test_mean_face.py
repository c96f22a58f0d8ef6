"""The command that makes `mean_face.npz`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotate import mean_face
from talkinghead.geometry.canonical import CanonicalFace
from talkinghead.geometry.canonical import mean_face as committed_face


def test_symmetric_keeps_what_is_symmetric_and_evens_out_the_rest(official_face: CanonicalFace) -> None:
    np.testing.assert_allclose(mean_face.symmetric(official_face.vertices, official_face), official_face.vertices)
    moved = official_face.vertices + np.random.default_rng(0).normal(0, 0.3, (468, 3))
    even = mean_face.symmetric(moved, official_face)
    np.testing.assert_allclose(mean_face.symmetric(even, official_face), even)
    np.testing.assert_allclose(even[263] * (-1, 1, 1), even[33])
    np.testing.assert_allclose(even[4], (0, *moved[4, 1:]), atol=1e-12)


def test_clip_without_a_face_is_named(
    media: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TALKINGHEAD_MODELS", str(task_file.parent))
    out = tmp_path / "mean.npz"
    assert mean_face.main([str(media / "hard" / "decord_video_90.mov"), "-o", str(out)]) == 2
    error = capfd.readouterr().err
    assert "decord_video_90.mov has 0 frames with a face" in error and "leave it out" in error
    assert not out.exists()


@pytest.mark.slow
def test_committed_face_comes_out_again(
    media: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALKINGHEAD_MODELS", str(task_file.parent))
    clips = sorted(str(path) for path in (media / "video").glob("*.mp4"))
    assert mean_face.main([*clips, "-o", str(tmp_path / "mean.npz")]) == 0
    with np.load(tmp_path / "mean.npz") as content:
        np.testing.assert_allclose(content["vertices"], committed_face().vertices, atol=0.01)
