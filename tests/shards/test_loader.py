"""Batches do not depend on world size, workers or interruptions, and hold what the clips hold."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from shards.loader import ClipLoader, WindowConfig, WindowDataset, collate
from shards.microbatches import BucketedMicrobatches, Microbatches
from shards.reader import ShardReader
from talkinghead.features.feature import read_feature
from talkinghead.features.table import find_feature
from tests.support.shard_data import LENGTHS, TRACE, clip_arrays, clip_audio, clip_frames, trace_arrays

CONFIG = WindowConfig(num_frames=20, columns=("video", "audio", "landmarks", "valid"))
LIGHT = WindowConfig(num_frames=20, columns=("audio", "pose"))


@pytest.fixture(scope="module")
def reader(built):
    return ShardReader(built, split=None)


def loader_of(
    reader: ShardReader, config: WindowConfig, size: Microbatches | int, *, seed: int = 0, **options: Any
) -> ClipLoader:
    return ClipLoader(WindowDataset(reader, config, seed), size, **options)


def take(loader: ClipLoader, count: int) -> list[dict]:
    found = []
    for batch in loader:
        found.append(batch)
        if len(found) == count:
            break
    return found


def same(a: dict, b: dict) -> bool:
    return a["keys"] == b["keys"] and all(
        torch.equal(torch.nan_to_num(a[name].float()), torch.nan_to_num(b[name].float()))
        for name in a
        if name != "keys"
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_same_batches_for_any_world_and_workers(reader, world, workers):
    expected = take(loader_of(reader, LIGHT, 2, seed=5), 12)
    ranks = [
        take(loader_of(reader, LIGHT, 2, seed=5, rank=r, world=world, num_workers=workers), 12 // world)
        for r in range(world)
    ]
    for turn, parts in enumerate(zip(*ranks, strict=True)):
        assert all(map(same, expected[turn * world : (turn + 1) * world], parts))


@pytest.mark.parametrize(("stop", "world", "workers"), [(1, 1, 0), (3, 2, 0), (3, 1, 2), (5, 4, 0)])
def test_resume_continues_exactly(reader, stop, world, workers):
    """8 samples, 3 at a time: stops in the middle of an epoch and continues at another world size."""
    unbroken = take(loader_of(reader, LIGHT, 3, seed=1), 28)
    first = loader_of(reader, LIGHT, 3, seed=1, num_workers=workers)
    take(first, 4 * stop)
    state = first.state_dict()
    assert state == {"microbatches": 4 * stop}
    for rank in range(world):
        loader = loader_of(reader, LIGHT, 3, seed=1, rank=rank, world=world)
        loader.load_state_dict(state)
        found = take(loader, (28 - 4 * stop) // world)
        assert all(map(same, unbroken[4 * stop + rank :: world], found))


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 1), (3, 0)])
def test_microbatches_by_length_are_read_as_long_as_their_shortest_clip(reader, world, workers):
    dataset = WindowDataset(reader, LIGHT, seed=2)
    order = BucketedMicrobatches(dataset.num_frames, 3.0, 2)
    lengths = dict(zip(reader.keys, reader.num_frames.tolist(), strict=True))
    ranks = [ClipLoader(dataset, order, rank=r, world=world, num_workers=workers, epochs=3) for r in range(world)]
    parts = [list(rank) for rank in ranks]
    batches = [batch for turn in zip(*parts, strict=True) for batch in turn]
    keys: list[str] = []
    for number, batch in enumerate(batches):
        shortest = min(lengths[key] for key in batch["keys"])
        frames = shortest // 25 * 25 or shortest  # whole seconds
        count = len(batch["keys"])
        assert batch["mask"].shape == (count, frames) and batch["mask"].all()
        assert batch["audio"].shape == (count, frames * 640) and batch["pose"].shape == (count, frames, 6)
        assert count * frames <= 75 or count == 1
        assert batch["slot"].tolist() == [share.slot for share in order.shares(number)]
        for key, first, audio in zip(batch["keys"], batch["first"].tolist(), batch["audio"].numpy(), strict=True):
            whole = clip_audio(int(key.split("_")[1][:2]))
            assert np.array_equal(audio, whole[first * 640 : (first + frames) * 640])
        keys += batch["keys"]
    assert Counter(keys[: 3 * 8]) == dict.fromkeys(reader.keys, 3)


def test_every_sample_once_per_epoch_in_new_windows(reader):
    loader = loader_of(reader, LIGHT, 3, seed=0, epochs=3)
    batches = list(loader)
    assert len(batches) == 8 and loader.epoch == 3
    seen = [(k, f) for batch in batches for k, f in zip(batch["keys"], batch["first"].tolist(), strict=True)]
    epochs = [seen[n : n + 8] for n in (0, 8, 16)]
    for epoch in epochs:
        assert sorted(key for key, _ in epoch) == sorted(reader.keys)
    assert len({tuple(key for key, _ in epoch) for epoch in epochs}) == 3
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 3
    slots = [slot for batch in batches for slot in batch["slot"].tolist()]
    assert slots == list(range(24))
    assert len(list(loader_of(reader, LIGHT, 6, epochs=1))) == 2  # the last is filled up
    assert not list(loader)


def test_contents_and_types(reader):
    (batch,) = take(loader_of(reader, CONFIG, 8), 1)
    assert batch["video"].shape == (8, 20, 3, 64, 64) and batch["video"].dtype == torch.uint8
    assert batch["audio"].shape == (8, 20 * 640) and batch["audio"].dtype == torch.float32
    assert batch["landmarks"].shape == (8, 20, 478, 3) and batch["valid"].dtype == torch.bool
    for n, (key, first) in enumerate(zip(batch["keys"], batch["first"].tolist(), strict=True)):
        number = int(key.split("_")[1][:2])
        window = slice(first, first + 20)
        audio = clip_audio(number)[first * 640 : (first + 20) * 640]
        assert np.array_equal(batch["audio"][n].numpy(), audio)
        difference = batch["video"][n].permute(0, 2, 3, 1).numpy().astype(int) - clip_frames(number)[window]
        assert np.abs(difference).max() <= 3
        np.testing.assert_allclose(batch["landmarks"][n].numpy(), clip_arrays(number)["landmarks"][window], atol=4e-5)
        assert np.array_equal(batch["valid"][n].numpy(), clip_arrays(number)["valid"][window])
        assert batch["mask"][n].all()


def test_short_clips_are_padded_with_a_mask_or_skipped(reader):
    config = WindowConfig(num_frames=40, columns=("video", "audio", "valid"))
    dataset = WindowDataset(reader, config, seed=0)
    assert len(dataset) == 8
    for slot in range(8):
        item = dataset[slot]
        frames = min(40, LENGTHS[int(item["key"].split("_")[1][:2])])
        assert item["mask"].tolist() == [True] * frames + [False] * (40 - frames)
        assert item["video"].shape[0] == 40 and item["audio"].shape == (40 * 640,)
        if frames < 40:
            assert (item["video"][frames:] == item["video"][frames - 1]).all()
            assert not item["audio"][frames * 640 :].any()
    skipping = WindowDataset(reader, WindowConfig(num_frames=40, columns=("audio",), short="skip"), seed=0)
    assert Counter(skipping[slot]["key"] for slot in range(len(skipping))).keys() == {
        key for key, frames in zip(reader.keys, reader.num_frames, strict=True) if frames >= 40
    }


def test_columns_with_other_rows_than_one_a_frame(traced):
    """Several rows a frame are padded with the last row; a row for the clip is given as it is."""
    reader = ShardReader(traced, split=None, join=("trace",))
    names = tuple(form.name for form in TRACE)
    dataset = WindowDataset(reader, WindowConfig(num_frames=40, columns=names), seed=0)
    short = 0
    for slot in range(8):
        item = dataset[slot]
        arrays = trace_arrays(int(item["key"].split("_")[1][:2]))
        real = int(item["mask"].sum())
        short += real < 40
        for form in TRACE:
            found = item[form.name].numpy()
            if form.rows == "clip":
                assert found.shape == (5,) and np.array_equal(found, arrays[form.name][0])
                continue
            rows = form.rows
            expected = arrays[form.name][rows * item["first"] : rows * (item["first"] + real)]
            assert len(found) == rows * 40 and found.dtype == expected.dtype
            np.testing.assert_array_equal(found[: rows * real], expected)
            np.testing.assert_array_equal(found[rows * real :], np.repeat(expected[-1:], rows * (40 - real), axis=0))
    assert short
    batch = collate([dataset[slot] for slot in range(3)])
    assert batch["trace_clip"].shape == (3, 5) and batch["trace_fast"].shape == (3, 80, 3)
    assert batch["trace_level"].dtype == torch.uint8


def test_features_are_computed_with_what_is_around_the_window(reader):
    config = WindowConfig(num_frames=20, columns=("audio",), features=("loudness",))
    dataset = WindowDataset(reader, config, seed=0)
    for slot in range(8):
        item = dataset[slot]
        whole = read_feature(reader.find(item["key"]), find_feature("loudness"))
        assert item["loudness"].dtype == torch.float32 and item["loudness"].shape == (20,)
        assert np.array_equal(item["loudness"].numpy(), whole[item["first"] : item["first"] + 20])
    padded = WindowDataset(reader, WindowConfig(num_frames=60, columns=(), features=("loudness",)), seed=0)[0]
    real = int(padded["mask"].sum())
    assert real < 60 and (padded["loudness"][real:] == padded["loudness"][real - 1]).all()
    with pytest.raises(ValueError, match="no feature 'pitch', only loudness"):
        WindowConfig(num_frames=4, features=("pitch",))


def test_wrong_use_is_refused(reader, built):
    for rank, world in ((-1, 4), (4, 4), (0, 0)):
        with pytest.raises(ValueError, match=f"rank {rank} of {world}"):
            loader_of(reader, LIGHT, 1, rank=rank, world=world)
    with pytest.raises(ValueError, match="at least 1 sample"):
        loader_of(reader, LIGHT, 0)
    with pytest.raises(ValueError, match="make reannotate"):
        loader_of(reader, WindowConfig(num_frames=4, columns=("video", "latents")), 1)
    with pytest.raises(ValueError, match="none of the 8 samples has 400 frames"):
        loader_of(reader, WindowConfig(num_frames=400, short="skip"), 1)
    with pytest.raises(ValueError, match="no samples to train on"):
        loader_of(ShardReader(built, split="test"), LIGHT, 1)
    wrong: dict[str, Any]
    for wrong in (
        {"num_frames": 0},
        {"num_frames": 4, "columns": ("audio", "audio")},
        {"num_frames": 4, "columns": ()},
    ):
        with pytest.raises(ValueError):
            WindowConfig(**wrong)


class Numbers:
    """A dataset of slots that has nothing to do with clips."""

    readers = ()

    def __len__(self) -> int:
        return 5

    def __getitem__(self, slot: int) -> dict[str, Any]:
        return {"key": self.key(slot), "slot": slot, "square": torch.tensor([slot * slot])}

    def key(self, slot: Any) -> str:
        return f"k-{slot % 5}"


def test_any_dataset_of_slots_is_read():
    loader = ClipLoader(Numbers(), 2, rank=1, world=2, num_workers=1)
    first, second = take(loader, 2)
    assert first["keys"] == ["k-2", "k-3"] and second["slot"].tolist() == [6, 7]
    assert second["square"].tolist() == [[36], [49]]
    assert loader.epoch == 8 / 5
