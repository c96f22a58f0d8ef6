"""Items from a store: the same as from a disk, by few requests, and from a warm cache by none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shards.block_cache import BlockCache
from shards.loader import ClipLoader, WindowConfig, WindowDataset
from shards.reader import ShardReader
from talkinghead.files.storage import Storage
from tests.support.counted_store import counted, upload
from tests.support.object_store import LocalS3

CONFIG = WindowConfig(num_frames=8, columns=("video", "audio", "mesh", "valid"), features=("loudness",))


@pytest.fixture(scope="module")
def stored(built: Storage, s3: LocalS3) -> Storage:
    return upload(built, s3, "fetched")


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(value.nan_to_num(), two[name].nan_to_num())
        if isinstance(value, torch.Tensor)
        else value == two[name]
        for name, value in one.items()
    )


def test_items_are_those_of_the_disk_by_three_requests(built: Storage, stored: Storage, s3: LocalS3) -> None:
    here, there = (WindowDataset(ShardReader(data, split=None), CONFIG, 3) for data in (built, stored))
    for slot in range(10):
        with counted(s3) as requests:
            item = there[slot]
        assert same(here[slot], item)
        assert len(requests) <= 3 and {method for method, _ in requests} == {"GET"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_warm_cache_asks_for_nothing(
    built: Storage, stored: Storage, s3: LocalS3, tmp_path: Path, workers: int
) -> None:
    here, there = (WindowDataset(ShardReader(data, split=None), CONFIG, 3) for data in (built, stored))
    there.reader.ranges.cache = BlockCache(tmp_path, 64 << 20)
    expected = list(ClipLoader(here, 4, epochs=1))
    with counted(s3) as requests:
        first = list(ClipLoader(there, 4, epochs=1, num_workers=workers, at_once=4))
        cold = len(requests)
        again = list(ClipLoader(there, 4, epochs=1, num_workers=workers, at_once=4))
    assert cold and len(requests) == cold
    for one, two, three in zip(expected, first, again, strict=True):
        assert same(one, two) and same(one, three)
