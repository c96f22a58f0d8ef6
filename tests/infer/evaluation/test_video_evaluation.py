"""Evaluation of videos: known videos get known numbers, and the real pipeline passes through it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch

from annotate.engines.litert import LitertEngine
from infer.__main__ import main
from infer.evaluation.comparison import Comparison, contact_sheet
from infer.evaluation.driven_clip import DRIVER_COLUMNS, DrivenClip, read_cross_driven, read_driven_clips
from infer.evaluation.evaluation_result import Evaluation, read_evaluations
from infer.evaluation.video_evaluation import (
    GENERATED,
    NO_MOTION,
    REFERENCE_COPY,
    TRUTH,
    VAE,
    Sampling,
    VideoTrace,
    evaluate_pipeline,
    generate,
    without_motion,
)
from infer.metrics.learned_metrics import LEARNED
from shards.reader import ShardReader
from talkinghead.face.model import FaceModel
from talkinghead.models.image.networks import ImageNetworks
from tests.support.real_clips import build_real_data
from tests.support.tiny_pipeline import tiny_pipeline

QUICK = Sampling(steps=2, guidance=2.0, seed=1)


class Describing(torch.nn.Module):
    """Describes images by their mean colours."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=[2, 3])


class Writing(torch.nn.Module):
    """Writes a file while it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.kept = path, torch.zeros(8)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return (self.path, self.training)  # a mapping that is not kept would not be made

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path, self.training = state[0], state[1]
        self.kept = torch.from_file(self.path, True, 8, dtype=torch.uint8).fill_(65)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=[2, 3])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    root = tmp_path_factory.mktemp("real") / "data"
    build_real_data(root, shared)
    return root


@pytest.fixture(scope="module")
def clip(data: Path) -> DrivenClip:
    (found,) = read_driven_clips([ShardReader(data, split="val")[0]], 64, 64, frames=24)
    return found


@pytest.fixture(scope="module")
def engine(face_model: FaceModel) -> LitertEngine:
    return LitertEngine(face_model)


class Known:
    """Stand-in for a pipeline that returns given frames, so that the metrics' values are known in advance."""

    def __init__(self, video: np.ndarray, motion: bool = False) -> None:
        self.video = video
        self.asked: list[dict[str, Any]] = []
        images = ImageNetworks.load("tiny", "tiny")
        self.vae, self.image_encoder = images.vae, images.image_encoder
        self.denoiser = SimpleNamespace(config={"motion": motion})

    def stream(self, reference: np.ndarray, landmarks: np.ndarray, **options: Any) -> Iterator[np.ndarray]:
        self.asked.append(options)
        assert len(landmarks) == len(self.video) and reference.shape == self.video.shape[1:]
        return iter(self.video)


def value(evaluation: Evaluation, metric: str, subject: str) -> float:
    found = evaluation.result(metric, subject).value
    assert found is not None, (metric, subject)
    return found


def test_known_videos_get_known_numbers(clip: DrivenClip, engine: LitertEngine) -> None:
    assert clip.truth is not None
    off = np.clip(clip.truth.astype(int) + 4, 0, 255).astype(np.uint8)
    known: Any = Known(off)
    found = evaluate_pipeline(known, [clip], sampling=QUICK, engine=engine)
    assert [subject.name for subject in found.subjects] == [GENERATED, REFERENCE_COPY, VAE, TRUTH]
    assert [subject.role for subject in found.subjects] == ["prediction", "baseline", "baseline", "truth"]
    assert known.asked[0] | {"reference_landmarks": None, "progress": None} == {
        "width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 2.0, "seed": 1,
        "reference_landmarks": None, "progress": None,
    }  # fmt: skip
    assert value(found, "psnr", GENERATED) == pytest.approx(10 * np.log10(255**2 / 16), abs=0.2)
    assert value(found, "flicker", GENERATED) < 0.2 < 1 < value(found, "flicker", REFERENCE_COPY)
    assert value(found, "psnr", REFERENCE_COPY) < 20 < 30 < value(found, "psnr", VAE)
    assert value(found, "temporal_change", REFERENCE_COPY) == 0
    for subject in (GENERATED, VAE, TRUTH):
        assert value(found, "face_found", subject) == 100
        assert value(found, "landmark_distance", subject) < 2
        assert value(found, "mouth_shown_correlation", subject) > 0.85
        assert value(found, "mouth_read_correlation", subject) > 0.85
    assert value(found, "landmark_distance", REFERENCE_COPY) > 8
    assert found.result("psnr", TRUTH).value is None  # not compared with itself
    assert {found.result(name).reason_unavailable for name in LEARNED} == {
        f"no {model} model was given" for model in ("identity", "sync", "fid", "fvd")
    }
    gain = value(found, "psnr", GENERATED) - value(found, "psnr", REFERENCE_COPY)
    assert found.numbers()["psnr_above_reference_copy"] == pytest.approx(gain)
    assert Evaluation.from_json(found.to_json()) == found
    assert "its own landmarks; 2 steps, guidance 2, seed 1" in found.table()


