"""Filters that decide which samples training should use: a pure function of their scores.

Filtering deletes nothing: a sample that is filtered out stays in its shard, and the index says why it is not kept. So
the thresholds can be changed and applied again without reading media.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from talkinghead.schema import MOST_PADDED_SOUND, Rejection
from talkinghead.timebase import FPS

_SLOWEST_FPS = 10.0  # images per second; slower ones are slide shows


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """Thresholds of the filters. None switches a rule off. A score equal to its threshold passes.

    Each description begins with the reason that a sample below or above the threshold gets.
    """

    max_damaged_fraction: float | None = 0.2
    """`damaged`: share of frames that are damaged in the source. Nothing learns from these, but in some codecs (VP9) up
    to two thirds of the damage goes unnoticed: where a fifth of the frames is known to be torn, the others are not
    trusted. A packet that was lost once costs the frames up to the next key frame, and the clip keeps the rest."""
    min_seen_fraction: float | None = 0.1
    """`no_face`: share of frames with landmarks. Below it, the few detections are taken for false ones."""
    max_multi_face_fraction: float | None = 0.2
    """`several_faces`: share of frames with more than one face, in the clip or next to its crop in the source. TalkVid
    asks for 80 of 100 points with 20 lost for each bad frame in five; LatentSync's high-resolution filter asks for
    exactly one face in every frame."""
    max_identity_drift: float | None = 0.28
    """`several_persons`: largest difference in cm between the shapes of the face before and after a moment. Clips of
    one person have 0.17 at most where they last six seconds, 0.24 in the three seconds of a turning head, 0.27 played
    at half speed. Half of the joins of two persons have more than 0.28, the others look too alike."""
    min_frames: int | None = 30
    """`too_short`: frames of the clip. AniPortrait keeps clips of 30 frames or more."""
    min_valid_run: int | None = 30
    """`few_valid_frames`: longest run of frames with a face. Single misses are masked and do not cost the clip."""
    min_valid_fraction: float | None = 0.3
    """`few_valid_frames`: share of frames with a face; training draws its windows from them."""
    min_face_fraction: float | None = 0.12
    """`small_face`: median face height over the clip's height. Clips that were cropped around the face have about 0.5
    (Hallo asks for 0.5 .. 0.7), official HDTF crops 0.45 and more."""
    min_face_source_px: float | None = 100.0
    """`small_face`: median face height in pixels of the source, which enlarging does not change. VoxCeleb2's and
    HDTF's 224 and 256 pixel versions have about 140; LatentSync's 256 would drop them."""
    max_upside_down_fraction: float | None = 0.5
    """`upside_down`: share of frames with a face whose eyes lie under the mouth (roll beyond 135°). Most faces that are
    upside down are told before, in ingest: landmarks usually take them for upright ones, and jump."""
    max_yaw_abs_median: float | None = 40.0
    """`profile`: median of the absolute yaw in degrees, as MediaPipe measures it: it reads 46 on portraits that are
    turned by some 60, where the far eye goes out of sight and its landmarks are guesses. Hallo keeps turns under 30;
    VFHQ has clips between 12 and 34."""
    max_pitch_abs_median: float | None = 45.0
    """`tilted`: median of the absolute pitch (up or down) in degrees."""
    max_roll_abs_median: float | None = 45.0
    """`tilted`: median of the absolute roll (towards a shoulder) in degrees; 90 means that a rotation flag was lost."""
    min_sharpness: float | None = 25.0
    """`blurred`: variance of the Laplacian of the face at 128 px height. Measured: 53 .. 800 on real clips, the least
    on old 224 and 256 pixel versions; 25 is a face of 280 px that was blurred by 4 px or enlarged from 46 px."""
    min_brightness: float | None = 25.0
    """`dark`: mean luma of the face, 0 .. 255."""
    max_brightness: float | None = 235.0
    """`overexposed`: mean luma of the face, 0 .. 255."""
    max_jitter_px: float | None = 6.0
    """`jitter`: median second difference of the landmarks, in pixels where the longer side has 512. On ordinary speech
    MediaPipe has 0.7 with its smoothing and 1.0 without; several pixels mean a tracker that jumps. A face moves on by
    more where there are fewer images, so a slow source may have more by as much: twice as many pixels at 12.5 images a
    second (`source_motion_fps`), where ordinary speech has up to 9."""
    min_face_change: float | None = 0.12
    """`still`: change of the face over time beyond its place, turn, size and light, as a share of its contrast. A photo
    has 0.08 at most, also one that is zoomed, panned, turned or shaken, noisy or compressed twice. Real clips have 0.5
    and more, 0.36 in their stillest two seconds; lids that blink once in a head that stands still make 0.2."""
    max_freeze_s: float | None = 1.5
    """`frozen`: seconds for which the images stand still at the longest, whatever noise lies over them. In real clips
    they never do for as long as can be measured (0.4 s), but coarse compression holds what hardly moves: a listener
    at half speed has 1.2 at 224 pixels and crf 35. A feed that hangs leaves the sound alone."""
    min_source_motion_fps: float | None = 10.0
    """`low_frame_rate`: new images per second, without repeated and blended ones. Real clips have their source's 20 ..
    25, animation on twos 12.5 and sources of 15 fps more than that; slide shows of 5 images a second have up to 8."""
    require_audio: bool = False
    """`no_audio`, `silent_audio`: whether a sample needs sound. Off, because Lmk2Video trains without sound; both are
    flagged in the scores, and training from speech leaves such samples out by itself (`shards.reader.SPEECH`)."""
    max_audio_padded_fraction: float | None = MOST_PADDED_SOUND
    """`no_audio`, where `require_audio` is set: share of the clip that the source has no sound for, as where its sound
    ends early. Training from speech asks for the default of this, too."""
    reject_hdr: bool = False
    """`hdr`: whether to leave out sources of high dynamic range, which were tone-mapped to BT.709."""
    reject_interlaced: bool = False
    """`interlaced`: whether to leave out interlaced sources, which were deinterlaced: half of their lines are made up
    where something moves."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            # NaN is refused too: it compares false.
            if value is not None and not value >= 0:
                raise ValueError(f"{item.name} is {value}, must be 0 or more, or None to switch it off")


