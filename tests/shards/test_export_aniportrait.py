"""Other programs read our files: stock `webdataset`, and AniPortrait's training by its own rules."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset

from shards.__main__ import main
from shards.export_aniportrait import export_aniportrait
from shards.reader import ShardReader
from tests.support.indexes import open_index
from tests.support.shard_data import LENGTHS, annotation_contents, clip_arrays, media_contents, sample_key


@pytest.mark.parametrize(
    ("pattern", "contents"), [("clips-*.tar", media_contents), ("ann/v1/ann-*.tar", annotation_contents)]
)
def test_stock_webdataset_reads_every_tar(built, pattern, contents):
    tars = sorted(map(str, built.local_root.glob(pattern)))
    assert len(tars) == 3
    keys = []
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        keys.append(sample["__key__"])
        number = int(keys[-1].split("_")[1][:2])
        assert {name: data for name, data in sample.items() if not name.startswith("__")} == contents(number)
    assert keys == [row.key for row in open_index(built, "v1").rows()]
    assert sorted(keys) == [sample_key(number) for number in range(len(LENGTHS))]


def load_like_aniportrait(training_json: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Pairs of frames and landmarks by AniPortrait's rules: two sorted globs, cut to the shorter, ends named alike."""
    pairs = {}
    for key, value in json.loads(training_json.read_text()).items():
        (clip,) = value["clip_data_list"]
        frames = sorted((training_json.parent / "frames" / key).glob("*.png"))
        landmarks = sorted((training_json.parent / "landmarks" / key).glob("*lmks.npy"))
        count = min(len(frames), len(landmarks))
        frames, landmarks = frames[:count], landmarks[:count]
        assert value["video_clip_num"] == 1 and count >= 30
        for end in (0, -1):
            assert frames[end].name.split(".")[0] == landmarks[end].name.split("_")[0]
        # Paths are relative to the folder, in which the training is started.
        assert [training_json.parent / path for path in clip["frame_path_list"]] == frames
        assert [training_json.parent / path for path in clip["lmks_list"]] == landmarks
        assert clip["frame_name_list"] == [f"{key}/{path.name}" for path in frames]
        pairs[key] = list(zip(frames, landmarks, strict=True))
    return pairs


def test_aniportrait_layout(built, tmp_path):
    reader = ShardReader(built, split=None, kept=False)
    report = export_aniportrait(reader, tmp_path / "out")
    pairs = load_like_aniportrait(report.training_json)
    faces = {sample_key(n): np.flatnonzero(clip_arrays(n)["valid"]) for n in range(len(LENGTHS))}
    assert report.frames == {key: len(found) for key, found in faces.items() if len(found) >= 30}
    assert pairs.keys() == report.frames.keys()
    assert report.left_out.keys() == faces.keys() - pairs.keys()
    key = sample_key(4)
    arrays = clip_arrays(4)
    assert [int(frame.stem) for frame, _ in pairs[key]] == faces[key].tolist()
    for frame, landmarks in pairs[key][::7]:
        k = int(frame.stem)
        image = cv2.cvtColor(cv2.imread(str(frame)), cv2.COLOR_BGR2RGB)
        assert np.array_equal(image, reader.find(key).video(k, 1)[0])
        for name, column in (
            ("lmks", "landmarks"),
            ("lmks3d", "mesh"),
            ("trans_mat", "pose_matrix"),
            ("bs", "blendshapes"),
        ):
            values = np.load(landmarks.with_name(f"{frame.stem}_{name}.npy"))
            expected = arrays[column][k][1:] if name == "bs" else arrays[column][k]
            assert values.dtype == np.float32 and values.shape == expected.shape
            np.testing.assert_allclose(values, expected, atol=5e-4)


def test_nothing_says_where_it_was_made(built, tmp_path):
    reader = ShardReader(built, split=None)
    export_aniportrait(reader, tmp_path / "out", limit=2)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 100 and not any(str(tmp_path).encode() in path.read_bytes() for path in files)
    report = export_aniportrait(reader, tmp_path / "bound", limit=2, absolute=True)
    for clip in json.loads(report.training_json.read_text()).values():
        assert all(Path(path).is_file() for path in clip["clip_data_list"][0]["frame_path_list"])


@pytest.mark.parametrize("there", [False, True])
def test_a_failed_export_leaves_nothing(copied, edit_shard, tmp_path, capfd, there):
    def cut(samples):
        samples[-1][1]["mp4"] = samples[-1][1]["mp4"][:700]

    edit_shard(copied, "clips-000002.tar", cut)
    out = tmp_path / "out"
    if there:
        out.mkdir()
    arguments = ["export-aniportrait", "--data", str(copied.local_root), "--out", str(out)]
    assert main(arguments) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "make verify lists what is damaged" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == (["data", "out"] if there else ["data"])
    assert not there or not any(out.iterdir())
    assert main([*arguments, "--limit", "1"]) == 0


def test_a_link_is_not_followed(built, tmp_path, capfd):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    arguments = ["export-aniportrait", "--data", str(built.local_root), "--out", str(tmp_path / "out"), "--limit", "1"]
    assert main(arguments) == 2
    assert "Traceback" not in capfd.readouterr().err
    assert not any((tmp_path / "elsewhere").iterdir())


def test_export_command(built, tmp_path, capfd):
    arguments = ["export-aniportrait", "--data", str(built.local_root), "--out", str(tmp_path / "out"), "--limit", "3"]
    assert main(arguments) == 0
    path = Path(capfd.readouterr().out.splitlines()[-1])
    assert path.is_file() and load_like_aniportrait(path)
    assert main(arguments) == 2
    assert "is not empty" in capfd.readouterr().err
