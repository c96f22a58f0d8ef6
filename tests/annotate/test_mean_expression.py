"""The command that makes `mean_expression.npz`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annotate import mean_expression
from talkinghead.motion.at_rest import mean_expression as committed


def test_a_clip_without_a_face_is_named(
    media: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TALKINGHEAD_MODELS", str(task_file.parent))
    out = tmp_path / "mean.npz"
    assert mean_expression.main([str(media / "hard" / "decord_video_90.mov"), "-o", str(out)]) == 2
    error = capfd.readouterr().err
    assert "decord_video_90.mov has 0 frames with a face" in error and "leave it out" in error
    assert not out.exists()


@pytest.mark.slow
def test_the_committed_basis_comes_out_again(
    media: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALKINGHEAD_MODELS", str(task_file.parent))
    clips = sorted(str(path) for path in (media / "video").glob("*.mp4"))
    assert mean_expression.main([*clips, "-o", str(tmp_path / "mean.npz")]) == 0
    known = committed()
    with np.load(tmp_path / "mean.npz") as content:
        np.testing.assert_allclose(content["opening"].astype(np.float32), known.opening, atol=0.01)
        np.testing.assert_allclose(content["rest"], known.basis.rest, atol=0.01)
        np.testing.assert_allclose(content["offsets"].astype(np.float32), known.basis.offsets, atol=0.05)
