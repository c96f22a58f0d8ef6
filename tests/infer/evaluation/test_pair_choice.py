"""Pairs as the command names them: names in tables that tell one from another, and the weights that take part."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from infer.evaluation.pair_choice import parse_pairs
from tests.support.other_package import install_other_package
from tests.support.tiny_pipeline import tiny_pipeline


def test_both_models_of_speech_are_looked_up(tiny_weights: Path) -> None:
    """A head's model may have learnt from other speakers than the mesh model."""
    (both,) = parse_pairs([f"{tiny_weights}+landmarks"], None)
    assert both.weight_folders() == {kind: tiny_weights / kind for kind in ("audio2mesh", "audio2pose")}
    assert both.about()["weights"].keys() == both.weight_folders().keys()


def test_a_mesh_model_alone_and_no_model(tiny_weights: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_weights / "audio2mesh", tmp_path / "audio2mesh")
    alone, nothing = parse_pairs([f"{tmp_path}+landmarks", "video+landmarks"], None)
    assert alone.weight_folders().keys() == {"audio2mesh"} and nothing.weight_folders() == {}


def test_two_drivers_of_one_name_are_refused(tiny_weights: Path, tmp_path: Path) -> None:
    for run in ("one", "two"):
        shutil.copytree(tiny_weights, tmp_path / run / "w")
        tiny_pipeline(width=64, height=64).save_pretrained(tmp_path / run / "w" / "lmk2video")
    one, two = tmp_path / "one" / "w", tmp_path / "two" / "w"
    with pytest.raises(ValueError, match="two drivers would be called audio2lmk:w"):
        parse_pairs([f"{one}+landmarks", f"{two}+{two}"], None)
    # They would share their baselines: those of one of them.
    with pytest.raises(ValueError, match="two renderers would be called lmk2video:w"):
        parse_pairs([f"video+{one}", f"truth+{two}"], None)
    # One folder may be named in two ways, and serve several pairs.
    assert len(parse_pairs([f"video+{one}", f"truth+{tmp_path}/two/../one/w", f"{one}+landmarks"], None)) == 3


def test_the_version_of_another_package_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that were made by an older one do not count."""
    install_other_package(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    other, ours = parse_pairs(["nodding+landmarks", "video+landmarks"], None)
    assert other.about()["packages"] == {"other-heads": "1.0"} and ours.about()["packages"] == {}
