"""The fit of speakers: what plain formulas over all clips at once give, in parts and in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest

from annotate.fits.speakers import SPEAKERS, SpeakersSettings, percentile_of_largest, read_speakers
from shards.fits import make_fit, merge_parts, reader_for
from talkinghead.derived import Fit
from talkinghead.motion.neutral import NeutralEstimator
from talkinghead.motion.rest_pose import clip_rest_pose, pose_origin, relative_pose
from talkinghead.npz import decode_npz, encode_npz
from tests.support.drawn_samples import DrawnSample, drawn
from tests.support.speech_data import build_speech_data

Origin = Literal["rest", "first"]


def fitted(samples: Sequence[DrawnSample], sizes: Sequence[int], origin: Origin = "rest") -> dict[str, np.ndarray]:
    """The fit with parts of so many speakers each; what goes between processes goes through files."""
    settings = SpeakersSettings(pose_origin=origin)
    num_frames = sum(sample.num_frames for sample in samples)
    names = sorted({sample.speaker for sample in samples})
    parts, first = [], 0
    for size in sizes:
        part = [sample for sample in samples if sample.speaker in names[first : first + size]]
        sums = SPEAKERS.partial(part, settings, {}, num_frames)
        parts.append(decode_npz(encode_npz(sums, {}), "part")[0])
        first += size
    assert first >= len(names)
    sums = merge_parts(SPEAKERS, parts, num_frames)
    assert sums is not None
    return SPEAKERS.finish(sums, settings, {})


def plain(samples: Sequence[DrawnSample], origin: Origin) -> dict[str, Any]:
    """The same in one go, with everything in memory."""
    poses, steps, speakers = [], [], {}
    for name in sorted({sample.speaker for sample in samples}):
        estimator, meshes = NeutralEstimator(), []
        for sample in (sample for sample in samples if sample.speaker == name):
            valid = sample.columns["valid"]
            if not valid.any():
                continue
            estimator.add(sample.columns["mesh"], sample.columns["blendshapes"], valid)
            meshes.append(sample.columns["mesh"][valid])
            matrices = sample.columns["pose_matrix"]
            pose = relative_pose(matrices, pose_origin(matrices, valid, origin))
            poses.append(pose[valid].astype(np.float32))
            steps.append(np.abs(np.diff(pose, axis=0))[valid[1:] & valid[:-1]].astype(np.float32))
        if meshes:
            neutral = estimator.result()
            total = sum(mesh.sum(axis=0, dtype=np.float64) for mesh in meshes)
            count = sum(map(len, meshes))
            speakers[name] = (neutral, (total / count - neutral.mesh).astype(np.float32), count)
    joined = np.concatenate(poses)
    return {
        "speakers": speakers,
        "num_clips": len(poses),
        "num_frames": len(joined),
        "mean": joined.mean(axis=0, dtype=np.float64),
        "std": joined.std(axis=0, dtype=np.float64),
        "step_p99": np.percentile(np.concatenate(steps), 99, axis=0),
    }


@pytest.mark.parametrize("origin", ["rest", "first"])
@pytest.mark.parametrize("sizes", [[9], [1] * 9, [4, 3, 2], [2, 2, 2, 2, 2]])
def test_any_parts_give_what_all_clips_at_once_give(origin: Origin, sizes: list[int]) -> None:
    samples = drawn()
    arrays = fitted(samples, sizes, origin)
    found, expected = read_speakers(Fit(sha256="", arrays=arrays)), plain(samples, origin)
    assert list(found.speakers) == list(expected["speakers"]) and "ü3" not in found.speakers
    for name, (neutral, offset, count) in expected["speakers"].items():
        speaker = found.speakers[name]
        assert np.array_equal(speaker.neutral.mesh, neutral.mesh) and np.array_equal(speaker.mean_offset, offset)
        assert (speaker.num_frames, speaker.neutral.num_frames) == (count, neutral.num_frames)
        assert speaker.neutral.rule == neutral.rule
    assert found.speakers["ü4"].neutral.rule == "lip opening"
    poses = found.poses
    assert (poses.num_clips, poses.num_frames) == (expected["num_clips"], expected["num_frames"])
    np.testing.assert_allclose(poses.mean, expected["mean"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(poses.std, expected["std"], rtol=1e-9)
    assert np.array_equal(poses.step_p99, expected["step_p99"].astype(np.float64))
    # A row for each clip, also for those without a face.
    assert found.clips.keys == [sample.key for sample in sorted(samples, key=lambda sample: sample.speaker)]
    by_key = {sample.key: sample for sample in samples}
    for row, key in enumerate(found.clips.keys):
        sample = by_key[key]
        valid = sample.columns["valid"]
        rest = clip_rest_pose(sample.columns["pose_matrix"], valid) if valid.any() else np.eye(4)
        assert np.array_equal(found.clips.rest[row], rest) and found.clips.speakers[row] == sample.speaker
        assert found.clips.speech_variance[row] == sample.audio().var(dtype=np.float64)


def test_equal_parts_give_equal_bytes() -> None:
    assert encode_npz(fitted(drawn(), [4, 3, 2]), {}) == encode_npz(fitted(drawn(), [4, 3, 2]), {})


def test_the_percentile_of_the_largest_is_that_of_all() -> None:
    draws = np.random.default_rng(0)
    for count in [*range(1, 230), 999, 1000, 1001, 12_345, 100_000]:
        values = draws.exponential(1, (count, 6)).astype(np.float32)
        most = int(np.ceil(0.01 * (count + draws.integers(0, 50)))) + 2  # there are more frames than steps
        largest = np.sort(values, axis=0)[-most:]
        assert np.array_equal(percentile_of_largest(largest, count), np.percentile(values, 99, axis=0)), count
    assert not percentile_of_largest(np.empty((0, 6), np.float32), 0).any()


def test_what_a_part_keeps_of_its_frames_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the steps, however many clips there were, and the percentile is the same."""
    whole = fitted(drawn(), [9])
    monkeypatch.setattr("annotate.fits.speakers._MOST_WAITING", 10)
    samples = drawn()
    frames = sum(sample.num_frames for sample in samples)
    sums = SPEAKERS.partial(samples, SpeakersSettings(), {}, frames)
    assert len(sums["steps"]) == int(np.ceil(frames / 100)) + 2 < sums["step_count"][0]
    merged = SPEAKERS.merge(sums, sums, frames)
    assert len(merged["steps"]) == len(sums["steps"])
    finished = SPEAKERS.finish(sums, SpeakersSettings(), {})
    assert np.array_equal(finished["pose_step_p99"], whole["pose_step_p99"])


