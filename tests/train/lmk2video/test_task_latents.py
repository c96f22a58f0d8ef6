"""From a data set through the job that makes latents to a training of stage 1, with both versions of latents."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.reader import ShardReader
from talkinghead.files.storage import Storage
from talkinghead.latents import ARRAYS, EMBEDDING, LATENTS, ROWS, unpack_rows
from tests.support.face_clips import build_face_data
from tests.support.latent_data import in_process, make_latents, make_version_1
from tests.support.lmk2video_trainings import small_recipe, trained
from tests.support.training import assert_same

MAKE: dict[int, Callable[..., str]] = {1: make_version_1, 2: make_latents}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Storage, str]]:
    """Version of the column → the same clips with latents of it by the job, and the name of the version."""
    folder = tmp_path_factory.mktemp("made")
    found = {}
    for column_version, make in MAKE.items():
        storage = build_face_data(folder / str(column_version))
        found[column_version] = (storage, make(in_process(storage)))
    return found


def test_stage_1_trains_alike_with_either_version_of_the_same_encoding(
    made: dict[int, tuple[Storage, str]], tmp_path: Path
) -> None:
    outcomes: dict[int, Any] = {}
    for column_version, (storage, name) in made.items():
        chosen = small_recipe("stage1", {"use_latents": "require"}, steps=3)
        outcomes[column_version] = trained(tmp_path / str(column_version), "stage1", chosen, storage.uri)
        assert name in (tmp_path / str(column_version) / "task" / "clips.json").read_text()
    for line, other in zip(outcomes[1]["lines"], outcomes[2]["lines"], strict=True):
        assert line["loss"] == other["loss"] and math.isfinite(line["loss"]) and line["skipped"] == 0
    assert len({line["loss"] for line in outcomes[2]["lines"]}) == 3, "it learns"
    # To the bit: means and embeddings are stored alike, and the built-in VAE has variances that the code holds.
    assert_same(outcomes[1], outcomes[2])


def test_both_versions_hold_the_same_numbers(made: dict[int, tuple[Storage, str]]) -> None:
    old, new = (ShardReader(storage, split=None, join=(name,)) for storage, name in made.values())
    assert [f"{name}.npy" in old.versions.where for name in (*ARRAYS[1], *ARRAYS[2])] == [True, True, False]
    assert old.keys == new.keys
    for number in range(len(old)):
        before, rows = old[number], unpack_rows(new[number].annotation(ROWS))
        assert np.array_equal(before.annotation(LATENTS), rows.moments())
        assert np.array_equal(before.annotation(EMBEDDING), rows.embedding)
        assert rows.clip_size == (before.info.width, before.info.height)
