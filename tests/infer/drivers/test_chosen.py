"""Which driver the options name, alone and part by part, and what each of them is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infer.drivers.chosen import chosen_driving, driver_classes
from infer.drivers.composed import ComposedDriving
from infer.drivers.driving import FileDriving
from infer.drivers.speech import SpeechDriving
from infer.drivers.still import StillDriving
from infer.drivers.video import VideoDriving
from infer.request import AnimateRequest
from tests.support.other_package import install_other_package


def asked(**options: Any) -> AnimateRequest:
    return AnimateRequest(reference=Path("r.png"), output=Path("o.mp4"), **options)


AUDIO, CLIP, SAVED = Path("a.wav"), Path("c.mp4"), Path("m.npz")


@pytest.mark.parametrize(
    ("options", "kind", "name", "files"),
    [
        ({"audio": AUDIO}, SpeechDriving, "audio2lmk", [AUDIO]),
        ({"mouth": "audio:a.wav"}, SpeechDriving, "audio2lmk", [AUDIO]),
        ({"audio": AUDIO, "pose": "video:c.mp4"}, SpeechDriving, "audio2lmk", [AUDIO, CLIP]),
        ({"driver": "video", "driving": CLIP}, VideoDriving, "video", [CLIP]),
        ({"driver": "video", "driving": CLIP, "pose": "absolute"}, VideoDriving, "video", [CLIP]),
        ({"driver": "file", "motion": SAVED, "audio": AUDIO}, FileDriving, "file", [SAVED, AUDIO]),
        ({"driver": "still", "audio": AUDIO}, StillDriving, "still", [AUDIO]),
        ({"mouth": "still"}, StillDriving, "still", []),
        ({"audio": AUDIO, "pose": "file:m.npz"}, ComposedDriving, "audio2lmk, pose: file", [AUDIO, SAVED]),
        (
            {"audio": AUDIO, "pose": "audio:b.wav"},
            ComposedDriving,
            "audio2lmk, pose: audio2lmk",
            [AUDIO, Path("b.wav")],
        ),
        ({"driver": "video", "driving": CLIP, "pose": "template:t.npy"}, ComposedDriving, "video, pose: file", None),
        (
            {"audio": AUDIO, "pose": "keep", "eyes": "video:c.mp4"},
            ComposedDriving,
            "audio2lmk, eyes: video",
            [AUDIO, CLIP],
        ),
        ({"mouth": "still", "pose": "still", "eyes": "still"}, ComposedDriving, "still, pose: still, eyes: still", []),
    ],
)
def test_the_options_name_it(options: dict[str, Any], kind: type, name: str, files: list[Path] | None) -> None:
    driving = chosen_driving(asked(**options))
    assert type(driving) is kind and driving.name == name
    assert files is None or driving.files == files


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "the driver audio2lmk needs --audio FILE"),
        ({"driver": "video"}, "needs --driving FILE"),
        ({"driver": "file"}, "needs --motion FILE"),
        ({"driver": "dance"}, "there is no driver 'dance': take one of audio2lmk, still, video, file"),
        ({"driver": "still", "mouth": "still"}, "give --mouth still or --driver still, not both"),
        ({"mouth": "still", "pose": "relative"}, "--pose is 'relative', must be keep, still"),
        ({"audio": AUDIO, "pose": "still:x"}, "--pose is 'still:x', must be keep"),
        ({"mouth": "still", "eyes": "template:t.npy"}, "--eyes is 'template:t.npy', must be keep, still"),
        ({"audio": AUDIO, "pose": "still", "identity": "3"}, "--identity belongs to --pose audio"),
    ],
)
def test_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        chosen_driving(asked(**options))


def test_a_head_that_another_driver_moves_costs_nothing() -> None:
    """Speech is then told that the head is still: it needs no pose weights."""
    for pose in ("file:m.npz", "audio:b.wav"):
        driving = chosen_driving(asked(audio=AUDIO, pose=pose))
        assert isinstance(driving, ComposedDriving)
        mouth: Any = driving._mouth
        assert mouth._request.pose == "still"


def test_words_of_the_options_are_no_names_of_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_other_package(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(driver_classes()) == ["audio2lmk", "still", "nodding", "numbers", "video", "file"]
    entry_points = tmp_path / "other_heads-1.0.dist-info" / "entry_points.txt"
    entry_points.write_text("[talkinghead.drivers]\nkeep = other_heads:Nodding\n")
    with pytest.raises(ValueError, match="wants to be the driver 'keep', which means another thing here"):
        driver_classes()