def test_a_motionless_head_has_a_scale_and_a_faceless_data_set_is_said() -> None:
    still = DrawnSample(key="a", speaker="b", num_frames=1)
    still.columns["valid"][:] = True
    still.columns |= {"mesh": np.zeros((1, 468, 3), np.float32), "pose_matrix": np.eye(4, dtype=np.float32)[None]}
    found = read_speakers(Fit(sha256="", arrays=fitted([still], [1])))
    assert (found.poses.std == 1e-3).all() and not found.poses.step_p99.any()
    with pytest.raises(ValueError, match="no training clip shows a face: look at make report"):
        fitted([DrawnSample(key="a", speaker="b", num_frames=9, hidden=True)], [1])


# Numbers of the release before global fits, of the same data.
BEFORE = {
    "rest": (0.044823695324425004, 1.4166425918197394, 0.8455068469047546),
    "first": (1.8693628194383705, 1.4192534590684136, 0.8455068469047546),
}


@pytest.mark.parametrize("origin", ["rest", "first"])
def test_packed_clips_give_the_numbers_that_they_always_gave(origin: Origin, tmp_path: Any) -> None:
    reader = reader_for(SPEAKERS, build_speech_data(tmp_path / "data"))
    arrays = make_fit(SPEAKERS, SpeakersSettings(pose_origin=origin), {}, reader)
    found = read_speakers(Fit(sha256="", arrays=arrays))
    assert list(found.speakers) == ["speaker-0", "speaker-1"]
    assert (found.poses.num_clips, found.poses.num_frames) == (3, 117)
    numbers = (found.poses.mean[0], found.poses.std[0], found.poses.step_p99[0])
    assert numbers == pytest.approx(BEFORE[origin], rel=1e-6)


@pytest.mark.parametrize("damage", ["gone", "shape", "type", "nan"])
def test_arrays_of_a_stranger_are_one_line(damage: str) -> None:
    arrays = fitted(drawn(), [9])
    for name, values in arrays.items():
        broken = {key: value for key, value in arrays.items() if key != name}
        if damage == "shape":
            broken[name] = values[:, None]
        elif damage == "type":
            broken[name] = values.astype("f4" if values.dtype.kind in "iu" else "i4")
        elif damage == "nan" and values.dtype.kind == "f":
            broken[name] = np.full_like(values, np.nan)
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            read_speakers(Fit(sha256="", arrays=broken))