@dataclass(frozen=True)
class _Rule:
    """One comparison of a score with a threshold."""

    reason: str
    score: str
    limit: float | None
    most: bool
    """Whether `limit` is the largest allowed value; otherwise the smallest."""


def _rules(settings: FilterSettings, scores: Mapping[str, float | None]) -> tuple[_Rule, ...]:
    """The rules in the order of judgement: those whose failure makes later scores meaningless come first."""
    # Of a clip of 25 images a second; no more than for the slowest source that is kept.
    jitter, rate = settings.max_jitter_px, scores.get("source_motion_fps")
    if jitter is not None and rate is not None:
        jitter *= FPS / min(max(rate, _SLOWEST_FPS), FPS)
    # Scores that are flags: 0 allows none.
    audio, hdr, interlaced = (
        0.0 if wanted else None for wanted in (settings.require_audio, settings.reject_hdr, settings.reject_interlaced)
    )
    padded = settings.max_audio_padded_fraction if settings.require_audio else None
    return (
        _Rule("hdr", "hdr", hdr, True),
        _Rule("interlaced", "interlaced", interlaced, True),
        _Rule("damaged", "damaged_fraction", settings.max_damaged_fraction, True),
        _Rule("no_face", "valid_fraction", settings.min_seen_fraction, False),
        _Rule("several_faces", "multi_face_fraction", settings.max_multi_face_fraction, True),
        _Rule("several_faces", "source_multi_face_fraction", settings.max_multi_face_fraction, True),
        _Rule("several_persons", "identity_drift", settings.max_identity_drift, True),
        _Rule("too_short", "num_frames", settings.min_frames, False),
        _Rule("few_valid_frames", "longest_valid_run", settings.min_valid_run, False),
        _Rule("few_valid_frames", "valid_fraction", settings.min_valid_fraction, False),
        _Rule("small_face", "face_fraction", settings.min_face_fraction, False),
        _Rule("small_face", "face_source_px", settings.min_face_source_px, False),
        _Rule("upside_down", "upside_down_fraction", settings.max_upside_down_fraction, True),
        _Rule("profile", "yaw_abs_median", settings.max_yaw_abs_median, True),
        _Rule("tilted", "pitch_abs_median", settings.max_pitch_abs_median, True),
        _Rule("tilted", "roll_abs_median", settings.max_roll_abs_median, True),
        _Rule("dark", "brightness", settings.min_brightness, False),
        _Rule("overexposed", "brightness", settings.max_brightness, True),
        _Rule("blurred", "sharpness", settings.min_sharpness, False),
        _Rule("jitter", "jitter_px", jitter, True),
        _Rule("still", "face_change", settings.min_face_change, False),
        _Rule("frozen", "longest_freeze_s", settings.max_freeze_s, True),
        _Rule("low_frame_rate", "source_motion_fps", settings.min_source_motion_fps, False),
        _Rule("no_audio", "audio_missing", audio, True),
        _Rule("no_audio", "audio_padded_fraction", padded, True),
        _Rule("silent_audio", "audio_silent", audio, True),
    )


def judge(scores: Mapping[str, float | None], settings: FilterSettings) -> Rejection | None:
    """The reason why a sample is not used, or None to keep it. The first rule that fails gives the reason.

    Args:
        scores: Scores of `annotate.scores.sample_scores`. A score that is absent or None fails no rule: a measure that
            is missing does not count against a clip (one without any face has a `valid_fraction` of 0).
        settings: Thresholds.
    """
    for rule in _rules(settings, scores):
        value = scores.get(rule.score)
        if value is None or rule.limit is None:
            continue
        if value > rule.limit if rule.most else value < rule.limit:
            comparison = "above" if rule.most else "below"
            return Rejection(
                reason=rule.reason, score=value, detail=f"{rule.score} {value:.4g} is {comparison} {rule.limit:.4g}"
            )
    return None
