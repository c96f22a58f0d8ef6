"""Tiny weights as a training exports them, and the face model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from talkinghead.face.model import FaceModel, load_official


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small models compute fastest on one thread, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def face_model(shared: Path) -> FaceModel:
    """The official bundle."""
    return load_official(shared / "models" / "face_landmarker.task")


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `audio2mesh/` and `audio2pose/`: small models that move. Not to be changed: copy it first."""
    from talkinghead.models.audio2lmk.audio2mesh import Audio2Mesh
    from talkinghead.models.audio2lmk.audio2pose import Audio2Pose
    from talkinghead.models.speech.weights import Pretrained

    folder = tmp_path_factory.mktemp("weights")
    encoder = Pretrained("tiny").wav2vec_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mesh = Audio2Mesh(wav2vec=encoder, hidden=32)
        torch.nn.init.normal_(mesh.out_fn.weight, std=0.02)
        pose = Audio2Pose(wav2vec=encoder, width=32, layers=1, heads=2, feed_forward=64, num_identities=8, context=25)
        torch.nn.init.normal_(pose.pose_map_r.weight, std=0.3)
    mesh.save_pretrained(folder / "audio2mesh")
    pose.save_pretrained(folder / "audio2pose")
    return folder
