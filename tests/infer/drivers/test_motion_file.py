"""Saved motion: what was written plays again, on the same face to the bit; anything else is refused with what it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.drivers.driving import FileDriving
from infer.drivers.motion_file import FileDriver, FileOptions, read_motion
from talkinghead.motion.motion import Motion
from talkinghead.motion.rest_pose import placed_pose
from tests.support.drawn_portrait import drawn_portrait
from tests.support.motions import FACE, a_motion

PORTRAIT = drawn_portrait()


def saved(path: Path, motion: Motion, pose: np.ndarray, **more: np.ndarray) -> Path:
    arrays = {"mesh": motion.meshes(), "pose": pose, "fps": np.array(motion.fps), "neutral": motion.neutral}
    np.savez(path, **(arrays | more))  # pyright: ignore[reportArgumentType]
    return path


def a_pose(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-5, 5, (frames, 6))


@given(frames=st.integers(1, 30), seed=st.integers(0, 9), fps=st.sampled_from([25.0, 29.97, 30.0]))
def test_it_plays_as_it_was(tmp_path_factory: pytest.TempPathFactory, frames: int, seed: int, fps: float) -> None:
    """On the face that it was made for: meshes to the bit, and the head from the portrait's own pose."""
    motion, pose = a_motion(frames, seed, fps=fps), a_pose(frames, seed)
    path = saved(tmp_path_factory.mktemp("saved") / "m.npz", motion, pose)
    found = FileDriver().move(PORTRAIT, path).whole()
    assert found.fps == fps and (found.width, found.height) == (64, 64)
    np.testing.assert_array_equal(found.meshes(), motion.meshes())
    np.testing.assert_array_equal(found.pose_matrix, placed_pose(pose, PORTRAIT.pose_matrix))


def test_rates_gains_and_limits(tmp_path: Path) -> None:
    motion, pose = a_motion(50, 1), a_pose(50)
    path = saved(tmp_path / "m.npz", motion, pose)
    driver = FileDriver()
    assert len(driver.move(PORTRAIT, path, fps=50.0).whole()) == 100
    calm = driver.move(PORTRAIT, path, FileOptions(pose_gain=0.5, seconds=1.0)).whole()
    assert len(calm) == 25
    about = calm.pose_about(PORTRAIT.pose_matrix)
    np.testing.assert_allclose(about[:, :3], pose[:25, :3] / 2, atol=1e-9)
    np.testing.assert_allclose(about[:, 3:], pose[:25, 3:], atol=1e-9)
    assert driver.about() == {"input": {"frames": 50, "fps": 25.0}}


def test_another_face_does_the_same_in_its_proportions(tmp_path: Path) -> None:
    """A larger face that was recorded: the portrait's keeps its size, and moves as far as its own would."""
    motion = a_motion(50, 1)
    wide = np.float32(1.2)
    neutral = FACE * wide
    path = saved(tmp_path / "m.npz", motion, a_pose(50), mesh=motion.meshes() * wide, neutral=neutral)
    found = FileDriver().move(PORTRAIT, path).whole()
    assert np.abs(motion.meshes() - FACE).max() > 0.7 and np.abs(FACE * wide - FACE).max() > 1
    np.testing.assert_allclose(found.meshes(), motion.meshes(), atol=0.05)


def test_a_template_moves_the_head_alone(tmp_path: Path) -> None:
    pose = a_pose(30)
    np.save(tmp_path / "t.npy", pose)
    found = FileDriver().move(PORTRAIT, tmp_path / "t.npy", FileOptions(template_fps=60.0)).whole()
    assert found.fps == 60 and np.ptp(found.meshes(), axis=0).max() == 0
    np.testing.assert_allclose(found.pose_about(PORTRAIT.pose_matrix), pose, atol=1e-9)


def test_files_without_a_neutral_face_are_older(tmp_path: Path) -> None:
    motion = a_motion(40, 2)
    path = tmp_path / "m.npz"
    np.savez(path, mesh=motion.meshes(), pose=a_pose(40), fps=np.array(25.0))
    assert read_motion(path).neutral is not None


def broken(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no motion, and what is said of each."""
    motion, pose = a_motion(5), a_pose(5)
    nan, far = motion.meshes().copy(), pose.copy()
    nan[2, 3, 1], far[0, 0] = np.nan, 2000
    files: dict[str, tuple[Path, str]] = {
        "gone": (folder / "gone.npz", "is not there"),
        "text": (folder / "text.npz", "is no motion"),
        "cut": (folder / "cut.npz", "is no motion"),
        "pickle": (saved(folder / "pickle.npz", motion, pose, fps=np.array([{}], object)), "is no motion"),
        "nothing": (folder / "nothing.npz", "it has no mesh, fps"),
        "nan": (saved(folder / "nan.npz", motion, pose, mesh=nan), "not finite numbers"),
        "far": (saved(folder / "far.npz", motion, far), "beyond 1000 degrees"),
        "short": (saved(folder / "short.npz", motion, pose[:4]), r"mesh of the motion .*not \[4, 468, 3\]"),
        "face": (saved(folder / "face.npz", motion, pose, neutral=FACE[:4]), "neutral of the motion"),
        "still": (saved(folder / "still.npz", motion, pose, fps=np.array(0.0)), "no frame rate"),
    }
    files["text"][0].write_text("no archive")
    files["cut"][0].write_bytes(saved(folder / "whole.npz", motion, pose).read_bytes()[:5000])
    np.savez(files["nothing"][0], pose=pose)
    return files


def test_refused(tmp_path: Path) -> None:
    for name, (path, said) in broken(tmp_path).items():
        with pytest.raises(ValueError, match=said) as caught:
            read_motion(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), name


def test_a_pipe_and_a_bomb_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match="is no motion"):
        read_motion(tmp_path / "pipe.npz")
    # The archive's own directory announces three gigabytes, and nothing is unpacked to see whether that is true.
    bomb = bytearray(saved(tmp_path / "bomb.npz", a_motion(5), a_pose(5)).read_bytes())
    entry = bomb.index(b"PK\x01\x02")
    bomb[entry + 24 : entry + 28] = (3 << 30).to_bytes(4, "little")
    (tmp_path / "bomb.npz").write_bytes(bomb)
    with pytest.raises(ValueError, match="unpacks to more than 2 GiB"):
        read_motion(tmp_path / "bomb.npz")


def test_on_the_command_line(tmp_path: Path) -> None:
    """A driving: files that must be there, its hash, and what the driver says of it."""
    path = saved(tmp_path / "m.npz", a_motion(10), a_pose(10))
    unused: Any = None
    driving = FileDriving(FileDriver(), path, FileOptions(), sound=tmp_path / "gone.wav")
    with pytest.raises(ValueError, match=r"gone\.wav is not there"):
        driving.find(None)
    driving = FileDriving(FileDriver(), path, FileOptions())
    driving.find(None)
    driving.read(PORTRAIT, unused, unused, None)
    assert driving.sound is None and driving.recording is None and driving.provenance() == {}
    assert driving.describe()["motion"]["frames"] == 10 and len(driving.describe()["motion"]["sha256"]) == 64
    assert driving.move(PORTRAIT, unused, fps=30.0, device="cpu").count == 12
