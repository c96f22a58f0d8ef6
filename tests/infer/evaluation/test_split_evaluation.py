"""`infer evaluate`: a split of a packed data set through the pipeline, printed or written."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infer.__main__ import main
from infer.evaluation.evaluation_result import read_evaluations
from infer.evaluation.split_evaluation import evaluate_split
from infer.weights.speech_weights import find_weights
from talkinghead.derived import Derived
from talkinghead.files.storage import Storage
from tests.support.derived_data import TOY, add_version
from tests.support.speech_data import build_speech_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech") / "data"
    build_speech_data(folder)
    return folder


def test_the_table_is_the_result(data: Path, tiny_weights: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--audio2mesh", str(tiny_weights), "--data", str(data)]) == 0
    printed = capfd.readouterr().out
    assert "mesh_l1" in printed and "neutral mesh" in printed and "shifted truth" in printed


def test_written_to_a_folder(data: Path, tiny_weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "evaluation"
    options = ["--data", str(data), "--split", "train", "--limit", "2", "-o", str(folder)]
    assert main(["evaluate", "--audio2pose", str(tiny_weights), *options]) == 0
    assert capfd.readouterr().out.strip() == str(folder / "validation.json")
    (title, evaluation), *others = read_evaluations(folder).items()
    assert not others and title == "train clips" and len(evaluation.clips) == 2
    again = evaluate_split(find_weights("audio2pose", tiny_weights), str(data), "train", limit=2)
    assert again == evaluation


def test_a_model_of_another_frame_rate(data: Path, tmp_path: Path) -> None:
    """A model that predicts no offsets is as good as the neutral mesh, at any frame rate."""
    from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
    from talkinghead.models.speech.weights import Pretrained

    Audio2Mesh(wav2vec=Pretrained("tiny").wav2vec_config(), fps=30.0).save_pretrained(tmp_path / "still")
    evaluation = evaluate_split(find_weights("audio2mesh", tmp_path / "still"), str(data), "train", limit=1)
    ours, neutral = (evaluation.result("mesh_l1", subject).value for subject in ("prediction", "neutral mesh"))
    assert ours is not None and neutral is not None
    np.testing.assert_allclose(ours, neutral, rtol=1e-5)


def test_clips_without_speech_are_not_measured(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    """As in training: a model of speech says nothing about music."""
    copied = Path(shutil.copytree(data, tmp_path / "data"))
    place = find_weights("audio2pose", tiny_weights)
    every = [clip.key for clip in evaluate_split(place, str(copied), "train").clips]
    activity = replace(TOY, name="speech_activity", arrays=(), scores=("speech_share",), needs=("wav",))
    add_version(
        Storage(copied),
        activity,
        lambda row, _: Derived(scores={"speech_share": float(row.key != every[0])}),
        pins={},
    )
    assert len(every) > 1 and [clip.key for clip in evaluate_split(place, str(copied), "train").clips] == every[1:]


def test_refused(data: Path, tiny_weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = ["--audio2mesh", str(tiny_weights)]
    for arguments, said in [
        (["--data", str(data)], "give one of"),
        ([*weights, "--audio2pose", str(tiny_weights), "--data", str(data)], "give one of"),
        ([*weights, "--data", str(tmp_path / "gone")], "gone"),
        ([*weights, "--data", str(data), "--split", "test"], "no clip"),
        ([*weights, "--data", str(data), "--version", "v9"], "v9"),
        ([*weights, "--data", str(data), "--limit", "0"], "--limit"),
        ([*weights, "--data", str(data), "--fid-model", "gone.pt"], "--fid-model applies to --lmk2video only"),
    ]:
        assert main(["evaluate", *arguments]) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and said in lines[0], lines
