"""What moves in a clip: photos are told from faces, hanging feeds and slide shows from clips; real clips are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from annotate.clip import annotate_clip
from annotate.filters import FilterSettings, judge
from annotate.movement import image_scores, longest_run, mesh_scores, motion_rate
from annotate.scores import Scores, sample_scores
from annotate.settings import AnnotateSettings
from annotate.small_images import SmallImages, small_image
from talkinghead.face.model import load_official
from talkinghead.geometry.canonical import canonical_face, mean_face
from talkinghead.media.video_source import VideoSource
from tests.support.ingested_clips import WholeWay
from tests.support.posed_faces import PosedClip, photo, shaken, talking

FRAMES = 75
TIME = np.arange(FRAMES) / FRAMES


def scores_of(clip: PosedClip, damaged: list[int] | None = None) -> Scores:
    images = np.stack([small_image(image) for image in clip.images])
    return image_scores(images, clip.landmarks, damaged or [])


def reason(scores: Scores) -> str | None:
    verdict = judge(scores, FilterSettings())
    return verdict and verdict.reason


def path(size: np.ndarray | float = 1, turn: np.ndarray | float = 0, x: np.ndarray | float = 0) -> np.ndarray:
    """How a photo is moved in each frame."""
    return np.stack(np.broadcast_arrays(size, turn, x, 0.3 * np.asarray(x), TIME)[:4], axis=1)


# --- photos -----------------------------------------------------------------------------------------------------------

PHOTOS: dict[str, Callable[[], PosedClip]] = {
    "as it is": lambda: photo(FRAMES),
    "zoomed in": lambda: photo(FRAMES, path(1 + 0.3 * TIME)),
    "zoomed out": lambda: photo(FRAMES, path(1.3 - 0.3 * TIME)),
    "panned": lambda: photo(FRAMES, path(1.2, 0, 60 * TIME - 30)),
    "turned": lambda: photo(FRAMES, path(1.1, 10 * TIME - 5)),
    "all of these": lambda: photo(FRAMES, path(1 + 0.2 * TIME, 6 * TIME, 30 * TIME)),
    "tilted": lambda: photo(FRAMES).tilted(0.1),
    "tilted in the hand": lambda: photo(FRAMES, shaken(FRAMES)).tilted(0.06),
    "in the hand": lambda: photo(FRAMES, shaken(FRAMES)),
    "noisy": lambda: photo(FRAMES).noisy(12),
    "noisy in the hand": lambda: photo(FRAMES, shaken(FRAMES)).noisy(8),
    "faded in and out": lambda: photo(FRAMES).changed(
        lambda n, image: image * np.clip(min(n, FRAMES - n) / 20, 0.1, 1)
    ),
    "under a flickering lamp": lambda: photo(FRAMES).changed(lambda n, image: image * (0.8 + 0.2 * np.sin(n))),
    "under two greys": lambda: photo(FRAMES).changed(lambda n, image: image + (n // 3 % 2) * 6),
}


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("quality", [None, 30])
def test_a_photo_is_still(name: str, quality: int | None, tmp_path: Path) -> None:
    clip = PHOTOS[name]()
    scores = scores_of(clip if quality is None else clip.compressed(tmp_path, quality))
    assert scores["face_change"] is not None and scores["face_change"] < 0.1
    assert reason(scores) == "still"


def test_one_photo_after_another_is_still() -> None:
    """A cut between two photos is a change, but not of a face."""
    cut = photo(3 * FRAMES).changed(lambda n, image: image if n < 140 else image[:, ::-1])
    assert reason(scores_of(cut)) == "still"


FACES: dict[str, Callable[[], PosedClip]] = {
    "speaks": lambda: talking(FRAMES),
    "speaks, no blink": lambda: talking(FRAMES, eyes=False),
    "listens and blinks": lambda: talking(FRAMES, lips=False, moved=shaken(FRAMES, 0.5)),
    "speaks in the hand": lambda: talking(FRAMES, moved=shaken(FRAMES)),
    "speaks while it is zoomed": lambda: talking(FRAMES, moved=path(1 + 0.3 * TIME)),
    "speaks, noisy": lambda: talking(FRAMES).noisy(12),
    "speaks, tilted": lambda: talking(FRAMES).tilted(0.1),
}


@pytest.mark.parametrize("name", FACES)
@pytest.mark.parametrize("quality", [None, 30])
def test_a_face_that_moves_is_kept(name: str, quality: int | None, tmp_path: Path) -> None:
    """With lips or eyes alone, and a head that is stiller than any real one."""
    clip = FACES[name]()
    scores = scores_of(clip if quality is None else clip.compressed(tmp_path, quality))
    assert scores["face_change"] is not None and scores["face_change"] > 0.15
    assert reason(scores) is None, scores


def test_landmarks_alone() -> None:
    """Scores of the mesh: the head's own movement is none of the face's."""
    draws, lips = np.random.default_rng(0), 0.5 * np.sin(np.arange(FRAMES))
    mesh = np.repeat(mean_face().vertices[None], FRAMES, axis=0)
    pose = np.zeros((FRAMES, 6))
    assert mesh_scores(mesh, pose) == {"face_movement_mm": 0.0, "head_movement_deg": 0.0}
    trembling = mesh_scores(mesh + draws.normal(0, 0.03, mesh.shape), pose)
    mesh[:, 17, 1] += np.repeat(lips[::5], 5)
    pose[:, 1] = 170 + np.arange(FRAMES) * 0.5
    pose[:, 1] -= 360 * (pose[:, 1] > 180)
    moving = mesh_scores(mesh, pose)
    assert 0 < (trembling["face_movement_mm"] or 0) < 0.3 and (moving["face_movement_mm"] or 0) > 0.1
    assert moving["head_movement_deg"] == pytest.approx(10.2, abs=0.3), "also across 180 degrees"
    mesh[9:] = np.nan
    assert mesh_scores(mesh, pose) == {"face_movement_mm": None, "head_movement_deg": None}


# --- images that repeat -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0, 6])
def test_a_feed_that_hangs_is_frozen(noise: int, tmp_path: Path) -> None:
    """Two of four seconds; time stamps and noise go on."""
    hanging = talking(50, moved=shaken(50)).taken([*range(25), *[25] * 50, *range(25, 50)]).noisy(noise)
    scores = scores_of(hanging.compressed(tmp_path, 23))
    assert scores["longest_freeze_s"] == pytest.approx(2.0, abs=0.2) and reason(scores) == "frozen"
    assert (scores["source_motion_fps"] or 0) > 20, "its rate is that of the rest"
    assert judge(scores, FilterSettings(max_freeze_s=2.5)) is None


def test_a_new_key_frame_does_not_end_a_freeze() -> None:
    """The image is coded anew, a level off in many places."""
    draws = np.random.default_rng(0)
    anew = cv2.resize(draws.integers(0, 2, (16, 16)).astype(np.float32), (512, 512), interpolation=cv2.INTER_NEAREST)
    hanging = talking(50, moved=shaken(50)).taken([*range(25), *[25] * 50, *range(25, 50)])
    scores = scores_of(hanging.changed(lambda n, image: image + anew[..., None] * (n >= 50)))
    assert scores["longest_freeze_s"] == pytest.approx(2.0, abs=0.2)


def test_damaged_frames_are_no_freeze() -> None:
    """Where a packet is lost, decoders show the last image again; such frames are left out elsewhere."""
    clip = talking(100, moved=shaken(100)).taken([*range(20), *[20] * 40, *range(60, 100)])
    assert reason(scores_of(clip)) == "frozen"
    scores = scores_of(clip, list(range(21, 60)))
    assert reason(scores) is None and (scores["repeated_image_fraction"] or 0) < 0.1


def faded(clip: PosedClip, every: int) -> PosedClip:
    """One image in `every`, each faded into the next for the second half of its time."""

    def fade(number: int, _: np.ndarray) -> np.ndarray:
        at = number // every
        weight = np.clip((number % every) / every * 2 - 1, 0, 1)
        one, two = (clip.images[min(place * every, len(clip.images) - 1)] for place in (at, at + 1))
        return one * (1 - weight) + two * weight

    return clip.changed(fade)


@pytest.mark.parametrize("fade", [False, True])
@pytest.mark.parametrize("rate", [1, 2, 5])
def test_a_slide_show_is_slow(rate: int, fade: bool, tmp_path: Path) -> None:
    clip, every = talking(125, moved=shaken(125, 12)), 25 // rate
    slides = faded(clip, every) if fade else clip.taken([n // every * every for n in range(125)])
    for scores in (scores_of(slides), scores_of(slides.compressed(tmp_path, 26))):
        assert reason(scores) in ({"low_frame_rate"} if rate > 1 else {"low_frame_rate", "frozen"})
        assert (scores["source_motion_fps"] or 0) <= (9.5 if fade else 1.3 * rate)


@pytest.mark.parametrize(
    ("source", "least", "most"),
    [(12.5, 12, 16), (15, 15, 20), (24, 23, 25), (25, 25, 25), (50, 25, 25)],
)
def test_slower_sources_and_animation_on_twos_are_kept(source: float, least: float, most: float) -> None:
    clip = talking(200, moved=shaken(200, 12))
    frames = [int(np.floor(n / 25 * source + 1e-9) / source * 50 + 1e-9) % 200 for n in range(100)]
    scores = scores_of(clip.taken(frames))
    assert least <= (scores["source_motion_fps"] or 0) <= most and reason(scores) is None
    assert scores["repeated_image_fraction"] == pytest.approx(max(0.0, 1 - source / 25), abs=0.03)


def test_repeats_that_the_source_explains() -> None:
    from tests.annotate.test_filters import clip_info, columns

    clip = talking(100, moved=shaken(100, 12)).taken([n // 2 * 2 for n in range(100)])
    images = np.stack([small_image(image) for image in clip.images])
    arrays = columns(100)
    arrays["landmarks"][:, :468, :2] = clip.landmarks
    by_right = clip_info(source_fps=12.5, source_pts=[n // 2 / 12.5 for n in range(100)])
    unexplained = [
        sample_scores(arrays, info, images)["unexplained_repeat_fraction"] for info in (by_right, clip_info())
    ]
    assert unexplained == pytest.approx([0, 0.5], abs=0.03)
    assert "face_change" not in sample_scores(arrays, clip_info())


def test_the_rate_of_new_images() -> None:
    assert motion_rate(np.ones(50, bool)) == 25
    assert motion_rate(np.arange(50) % 5 == 0) == 5
    resting = np.ones(100, bool)
    resting[20:70] = False
    assert motion_rate(resting) == 25
    assert motion_rate(np.arange(50) == 0) == motion_rate(np.zeros(50, bool)) == 0


def test_too_few_faces_say_nothing() -> None:
    clip = talking(12)
    clip.landmarks[9:] = np.nan
    assert set(scores_of(clip).values()) == {None}
    clip.landmarks[0] = np.nan
    assert reason(scores_of(clip)) is None
    assert longest_run(np.array([0, 1, 1, 0, 1])) == 2


def test_damaged_frames_are_as_good_as_none() -> None:
    """Where nearly all of a clip is damaged, there is nothing to measure: no score, and none that is not a number."""
    clip = talking(30, moved=shaken(30))
    for intact in (0, 1, 9):
        assert set(scores_of(clip, list(range(intact, 30))).values()) == {None}
    whole = scores_of(clip, list(range(10, 30)))
    assert all(value is not None and np.isfinite(value) for value in whole.values()), whole
    # Torn images change more than any face.
    torn = photo(30).changed(lambda n, image: image if n < 20 else np.roll(image, 40 * n, axis=0)[::-1])
    assert reason(scores_of(torn, list(range(20, 30)))) == "still"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("frames", [0, 1, 2, 9, 10, 11])
def test_clips_of_a_few_frames(frames: int) -> None:
    clip = talking(max(frames, 1))
    images = np.stack([small_image(image) for image in clip.images])[:frames]
    unseen = np.full((frames, 468, 2), np.nan)
    for landmarks in (clip.landmarks[:frames], unseen):
        known = frames >= 10 and landmarks is not unseen
        scores = image_scores(images, landmarks)
        assert all((value is not None) == known for value in scores.values())
        one_image = image_scores(np.repeat(images[:1], frames, axis=0), landmarks)
        assert reason(one_image) == ("still" if known else None)
        assert all(value is None or np.isfinite(value) for value in one_image.values())
    if frames:
        unseen[0] = clip.landmarks[0]
        assert set(image_scores(images, unseen).values()) == {None}, "a single frame with a face"


def test_faces_at_the_border_and_flat_images() -> None:
    """Landmarks may lie outside of the frame; an image without contrast shows no change."""
    clip = talking(20)
    outside = PosedClip(clip.images, clip.landmarks + 0.7)
    assert all(value is not None for value in scores_of(outside).values())
    flat = clip.changed(lambda _, image: np.full_like(image, 90))
    assert reason(scores_of(flat)) == "still"


# --- real media -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def annotated(shared: Path) -> Callable[[list[np.ndarray]], Scores]:
    """Scores of images with the official model."""
    from annotate.engines import make_engine
    from talkinghead.face.detector import FaceDetector

    model = load_official(shared / "models" / "face_landmarker.task")
    engine, detector, face = make_engine("litert", model), FaceDetector(model), canonical_face(model.geometry_metadata)

    def score(images: list[np.ndarray]) -> Scores:
        small = SmallImages()
        arrays = annotate_clip(small.watch(iter(images)), engine, detector, face, AnnotateSettings())
        return image_scores(small.stacked(), arrays["landmarks"])

    return score


def some_frames(file: Path, count: int, first: int = 0) -> list[np.ndarray]:
    with VideoSource(file) as source:
        frames = [frame.image for frame, _ in zip(source.frames(), range(first + count), strict=False)]
    return [_fitted(image) for image in frames[first:]]


def _fitted(image: np.ndarray) -> np.ndarray:
    scale = 512 / max(image.shape[:2])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


REAL = (
    "video/SadTalker_WDA_AlexandriaOcasioCortez_000.mp4",
    "video/Moore-AnimateAnyone_4.mp4",
    "video/video-retalking_face_3.mp4",
    "video/Talking-Face_PC-AVS_00086.mp4",
    "video/Real3DPortrait_May_5s.mp4",
    "video/EDTalk_mouth_source.mp4",
    "hard/video-retalking_face_1.mp4",
    "hard/LivePortrait_d18.mp4",
    "hard/IP_LAP_129.mp4",
)


@pytest.mark.parametrize("name", REAL)
def test_real_clips_are_kept(media: Path, annotated: Callable[..., Scores], name: str) -> None:
    scores = annotated(some_frames(media / name, 50))
    assert reason(scores) is None and (scores["face_change"] or 0) > 0.3, scores


@pytest.mark.parametrize("name", ["video/Real3DPortrait_May_5s.mp4", "video/EDTalk_mouth_source.mp4"])
def test_a_photo_of_a_real_face_is_still(media: Path, annotated: Callable[..., Scores], name: str) -> None:
    """With the landmarks that the network finds on each frame anew: zoomed, tilted, and in the hand under noise."""
    image = some_frames(media / name, 1, first=40)[0]
    tilted = PosedClip([image] * 50, np.zeros((50, 1, 2))).tilted(0.12).images
    draws, moves = np.random.default_rng(0), shaken(50)
    zoomed, shown = [], []
    for number in range(50):
        for made, (size, turn, x, y) in ((zoomed, (1 + number / 250, 0, 0, 0)), (shown, moves[number].tolist())):
            matrix = cv2.getRotationMatrix2D((256, 256), turn, size)
            matrix[:, 2] += x, y
            made.append(cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT))
    noisy = [np.clip(one + draws.normal(0, 8, one.shape), 0, 255).astype(np.uint8) for one in shown]
    for images in (zoomed, noisy, tilted):
        scores = annotated(images)
        assert reason(scores) == "still" and (scores["face_change"] or 0) < 0.09, scores


@pytest.mark.parametrize(("name", "reasons"), [("still", {"still"}), ("slideshow_2fps", {"low_frame_rate", "frozen"})])
def test_failing_inputs(shared: Path, name: str, reasons: set[str]) -> None:
    """Of `../shared/failing`, on their whole way."""
    if not (shared / "failing").is_dir():
        pytest.skip("needs the inputs of ../shared/failing, which are not here")
    way = WholeWay(load_official(shared / "models" / "face_landmarker.task"))
    (piece,) = way.pieces(shared / "failing" / f"{name}.mp4")
    scores = way.judged(piece).scores
    assert reason(scores) in reasons, scores
