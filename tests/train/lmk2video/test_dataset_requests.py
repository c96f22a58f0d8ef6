"""Requests for a sample of a clip of half a minute, counted by the server: what lies far apart in its shards."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from shards.reader import ShardReader
from talkinghead.files.storage import Storage
from talkinghead.latents import ARRAYS
from tests.support.counted_store import counted, upload
from tests.support.long_clips import NUM_FRAMES, add_long_latents, build_long_clips
from tests.support.object_store import LocalS3
from train.lmk2video.dataset import ImageSize, ItemConfig, Lmk2VideoDataset, WindowShape

SHAPES = {
    "stage1": WindowShape(),
    "stage2": WindowShape(num_frames=16, long_stride=4, long_probability=0.3),
}
SLOTS = range(120)
"""Slots out of which those with windows and references all over the clips are picked."""

Stored = tuple[Storage, Storage, str | None, tuple[str, ...]]
"""Data on the disk, the same in the store, the version of latents, and its arrays."""


@pytest.fixture(scope="module", params=[None, 1, 2], ids=["images", "version-1", "version-2"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, s3: LocalS3) -> Stored:
    encoding: Literal[1, 2] | None = request.param
    storage = build_long_clips(tmp_path_factory.mktemp("long") / "data")
    version = None if encoding is None else add_long_latents(storage, encoding)
    return storage, upload(storage, s3, f"long-{encoding}"), version, () if encoding is None else ARRAYS[encoding]


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name]
        for name, value in one.items()
    )


def spread(items: list[dict[str, Any]]) -> list[int]:
    """Numbers of some items of each clip: windows at its beginning, middle and end, far from and near to references."""
    chosen: set[int] = set()
    for key in {item["key"] for item in items}:
        of_clip = [number for number, item in enumerate(items) if item["key"] == key]
        for frame in (0, NUM_FRAMES // 2, NUM_FRAMES):
            chosen.add(min(of_clip, key=lambda number: abs(items[number]["first"] - frame)))
        by_distance = sorted(of_clip, key=lambda number: abs(items[number]["first"] - items[number]["reference_frame"]))
        chosen |= {by_distance[0], by_distance[-1]}
    return sorted(chosen)


@pytest.mark.parametrize("stage", SHAPES)
def test_a_sample_of_a_long_clip_takes_three_requests(stored: Stored, s3: LocalS3, stage: str) -> None:
    data, remote, version, arrays = stored
    size = ImageSize(width=512, height=512, factor=8) if version else ImageSize(width=64, height=64, factor=8)
    config = ItemConfig(size=size, window=SHAPES[stage], latents=version is not None)
    here, there = (
        Lmk2VideoDataset(
            ShardReader(storage, columns=("landmarks", "valid", *arrays), join=(version,) if version else ()), config, 3
        )
        for storage in (data, remote)
    )
    items = [here[slot] for slot in SLOTS]
    chosen = spread(items)
    distances = [abs(items[number]["first"] - items[number]["reference_frame"]) for number in chosen]
    assert min(distances) < 40 < 740 < max(distances), "near enough to be read together, and too far for landmarks"
    there[0]  # learns the shape of the latents
    # Version 1 has the size of the clip in another shard, and images and embeddings apart.
    most = 5 if "latents" in arrays else 3
    for number in chosen:
        with counted(s3) as requests:
            item = there[SLOTS[number]]
        assert same(item, items[number])
        assert {method for method, _ in requests} == {"GET"}
        assert len(requests) <= most, f"{item['key']}: {item['first']}, {item['reference_frame']}: {requests}"
