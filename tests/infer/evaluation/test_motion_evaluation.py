"""Evaluation of meshes and poses: known predictions get known numbers next to their baselines; gaps are reported."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infer.evaluation.evaluation_result import Evaluation, number, read_evaluations, write_evaluations
from infer.evaluation.motion_evaluation import (
    FREE_RUNNING,
    PREVIOUS_POSE,
    SHIFTED_TRUTH,
    TEACHER_FORCED,
    TRAINING_MEAN,
    TRUTH,
    Trace,
    TrueClip,
    evaluate_mesh,
    evaluate_pose,
    read_clips,
)
from infer.metrics import METRICS
from shards.reader import ShardReader
from talkinghead.annotation import blank_arrays
from talkinghead.geometry.canonical import mean_face
from talkinghead.geometry.pose import matrix_from_pose
from talkinghead.motion.annotated import annotated_motion
from talkinghead.motion.motion import Motion
from talkinghead.motion.neutral import neutral_mesh
from talkinghead.motion.rest_pose import clip_rest_pose, previous_poses, relative_pose
from tests.support.packed_data import PackedClip, annotation_members, media_members, pack_data


def clip(key: str, frames: int = 100, *, seed: int = 0, faceless: tuple[int, ...] = ()) -> TrueClip:
    """A talking, nodding face with speech, some frames without a face."""
    rng = np.random.default_rng(seed)
    opening = 1 + 0.5 * np.convolve(rng.normal(size=frames + 4), np.ones(5) / 5, mode="valid")
    mesh = np.repeat(mean_face().vertices[None].astype(np.float32), frames, axis=0)
    mesh[:, 14] = mesh[:, 13] - np.stack([0 * opening, opening, 0 * opening], axis=1)
    pose = np.cumsum(rng.normal(0, 0.5, (frames, 6)), axis=0) + np.array([5, -3, 0, 0, 0, -30])
    valid = np.ones(frames, bool)
    valid[list(faceless)] = False
    matrix = matrix_from_pose(pose)
    mesh[~valid], matrix[~valid] = np.nan, np.nan
    speech = np.repeat(np.arange(frames) // 10 % 2, 640) * rng.normal(0, 0.1, frames * 640)
    columns = {"mesh": mesh, "pose_matrix": matrix, "blendshapes": np.full((frames, 52), np.nan), "valid": valid}
    motion = annotated_motion(columns, width=64, height=64) if valid.any() else None
    return TrueClip(key=key, speaker="p", audio=speech.astype(np.float32), motion=motion)


CLIPS = [clip("a", 100, faceless=(3, 50, 51)), clip("b", 60, seed=1)]


def motion_of(one: TrueClip) -> Motion:
    assert one.motion is not None
    return one.motion


def true_offset(one: TrueClip) -> np.ndarray:
    motion = motion_of(one)
    return np.nan_to_num(motion.meshes() - neutral_mesh(motion.meshes(), None, one.valid).mesh)


def true_pose(one: TrueClip) -> np.ndarray:
    return motion_of(one).pose_about(clip_rest_pose(motion_of(one).pose_matrix, one.valid))


def test_a_perfect_mesh() -> None:
    found = evaluate_mesh(true_offset, iter(CLIPS), mean_offset=np.zeros((468, 3)))
    for result in found.subjects[0].results:
        if result.better == "lower" or "lag" in result.name:
            assert result.value == pytest.approx(0, abs=1e-5), result.name
        if result.better == "higher":
            assert result.value == pytest.approx(1), result.name
    assert (len(found.clips), found.num_frames, found.num_invalid) == (2, 160, 3)
    assert found.numbers()["mesh_l1_to_neutral_mesh"] == pytest.approx(0, abs=1e-5)


def test_baselines_of_a_mesh() -> None:
    """The neutral mesh as prediction is the baseline; the shifted truth comes 10 frames late."""
    found = evaluate_mesh(lambda one: np.zeros((one.num_frames, 468, 3)), CLIPS, mean_offset=np.full((468, 3), 0.1))
    assert [subject.name for subject in found.subjects] == [
        "prediction", "neutral mesh", "training mean", "shifted truth", "truth",
    ]  # fmt: skip
    for name in ("mesh_l1", "lip_error", "velocity_error"):
        assert found.result(name).value == found.result(name, "neutral mesh").value > 0
    assert found.numbers()["mesh_l1_to_neutral_mesh"] == 1
    assert found.result("mouth_opening_correlation").reason_unavailable == "the predicted mouth does not move"
    assert found.result("mouth_opening_lag", SHIFTED_TRUTH).value == 10
    assert found.result("mesh_l1", TRAINING_MEAN).value == pytest.approx(
        np.mean(
            [np.abs(true_offset(one)[one.valid] - 0.1).mean() * 10 for one in CLIPS for _ in range(one.valid.sum())]
        )
    )


def test_neutral_mesh_of_the_caller() -> None:
    """A neutral mesh that is 0.2 cm too far to the right shifts the prediction by the same 0.2 cm."""
    moved = [
        replace(one, motion=replace(motion_of(one), neutral=motion_of(one).neutral + np.float32([0.2, 0, 0])))
        for one in CLIPS
    ]
    found = evaluate_mesh(true_offset, moved, known_neutral=True)
    assert "(given)" in found.protocol
    assert found.result("mesh_error").value == pytest.approx(2, abs=1e-4)
    assert "The training mean was not given." in found.notes


def test_a_perfect_pose_and_its_baselines() -> None:
    traces: list[Trace] = []
    seen: list[np.ndarray] = []

    def teacher(one: TrueClip, previous: np.ndarray) -> np.ndarray:
        seen.append(previous)
        return previous

    found = evaluate_pose(
        lambda one: np.nan_to_num(true_pose(one)),
        CLIPS,
        teacher_forced=teacher,
        mean_pose=np.zeros(6),
        on_clip=traces.append,
    )
    assert found.result("pose_rotation_error", FREE_RUNNING).value == pytest.approx(0, abs=1e-6)
    assert found.result("pose_l1", "zero pose").value == found.result("pose_l1", TRAINING_MEAN).value
    copied = found.result("pose_l1", TEACHER_FORCED).value
    assert 0 < copied == found.result("pose_l1", PREVIOUS_POSE).value < found.result("pose_l1", "zero pose").value
    assert set(found.numbers()) >= {"free-running/pose_l1", "teacher-forced/pose_l1_to_zero_pose"}
    truth = found.result("pose_diversity", TRUTH).value
    assert truth == pytest.approx(found.result("pose_diversity", FREE_RUNNING).value)
    assert found.result("pose_l1", TRUTH).value is None
    np.testing.assert_array_equal(seen[0][[0, 1, 3]], np.concatenate((np.zeros((1, 6)), true_pose(CLIPS[0])[[0, 2]])))
    np.testing.assert_array_equal(seen[0][4], true_pose(CLIPS[0])[2], "held over the frame without a face")
    assert [trace.clip.key for trace in traces] == ["a", "b"]
    assert set(traces[0].predictions) == {FREE_RUNNING, TEACHER_FORCED}


def test_poses_from_the_first_frame() -> None:
    found = evaluate_pose(lambda one: np.zeros((one.num_frames, 6)), CLIPS[1:], origin="first")
    matrix = motion_of(CLIPS[1]).pose_matrix
    expected = np.abs(relative_pose(matrix, matrix[0])).mean()
    assert found.result("pose_l1").value == found.result("pose_l1", "zero pose").value == pytest.approx(expected)


def test_previous_poses_by_hand() -> None:
    true = np.arange(4.0)[:, None] + np.ones((4, 6))
    true[[0, 2]] = np.nan
    assert previous_poses(true)[:, 0].tolist() == [0, 0, 2, 2]


def test_a_clip_without_a_face_is_counted_and_said() -> None:
    blind = clip("c", 20, faceless=tuple(range(20)))
    found = evaluate_mesh(true_offset, [*CLIPS, blind])
    assert (len(found.clips), found.num_invalid) == (3, 23)
    assert "1 of 3 clips have no face and are not measured." in found.notes
    none = evaluate_mesh(true_offset, [blind])
    assert none.numbers() == {}
    assert none.table()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a: the prediction is \(5, 468, 3\), expected \(100, 468, 3\)"):
        evaluate_mesh(lambda one: np.zeros((5, 468, 3)), CLIPS)
    with pytest.raises(ValueError, match="b: the prediction is not finite"):
        evaluate_pose(lambda one: np.full((one.num_frames, 6), np.nan if one.key == "b" else 0.0), CLIPS)
    with pytest.raises(ValueError, match="no prediction"):
        evaluate_pose(None, CLIPS)


def test_files_and_table(tmp_path: Path) -> None:
    found = {
        "held-out clips": evaluate_mesh(true_offset, CLIPS),
        "pose": evaluate_pose(lambda one: np.zeros((one.num_frames, 6)), CLIPS),
    }
    write_evaluations(tmp_path, found)
    assert read_evaluations(tmp_path) == found
    value = json.loads((tmp_path / "validation.json").read_text())
    assert [item["title"] for item in value["evaluations"]] == list(found)
    assert value["evaluations"][1]["num_frames"] == 160
    assert Evaluation.from_json(value["evaluations"][1]) == found["pose"]
    text = (tmp_path / "validation.txt").read_text()
    assert "held-out clips: 2 clips, 160 frames (6 s), 3 without a face" in text
    for name, metric in METRICS.items():
        assert (name in text) == ("predicted_mesh" in metric.needs or "predicted_pose" in metric.needs), name
    for wanted in ("lip_vertex_error ↓", "neutral mesh", "0.4 s late", "clip by clip", "mm/s²"):
        assert wanted in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 9}', "is no result .* it has format 9"),
        ("[" * 50_000 + "]" * 50_000, "is no JSON of ours: it is nested too deeply"),
        ("[1, 2]", "is no result"),
        ("{", "is no JSON"),
        (json.dumps({"format": 1, "evaluations": [{"title": []}]}), "is no result"),
    ],
)
def test_results_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "validation.json").write_text(text)
    with pytest.raises(ValueError, match=rf"validation\.json {said}") as caught:
        read_evaluations(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (("kind",), 3),
        (("notes",), "abc"),
        (("clips",), {"a": 1}),
        (("clips", 0, "num_frames"), "12"),
        (("subjects", 0, "name"), ["x"]),
        (("subjects", 0, "results", 0, "value"), "high"),
        (("subjects", 0, "results", 0, "value"), 10**400),
        (("subjects", 0, "results", 0, "per_clip"), [1]),
        (("subjects", 0, "results", 0, "per_clip", "a"), {"b": 1}),
        (("subjects", 0, "results", 0, "better"), {}),
        (("subjects", 0, "results"), []),
        (("subjects", 0, "results", 0, "name"), "another"),
        (("title",), 3),
    ],
)
def test_a_result_with_other_values_in_it(tmp_path: Path, place: tuple[str | int, ...], wrong: object) -> None:
    """Whoever prints or draws the numbers of a stranger's run gets numbers, or one line."""
    write_evaluations(tmp_path, {"pose": evaluate_pose(lambda one: np.zeros((one.num_frames, 6)), CLIPS)})
    value = json.loads((tmp_path / "validation.json").read_text())
    at = value["evaluations"][0]
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = wrong
    (tmp_path / "validation.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"validation\.json is no result of an evaluation: "):
        read_evaluations(tmp_path)


def test_a_result_is_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "validation.json")
    with pytest.raises(ValueError, match=r"validation\.json is a named pipe"):
        read_evaluations(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.12345, "0.123"),
        (-1.234, "-1.23"),
        (123.4, "123.4"),
        (4321.0, "4321"),
        (1e-5, "1.0e-05"),
    ],
)
def test_numbers_to_read(value: float | None, text: str) -> None:
    assert number(value) == text


