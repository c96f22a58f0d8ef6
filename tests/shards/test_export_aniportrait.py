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
        assert clip["frame_path_list"] == [str(path) for path in frames]
        assert clip["lmks_list"] == [str(path) for path in landmarks]
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


def test_export_command(built, tmp_path, capfd):
    arguments = ["export-aniportrait", "--data", str(built.local_root), "--out", str(tmp_path / "out"), "--limit", "3"]
    assert main(arguments) == 0
    path = Path(capfd.readouterr().out.splitlines()[-1])
    assert path.is_file() and load_like_aniportrait(path)
    assert main(arguments) == 2
    assert "is not empty" in capfd.readouterr().err