def test_the_frames_of_another_clip_have_no_truth(data: Path, engine: LitertEngine) -> None:
    one, other = (ShardReader(data, split=split, columns=DRIVER_COLUMNS)[0] for split in ("val", "train"))
    clip = read_cross_driven(one, other, 64, 64, frames=20)
    known: Any = Known(np.repeat(clip.reference[None], 20, axis=0))
    found = evaluate_pipeline(known, [clip], sampling=QUICK, engine=engine)
    assert [subject.name for subject in found.subjects] == [GENERATED, REFERENCE_COPY]
    assert found.result("psnr").reason_unavailable == "needs true_video"
    assert value(found, "landmark_distance", GENERATED) > 1
    assert "another clip's landmarks" in found.protocol


def test_motion_modules_are_left_out_on_the_same_noise(clip: DrivenClip) -> None:
    moving, still = tiny_pipeline(), tiny_pipeline(motion=False)
    for pipeline in (moving, still):
        pipeline.set_progress_bar_config(disable=True)
    assert without_motion(still) is None
    alone = without_motion(moving)
    assert alone is not None and moving.denoiser.config["motion"]
    assert not any("motion" in name for name in alone.denoiser.state_dict())
    for name, tensor in alone.denoiser.state_dict().items():
        assert tensor is moving.denoiser.state_dict()[name] or torch.equal(tensor, moving.denoiser.state_dict()[name])
    plain = Sampling(steps=1, guidance=1.0)
    long, short = first_frames(clip, 6), first_frames(clip, 3)
    without = generate(alone, long, plain)
    assert (generate(moving, long, plain) != without).any()
    # Frames that are made independently do not depend on the clip's length, except for the rounding of sums.
    np.testing.assert_allclose(generate(alone, short, plain).astype(int), without[:3], atol=1)


def first_frames(clip: DrivenClip, count: int) -> DrivenClip:
    return replace(
        clip,
        landmarks=clip.landmarks[:count],
        valid=clip.valid[:count],
        truth=None if clip.truth is None else clip.truth[:count],
        audio=clip.audio[: 640 * count],
        frames=None if clip.frames is None else clip.frames[:count],
    )


def test_the_tiny_pipeline_goes_through_it(clip: DrivenClip, engine: LitertEngine, tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    stages: list[tuple[int, int]] = []
    found = evaluate_pipeline(
        pipeline,
        [first_frames(clip, 12)],
        sampling=Sampling(steps=1, guidance=1.0),
        engine=engine,
        on_clip=Comparison(tmp_path),
        progress=lambda _, done, total: stages.append((done, total)),
    )
    assert [subject.name for subject in found.subjects] == [GENERATED, REFERENCE_COPY, NO_MOTION, VAE, TRUTH]
    assert value(found, "psnr", GENERATED) < 15
    assert found.result("landmark_distance").reason_unavailable
    assert stages[-1][0] == stages[-1][1] > 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".mp4"}


