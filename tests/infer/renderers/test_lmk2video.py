"""Generated images on the command line: sizes and crop before weights, kept weights, memory presets, pasting back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer.renderers import lmk2video
from infer.renderers.lmk2video import Lmk2VideoRendering
from infer.request import AudioRequest
from infer.weights.kept import weights_kept
from talkinghead.face.model import FaceModel
from talkinghead.pipelines.lmk2video.renderer import Lmk2VideoRenderer
from talkinghead.pipelines.protocols import MESHES, MotionKind, pair
from talkinghead.pipelines.still_driver import StillDriver
from tests.support.drawn_portrait import drawn_portrait
from tests.support.tiny_pipeline import tiny_pipeline

UNUSED: Any = None


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "lmk2video"
    tiny_pipeline(width=64, height=64, fps=30.0).save_pretrained(folder)
    return folder.parent


def made(weights: Path | None, **options: Any) -> Lmk2VideoRendering:
    paths: dict[str, Any] = {"reference": Path("r"), "output": Path("o.mp4"), "audio": Path("a.wav")}
    request = AudioRequest(**paths, weights=weights, steps=1, guidance=1.0, crop="none", **options)  # pyright: ignore[reportArgumentType]
    return Lmk2VideoRendering(request, speaks=True)


def staged(weights: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Lmk2VideoRendering:
    """A rendering of a drawn portrait, whose landmarks no face model finds: the whole image is its own crop."""
    rendering = made(weights, **options)
    rendering.find()
    monkeypatch.setattr(lmk2video, "crop_portrait", lambda portrait, crop, model: portrait)
    rendering.stage(drawn_portrait(), UNUSED)
    return rendering


def quiet(*_: Any) -> None:
    """A progress bar that shows nothing."""


def test_the_name_tells_before_weights_are_found(weights: Path) -> None:
    rendering = made(weights)
    assert rendering.takes == Lmk2VideoRenderer.takes and pair(StillDriver(), rendering).fps == 25
    assert rendering.find() == weights / "lmk2video"
    rendering.meet(MotionKind(space=MESHES))
    assert rendering.takes[0].fps == 30 and not rendering.compat and pair(StillDriver(), rendering).fps == 30
    with pytest.raises(ValueError, match="needs --weights"):
        made(None).find()
    with pytest.raises(ValueError, match="are not there"):
        made(weights / "gone").find()


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, (64, 64)), ({"width": 96}, (96, 96)), ({"height": 32}, (32, 32)), ({"width": 128, "height": 64}, (128, 64))],
)
def test_sizes(weights: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], size: tuple[int, int]) -> None:
    rendering = staged(weights, monkeypatch, **options)
    assert rendering.size == rendering.drawn_size == size


def test_frames_are_those_of_the_pipeline(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the motion, of the size that is said, the same again; and other ones by another seed."""
    found: dict[int, list[np.ndarray]] = {}
    for seed in (0, 1):
        rendering = staged(weights, monkeypatch, seed=seed)
        assert set(rendering.load()) == {"pipeline"}
        pairing = pair(StillDriver(), rendering)
        motion = StillDriver().move(drawn_portrait(), 0.2, fps=pairing.fps)
        motion = rendering.begin(pairing.convert(motion), pairing, quiet)  # pyright: ignore[reportArgumentType]
        found[seed] = list(rendering.frames(motion, quiet))  # pyright: ignore[reportArgumentType]
        assert len(found[seed]) == 6 and found[seed][0].shape == (64, 64, 3) and found[seed][0].dtype == np.uint8
        assert rendering.describe()["sampler"] == "DDIMScheduler" and rendering.describe()["size"] == [64, 64]
    assert not np.array_equal(found[0][0], found[1][0])


def test_pasted_back_it_has_the_portraits_size(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendering = staged(weights, monkeypatch, paste_back=True, width=32, height=32)
    assert rendering.size == (64, 64) and rendering.drawn_size == (32, 32)
    note = rendering.note
    assert note is not None and "compositeWithTrainedAlgorithmicMedia" in note.source_type
    assert staged(weights, monkeypatch, mark_synthetic=False).note is None


@pytest.mark.parametrize(("memory", "asked_first"), [("8", [0, 250, 500]), ("24", [])])
def test_a_small_preset_takes_the_motion_whole(
    weights: Path, monkeypatch: pytest.MonkeyPatch, memory: str, asked_first: list[int]
) -> None:
    """So that the driver's models leave the device before images are made; otherwise it comes in parts."""
    rendering = staged(weights, monkeypatch, memory=memory)
    rendering.load()
    asked: list[int] = []
    motion = StillDriver().move(drawn_portrait(), 21.0).each(lambda part, first: (asked.append(first), part)[1])
    rendering.begin(motion, pair(StillDriver(), rendering), quiet)  # pyright: ignore[reportArgumentType]
    assert asked == asked_first


def test_weights_are_kept_from_row_to_row(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with weights_kept():
        one, two, other = (staged(weights, monkeypatch, sampler=sampler) for sampler in ("euler", "euler", "unipc"))
        for rendering in (one, two, other):
            rendering.load()
        assert one._pipeline is two._pipeline and other._pipeline is not one._pipeline
    assert other.describe()["sampler"] == "UniPCMultistepScheduler"


def test_the_box_around_a_face_is_the_stage(weights: Path, media: Path, face_model: FaceModel) -> None:
    """A real portrait: the crop has the aspect of the images, holds the whole face, and is measured for itself."""
    from infer.portrait import read_portrait

    portrait = read_portrait(media / "image" / "tfjs-models_portrait.jpg", face_model)
    paths: dict[str, Any] = {"reference": Path("r"), "output": Path("o.mp4"), "audio": Path("a.wav")}
    rendering = Lmk2VideoRendering(AudioRequest(**paths, weights=weights, width=96, height=64), speaks=True)
    rendering.find()
    stage = rendering.stage(portrait, face_model)
    assert stage.width / stage.height == pytest.approx(1.5, abs=0.02)
    assert stage.face.points[:468, :2].min() > 0 and stage.face.points[:468, :2].max() < 1
    seen = StillDriver().move(stage, 0.04).whole().landmarks()[0]
    away = np.abs(seen - stage.face.points[:468, :2]) * (stage.width, stage.height)
    assert away.max() < 0.02 * stage.height, "a face that stands still is where it was found"
