"""Licences in sidecars: what authors state of published weights, what a training noted of its data, else null."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from infer.weights.licences import PUBLISHED, TRAINING_FILE, published_licence, trained_licence
from infer.weights.pipeline_weights import NETWORKS
from infer.weights.published_files import PublishedFiles
from infer.weights.speech_weights import CLASSES


def test_every_published_part_is_known() -> None:
    """Whether in the published layout or converted; of two parts nothing is known here, and nothing is made up."""
    parts = [*CLASSES, *NETWORKS, *(field.name for field in dataclasses.fields(PublishedFiles))]
    found = published_licence(parts)
    assert set(found["weights"]) == set(parts) == set(PUBLISHED) and found["data"] is None
    assert found["weights"]["audio2mesh"].startswith("Apache-2.0")
    assert "Stable Diffusion 1.5" in found["weights"]["denoiser"]
    assert {part for part, licence in found["weights"].items() if licence is None} == {"vae", "image_encoder"}


def test_a_training_names_the_licences_of_its_data(tmp_path: Path) -> None:
    assert trained_licence(tmp_path) == {"weights": None, "data": None}
    (tmp_path / TRAINING_FILE).write_text(json.dumps({"step": 8, "data_licences": {"CC BY 4.0": 12}}))
    assert trained_licence(tmp_path)["data"] == {"CC BY 4.0": 12}


@pytest.mark.parametrize("content", ["[]", "{}", '{"data_licences": null}', '{"data_licences": {"a": "b"}}'])
def test_older_and_odd_files_say_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / TRAINING_FILE).write_text(content)
    assert trained_licence(tmp_path)["data"] is None
