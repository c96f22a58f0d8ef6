"""Values of options that name what moves a part of the face."""

from __future__ import annotations

from pathlib import Path

import pytest

from infer.part_source import PartSource

POSE = ("audio", "still", "video:FILE", "template:FILE.npy")


def test_every_form_is_read() -> None:
    assert PartSource.parse("--pose", "audio", *POSE) == PartSource(kind="audio")
    assert PartSource.parse("--pose", "still", *POSE) == PartSource(kind="still")
    assert PartSource.parse("--pose", "video:a:b.mp4", *POSE) == PartSource(kind="video", path=Path("a:b.mp4"))
    assert PartSource.parse("--pose", "template:t.npy", *POSE) == PartSource(kind="template", path=Path("t.npy"))


@pytest.mark.parametrize("text", ["", "dance", "video", "video:", "audio:", "still:x", "template", "file:x.npz"])
def test_anything_else_is_refused_with_all_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"--pose is .* must be audio, still, video:FILE or template:FILE\.npy"):
        PartSource.parse("--pose", text, *POSE)
