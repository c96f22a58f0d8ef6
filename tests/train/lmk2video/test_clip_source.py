"""The clips of a training: opened as its settings say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.face_clips import build_face_data
from train.lmk2video.clip_source import ClipSource
from train.lmk2video.config import Lmk2VideoConfig


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_training_and_validation_decode_with_the_engine_of_the_settings(decoder, tmp_path: Path) -> None:
    storage = build_face_data(tmp_path / "data")
    config = Lmk2VideoConfig(decoder=decoder, use_latents="no")
    clips = ClipSource(config, storage.uri, tmp_path)
    clips.pin(clips.find({}))
    reader = clips.reader()
    held_out = clips.validation_reader("val", ("landmarks", "valid"))
    assert reader.decoder == decoder
    assert held_out.decoder == decoder and len(held_out)
    # The same frame with either; the plain engine's colours are as they were.
    plain = ClipSource(Lmk2VideoConfig(use_latents="no"), storage.uri, tmp_path).reader()
    difference = reader[0].video(3, 2).astype(int) - plain[0].video(3, 2)
    assert np.abs(difference).mean() < 3 and (not difference.any()) == (decoder == "pyav")
