"""Weights: found where users put them, refused when they are another thing, and converted whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infer.__main__ import main
from infer.drivers.speech import choose_identity
from infer.weights.speech_weights import ORIGIN_FILE, WEIGHTS_FILE, find_weights, load_audio2mesh, load_audio2pose
from talkinghead.motion.expression import EXPRESSION_FILE, NUM_SCORES, ExpressionBasis
from talkinghead.motion.neutral import NeutralMesh
from talkinghead.motion.speakers import Speaker, Speakers


def test_found_where_users_put_them(tiny_weights: Path, tmp_path: Path) -> None:
    folder = tiny_weights / "audio2mesh"
    assert find_weights("audio2mesh", folder).path == folder
    assert find_weights("audio2mesh", tiny_weights).path == folder
    assert find_weights("audio2mesh", folder / WEIGHTS_FILE).path == folder
    run = tmp_path / "run"
    shutil.copytree(folder, run / "pretrained_model")
    (run / "config.json").write_text('{"task": "audio2mesh"}')
    assert find_weights("audio2mesh", run).path == run / "pretrained_model"
    both = tmp_path / "both"
    both.mkdir()
    run.rename(both / "audio2mesh")
    assert find_weights("audio2mesh", both).path == both / "audio2mesh" / "pretrained_model"
    (both / "audio2pose.pt").write_bytes(b"x")
    assert find_weights("audio2pose", both).path == both / "audio2pose.pt"
    assert find_weights("audio2pose", both / "audio2pose.pt").is_file


def test_other_things(tiny_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    (tmp_path / "notes.txt").write_text("no weights")
    bare = tmp_path / "bare"
    shutil.copytree(tiny_weights / "audio2mesh", bare)
    (bare / WEIGHTS_FILE).unlink()
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text("{")
    for path, message in [
        (tmp_path / "gone", "are not there"),
        (Path("s3://bucket/run"), "copy them out of the store first"),
        (tmp_path / "empty.pt", "is empty"),
        (tmp_path / "notes.txt", r"wanted is audio2mesh\.pt"),
        (tmp_path, "no audio2mesh weights in"),
        (tiny_weights / "audio2pose", "holds Audio2Pose, but Audio2Mesh is wanted"),
        (bare, f"no {WEIGHTS_FILE}"),
        (odd, "is not JSON"),
    ]:
        with pytest.raises(ValueError, match=message):
            find_weights("audio2mesh", path)


def test_loading(tiny_weights: Path, tmp_path: Path) -> None:
    weights = load_audio2mesh(find_weights("audio2mesh", tiny_weights))
    assert not weights.published and weights.speakers is None and weights.expression is None
    assert not weights.model.training and weights.provenance()["origin"] == "trained"
    folder = tmp_path / "audio2mesh"
    shutil.copytree(tiny_weights / "audio2mesh", folder)
    basis = ExpressionBasis(offsets=np.zeros((NUM_SCORES, 468, 3), np.float32), rest=np.zeros(NUM_SCORES, np.float32))
    basis.save(folder / EXPRESSION_FILE)
    (folder / ORIGIN_FILE).write_text("{}")
    weights = load_audio2mesh(find_weights("audio2mesh", folder))
    assert weights.expression is not None and weights.published
    pose = load_audio2pose(find_weights("audio2pose", tiny_weights))
    assert pose.model.id_embed.num_embeddings == 8 and pose.sha256 != weights.sha256


@pytest.mark.parametrize("damage", ["truncated", "other shape", "no weights"])
def test_damaged_folders(tiny_weights: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "audio2mesh"
    shutil.copytree(tiny_weights / "audio2mesh", folder)
    file = folder / WEIGHTS_FILE
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    elif damage == "no weights":
        file.write_bytes(b"no weights")
    else:
        config = json.loads((folder / "config.json").read_bytes())
        (folder / "config.json").write_text(json.dumps(config | {"hidden": 48}))
    with pytest.raises(ValueError) as caught:
        load_audio2mesh(find_weights("audio2mesh", folder))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_published_files_that_are_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Other tensors, a pickle with code, half a file, nothing: one error line, no folder, no code executed."""
    torch.save({"in_fn.weight": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save({"a": Path}, tmp_path / "code.pt")
    whole = (tmp_path / "other.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    for name in ("other.pt", "code.pt", "half.pt", "gone.pt"):
        assert main(["convert", "--audio2mesh", str(tmp_path / name), "-o", str(tmp_path / "new")]) == 2
        printed = capfd.readouterr()
        lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and name in lines[0] and not printed.out, printed.err
    assert not (tmp_path / "new").exists()
    assert main(["convert", "-o", str(tmp_path / "new")]) == 2


@pytest.mark.slow
def test_conversion(shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A published file (tensors by formula) becomes a folder with equal tensors, marked as published."""
    from tests.support.golden_weights import golden_shapes, golden_state

    state: dict[str, Any] = golden_state("audio2mesh.pt", golden_shapes(shared / "goldens", "audio2mesh"))
    torch.save(state, tmp_path / "audio2mesh.pt")
    folder = tmp_path / "new" / "audio2mesh"
    arguments = ["convert", "--audio2mesh", str(tmp_path / "audio2mesh.pt"), "-o", str(folder)]
    assert main(arguments) == 0
    printed = capfd.readouterr()
    assert printed.out.strip() == str(folder) and "215 tensors" in printed.err and "missing: none" in printed.err
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", WEIGHTS_FILE, ORIGIN_FILE]
    assert list(folder.parent.iterdir()) == [folder]
    weights = load_audio2mesh(find_weights("audio2mesh", folder))
    assert weights.published and weights.model.fps == 30
    assert torch.equal(weights.model.out_fn.weight, state["out_fn.weight"])
    assert main(arguments) == 2
    assert "is there already" in capfd.readouterr().err


def test_a_speaker_is_chosen_by_name_before_number(tiny_weights: Path) -> None:
    weights = load_audio2pose(find_weights("audio2pose", tiny_weights))
    face = np.zeros((468, 3), np.float32)
    neutral = NeutralMesh(mesh=face, num_frames=5, rule="lip opening")
    names = ("123", "5", "anna")
    known = Speakers([Speaker(name=name, neutral=neutral, mean_offset=face, num_frames=5) for name in names])
    named = dataclasses.replace(weights, speakers=known)
    assert [choose_identity(asked, 0, named) for asked in ("123", "5", "anna", "7")] == [0, 1, 2, 7]
    assert choose_identity("5", 0, weights) == 5
    assert {choose_identity(None, seed, named) for seed in range(40)} == {0, 1, 2}
    with pytest.raises(ValueError, match="123 does not exist"):
        choose_identity("123", 0, weights)
    with pytest.raises(ValueError, match="there is no speaker 'bob'"):
        choose_identity("bob", 0, named)


def test_the_chunking_of_a_converted_pose_model_can_be_chosen(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = find_weights("audio2pose", tiny_weights)
    file = tmp_path / "audio2pose.pt"
    file.write_bytes(b"stands for the published file")
    monkeypatch.setattr(
        "infer.weights.conversion.load_published",
        lambda *_: (load_audio2pose(published).model, "all keys"),
    )
    for chunking in ("continue", "restart"):
        folder = tmp_path / chunking
        assert main(["convert", "--audio2pose", str(file), "-o", str(folder), "--chunking", chunking]) == 0
        assert load_audio2pose(find_weights("audio2pose", folder)).model.chunking == chunking
    assert main(["convert", "--audio2mesh", str(file), "-o", str(tmp_path / "x"), "--chunking", "restart"]) == 2
