"""Loss of encoding: more compression loses more, and what is measured is the frames that were written."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from infer.dubbing.encoding_loss import SAMPLES, EncodingLoss
from talkinghead.media.encoder_settings import EncoderSettings
from talkinghead.media.talking_video import write_talking_video


def shots(count: int) -> list[np.ndarray]:
    """Smooth images with texture that differ from each other."""
    noise = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)
    return [cv2.resize(image, (128, 128), interpolation=cv2.INTER_CUBIC) for image in noise]


@pytest.mark.parametrize("count", [1, 3, 30])
def test_more_compression_loses_more(tmp_path: Path, count: int) -> None:
    found = []
    for crf in (10, 40):
        loss, path = EncodingLoss(count), tmp_path / f"{crf}.mp4"
        images = shots(count)
        kept = list(loss.watch(images))
        assert all(one is other for one, other in zip(kept, images, strict=True))
        settings = EncoderSettings(crf=crf)
        write_talking_video(path, images, width=128, height=128, fps=25, settings=settings)
        assert loss.psnr_db is None
        loss.measure(path)
        assert loss.psnr_db is not None
        found.append(loss.psnr_db)
    assert found[0] > found[1] + 3 and found[0] > 30


def test_few_frames_are_held() -> None:
    loss = EncodingLoss(10_000)
    for _ in loss.watch(np.zeros((2, 2, 3), np.uint8) for _ in range(10_000)):
        pass
    assert len(loss.held) == SAMPLES