def test_clips_of_a_data_set(tmp_path: Path) -> None:
    """Clips read from the shards hold what was packed."""
    made = clip("folder-a", 30, faceless=(4,))
    motion = motion_of(made)
    rng = np.random.default_rng(0)
    arrays = blank_arrays(30)
    for name, values in arrays.items():
        if name != "valid":
            values[made.valid] = rng.random(values[made.valid].shape, np.float32)
    arrays |= {
        "valid": made.valid,
        "mesh": motion.meshes(),
        "pose_matrix": motion.pose_matrix.astype(np.float32),
    }
    frames = np.zeros((30, 64, 64, 3), np.uint8)
    packed = PackedClip(
        key="folder-a",
        num_frames=30,
        media=media_members("folder-a", frames, made.audio, source_id="a", group="someone"),
        annotation=annotation_members("folder-a", arrays),
        split="val",
        split_group="someone",
    )
    reader = ShardReader(pack_data(tmp_path / "data", [packed], min_shards=1), split="val")
    (read,) = read_clips(reader)
    assert (read.key, read.speaker, read.num_frames) == ("folder-a", "someone", 30)
    assert (read.valid == made.valid).all()
    np.testing.assert_allclose(motion_of(read).meshes(), motion.meshes(), atol=1e-3)
    np.testing.assert_allclose(motion_of(read).pose_matrix, motion.pose_matrix, atol=1e-5)
    np.testing.assert_allclose(read.audio, np.clip(made.audio, -1, 1), atol=1e-4)
    (short,) = read_clips(reader, most_frames=4, neutral=lambda speaker: np.full((468, 3), len(speaker), np.float32))
    assert (short.num_frames, len(short.audio)) == (4, 2560) and (motion_of(short).neutral == len("someone")).all()
    np.testing.assert_array_equal(motion_of(short).pose_matrix, motion_of(read).pose_matrix[:4])
    found = evaluate_mesh(lambda one: np.zeros((30, 468, 3)), [read])
    assert found.result("mesh_l1").value == found.result("mesh_l1", "neutral mesh").value
