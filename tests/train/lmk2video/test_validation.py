"""Validation of both stages: fixed clips, what is written, what is logged, and the page that shows it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infer.evaluation.driven_clip import DRIVER_COLUMNS
from infer.evaluation.evaluation_result import read_evaluations
from infer.evaluation.video_evaluation import NO_MOTION
from shards.reader import ShardReader
from shards.reader_chain import ReaderChain
from tests.support.real_clips import build_real_data
from tests.support.tiny_pipeline import tiny_pipeline
from train.lmk2video.config import Lmk2VideoConfig
from train.lmk2video.validation import CROSS, HELD_OUT, TRAINING
from train.lmk2video.validation import validate as validate_clips
from train.run.overview import newest_validation, write_overview

CPU = torch.device("cpu")
QUICK = Lmk2VideoConfig(
    width=64, height=64, validation_frames=12, validation_steps=1, validation_guidance=1.0, validation_clips=1
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> str:
    root = tmp_path_factory.mktemp("real") / "data"
    build_real_data(root, shared)
    return str(root)


def validate(config: Lmk2VideoConfig, data: str, weights: Path, folder: Path) -> dict[str, float]:
    held_out, training = (
        ReaderChain([ShardReader(data, columns=DRIVER_COLUMNS, **config.arguments(split))])
        for split in ("val", "train")
    )
    return validate_clips(config, held_out, training, weights, folder, CPU)


def weights(folder: Path, *, motion: bool) -> Path:
    tiny_pipeline(motion=motion, width=64, height=64).save_pretrained(folder)
    return folder


def test_clips_sheets_and_figures(data: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = run / "validation" / "step-00000010"
    folder.mkdir(parents=True)
    export = weights(run / "pretrained_model", motion=True)
    figures = validate(QUICK, data, export, folder)
    found = read_evaluations(folder)
    assert list(found) == [HELD_OUT, TRAINING, CROSS]
    assert [item.num_frames for item in found.values()] == [12, 12, 12]
    # What is made without motion modules costs as much again, and is made once.
    assert [NO_MOTION in {subject.name for subject in item.subjects} for item in found.values()] == [True, False, False]
    assert {"held-out/psnr", "training/psnr", "held-out/flicker", "cross/mouth_read_correlation"} <= figures.keys()
    assert figures["held-out/psnr"] == found[HELD_OUT].result("psnr").value
    assert (folder / "validation.txt").read_text().count("reference copy") >= 3
    names = sorted(path.relative_to(folder).parts[0] for path in folder.rglob("*.png"))
    assert names == sorted(path.relative_to(folder).parts[0] for path in folder.rglob("*.mp4"))
    assert names == ["cross", "held-out", "training"]

    (run / "config.json").write_text(json.dumps({"task": "stage2", "recipe": {"config": {}, "train": {"steps": 10}}}))
    shown = newest_validation(run)
    assert shown is not None and shown.of_videos and len(shown.images) == len(shown.videos) == 3
    page = write_overview(run).read_text()
    for wanted in (
        "Contact sheets", "without motion modules", "reference copy", "videos broad", "denoiser/diffusion_pytorch",
        "Structural similarity of the images", "(LSE-D)", "no sync model was given",
    ):  # fmt: skip
        assert wanted in page, wanted


@pytest.mark.slow
def test_the_same_weights_get_the_same_figures(data: str, tmp_path: Path) -> None:
    export = weights(tmp_path / "weights", motion=False)
    first, second = (validate(QUICK, data, export, tmp_path / name) for name in ("one", "two"))
    assert first == second
    assert not any(
        NO_MOTION in subject.name for item in read_evaluations(tmp_path / "one").values() for subject in item.subjects
    )


def test_without_held_out_clips(
    tmp_path: Path, shared: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training clips drive themselves and one another; a machine without a face model measures the rest."""
    monkeypatch.setenv("TALKINGHEAD_MODELS", str(tmp_path))
    build_real_data(tmp_path / "data", shared, held_out=False)
    export = weights(tmp_path / "weights", motion=False)
    config = replace(QUICK, validation_clips=2, validation_frames=4)
    validate(config, str(tmp_path / "data"), export, tmp_path / "found")
    assert {title: len(item.clips) for title, item in read_evaluations(tmp_path / "found").items()} == {
        TRAINING: 2, CROSS: 1
    }  # fmt: skip
    assert "no clip in its val split" in caplog.text and "is not measured" in caplog.text
    own = read_evaluations(tmp_path / "found")[TRAINING]
    assert own.result("psnr").value and own.result("face_found").reason_unavailable == "needs shown_landmarks"
    assert any("Without a face model" in note for note in own.notes)
    with pytest.raises(ValueError, match="no sample"):
        validate(replace(config, person=("nobody",)), str(tmp_path / "data"), export, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("motion", [False, True])
def test_a_tiny_validation_takes_no_minute(data: str, tmp_path: Path, motion: bool) -> None:
    """Seconds are processor time, with the settings of the recipes, on one thread."""
    torch.set_num_threads(1)
    export = weights(tmp_path / "weights", motion=motion)
    started = time.process_time()
    validate(Lmk2VideoConfig(width=64, height=64), data, export, tmp_path / "found")
    assert time.process_time() - started < 60