def test_sheet_and_video(clip: DrivenClip, tmp_path: Path) -> None:
    assert clip.truth is not None
    trace = VideoTrace(clip=clip, videos={GENERATED: clip.truth[::-1], VAE: clip.truth, TRUTH: clip.truth})
    sheet = cv2.imdecode(np.frombuffer(contact_sheet(trace, columns=4), np.uint8), cv2.IMREAD_COLOR)
    assert sheet is not None
    assert sheet.shape == (3 * (128 + 18 + 4), 4 + 5 * (128 + 4), 3)
    # Generated is the truth backwards: the first image of one row is the last of the other.
    first, last = (slice(4 + column * 132, 4 + column * 132 + 128) for column in (1, 4))
    generated, true = (slice(18 + row * 150, 18 + row * 150 + 128) for row in (1, 2))
    np.testing.assert_array_equal(sheet[generated, first], sheet[true, last])
    assert (sheet[generated, first] != sheet[true, first]).any()
    shown = Comparison(tmp_path / "new", most=1)
    shown(trace)
    shown(trace)
    assert sorted(path.suffix for path in (tmp_path / "new").iterdir()) == [".mp4", ".png"]
    with av.open(str(tmp_path / "new" / f"{clip.key}.mp4")) as container:
        frames = list(container.decode(video=0))
        assert len(frames) == clip.num_frames and (frames[0].width, frames[0].height) == (4 * 256, 256 + 18)
        assert container.streams.audio
    # The driving clip's key is in the name; a key that is none of ours would lead elsewhere.
    Comparison(tmp_path / "by")(replace(trace, clip=replace(clip, key="one by other")))
    assert sorted(path.name for path in (tmp_path / "by").iterdir()) == ["one-by-other.mp4", "sheet-one-by-other.png"]
    for key in ("../out", "one by ../out", "/tmp/out"):
        with pytest.raises(ValueError, match="must be 1 to 90 characters"):
            Comparison(tmp_path / "deep" / "er")(replace(trace, clip=replace(clip, key=key)))
    assert not list(tmp_path.rglob("*out*"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_from_the_command_line(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights, folder = tmp_path / "weights", tmp_path / "found"
    tiny_pipeline(motion=False, width=64, height=64).save_pretrained(weights)
    few = ["--lmk2video", str(weights), "--data", str(data), "--frames", "12", "--steps", "1", "--guidance", "1"]
    assert main(["evaluate", *few, "--device", "cpu", "-o", str(folder)]) == 0
    assert capfd.readouterr().out.strip().splitlines()[-1] == str(folder / "validation.json")
    (title, found), *_ = read_evaluations(folder).items()
    assert title == "val clips" and found.kind == "video" and found.num_frames == 12
    assert any("sha256" in note for note in found.notes)
    assert len(list(folder.glob("sheet-*.png"))) == len(list(folder.glob("*.mp4"))) == 1
    # A network of the user's measures; one that writes a file while it is loaded does not come to it.
    torch.jit.script(Describing()).save(str(tmp_path / "fid.pt"))
    assert main(["evaluate", *few, "--device", "cpu", "--fid-model", str(tmp_path / "fid.pt")]) == 0
    assert "fid model fid.pt (sha256" in capfd.readouterr().out
    torch.jit.script(Writing(str(tmp_path / "made"))).save(str(tmp_path / "writing.pt"))
    for more, said in [
        (["--audio2mesh", str(weights)], "give one of --audio2mesh, --audio2pose and --lmk2video"),
        (["--drive", "next"], "fewer than two clips"),
        (["--split", "test"], "no clip that shows a face"),
        (["--frames", "0"], "--frames is 0"),
        (["--width", "62"], "multiples of 4;"),
        (["--fid-model", str(tmp_path / "gone.pt")], "gone.pt is not there"),
        (["--fvd-model", str(tmp_path / "writing.pt")], "made> in read-write mode: Operation not permitted"),
        (["--metric-memory", "0"], "--metric-memory is 0, must be above 0"),
        (["--metric-seconds", "inf"], "--metric-seconds is inf, must be above 0 and at most"),
        (["--lmk2video", str(tmp_path / "nowhere")], "nowhere"),
    ]:
        assert main(["evaluate", *few, *more]) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and said in lines[0], lines
    assert not (tmp_path / "made").exists()
