"""The table of speakers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

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
