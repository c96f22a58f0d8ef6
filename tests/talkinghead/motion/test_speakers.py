"""The table of speakers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from talkinghead.motion.neutral import NeutralMesh
from talkinghead.motion.speakers import FILE, Speaker, Speakers


def speaker(name: str, frames: int = 10, offset: float = 0.0) -> Speaker:
    """A speaker whose numbers differ from the others'."""
    mesh = np.random.default_rng(frames).normal(size=(468, 3)).astype(np.float32)
    return Speaker(
        name=name,
        neutral=NeutralMesh(mesh=mesh, num_frames=frames // 2, rule="lip opening"),
        mean_offset=np.full((468, 3), offset, np.float32),
        num_frames=frames,
    )


def changed_speaker(**changes: object) -> Callable[[dict], dict]:
    """Change of the first speaker in a table."""
    return lambda table: table | {"speakers": [table["speakers"][0] | changes, *table["speakers"][1:]]}


def test_identities_follow_the_names_not_the_order() -> None:
    one, other = [speaker("b"), speaker("a"), speaker("c")], [speaker("c"), speaker("a"), speaker("b")]
    for speakers in (Speakers(one), Speakers(other)):
        assert list(speakers) == ["a", "b", "c"]
        assert [speakers.identity(name) for name in "abc"] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"no speaker 'd'; there are a, b, c"):
        Speakers(one).identity("d")


def test_round_trip(tmp_path: Path) -> None:
    saved = Speakers([speaker("zoë", 12, 0.5), speaker("Ann", 30, -0.25)])
    saved.save(tmp_path)
    saved.save(tmp_path)
    found = Speakers.load(tmp_path)
    assert found.to_json() == saved.to_json() == json.loads((tmp_path / "speakers.json").read_text())
    for name in saved:
        assert (found[name].neutral.mesh == saved[name].neutral.mesh).all()
        assert (found[name].mean_offset == saved[name].mean_offset).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speakers.json", "speakers.safetensors"]


def test_mean_offset_counts_frames() -> None:
    speakers = Speakers([speaker("a", 10, 1.0), speaker("b", 30, 2.0)])
    np.testing.assert_allclose(speakers.mean_offset, 1.75)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same name"):
        Speakers([speaker("a"), speaker("a")])
    with pytest.raises(ValueError, match="no speakers"):
        Speakers([])
    with pytest.raises(ValueError, match="finite"):
        speaker("a", offset=float("nan"))
    with pytest.raises(ValueError, match=r"has no speakers\.safetensors"):
        Speakers.load(tmp_path)
    Speakers([speaker("a")]).save(tmp_path)
    data = (tmp_path / FILE).read_bytes()
    for damaged in (data[:-100], data[:20], b"", data.replace(b'format\\":1', b'format\\":9')):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"speakers\.safetensors is no table of speakers"):
            Speakers.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table | {"speakers": "ab"}, "speakers is 'ab'"),
        (lambda table: table | {"format": "1"}, "format is '1'"),
        (lambda table: table | {"speakers": []}, "names 0 speakers, its arrays have another number"),
        (lambda table: table | {"speakers": table["speakers"] * 2}, "index 2 is out of bounds"),
        (lambda table: table | {"speakers": table["speakers"][::-1]}, "identities are not the places"),
        (changed_speaker(identity=-1), "identities are not the places"),
        (changed_speaker(identity=10**30), "identity is 1000"),
        (changed_speaker(name=["a"]), "name is \\['a'\\]"),
        (changed_speaker(name="b"), "same name"),
        (changed_speaker(num_frames=0), "has 0 frames"),
        (changed_speaker(num_frames=1e300), "num_frames is 1e"),
        (changed_speaker(neutral_rule="other"), "neutral_rule is 'other'"),
    ],
)
def test_a_table_of_a_stranger(tmp_path: Path, change: Callable[[dict], dict], said: str) -> None:
    tensors = {name: np.zeros((2, 468, 3), np.float32) for name in ("neutral_mesh", "mean_offset")}
    table = change(Speakers([speaker("a"), speaker("b")]).to_json())
    (tmp_path / FILE).write_bytes(save(tensors, metadata={"speakers": json.dumps(table)}))
    with pytest.raises(ValueError, match=said) as raised:
        Speakers.load(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / FILE} is no table of speakers") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "tensors",
    [
        {"neutral_mesh": np.zeros((1, 468, 3), np.float32)},
        {"neutral_mesh": np.zeros(1, np.float32), "mean_offset": np.zeros(1, np.float32)},
        {name: np.zeros((1, 468, 3), np.int32) for name in ("neutral_mesh", "mean_offset")},
        {name: np.full((1, 468, 3), np.inf, np.float32) for name in ("neutral_mesh", "mean_offset")},
    ],
)
def test_arrays_of_a_stranger(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    table = Speakers([speaker("a")]).to_json()
    (tmp_path / FILE).write_bytes(save(tensors, metadata={"speakers": json.dumps(table)}))
    with pytest.raises(ValueError, match="is no table of speakers"):
        Speakers.load(tmp_path)


def test_a_file_that_is_none_or_nested(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(save({"a": np.zeros(1)}, metadata={"speakers": "[" * 10**5}))
    with pytest.raises(ValueError, match="nested too deeply"):
        Speakers.load(tmp_path)
    (tmp_path / FILE).unlink()
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(ValueError, match="is a named pipe"):
        Speakers.load(tmp_path)
