"""Which frames a sample of Lmk2Video shows, and that they are shown as inference shows them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.loader import ClipLoader
from shards.reader import Sample, ShardReader
from talkinghead import rng
from talkinghead.files.storage import Storage
from talkinghead.geometry.guidance import draw_guidance
from talkinghead.latents import ROWS
from talkinghead.models.image.networks import ImageNetworks
from talkinghead.npy import NPY_HEAD
from tests.support.counted_store import counted, upload
from tests.support.face_clips import (
    LATENTS_VERSION,
    LENGTHS,
    SIDE,
    UNSEEN,
    add_latents,
    build_face_data,
    clip_key,
    landmarks,
)
from tests.support.latent_data import in_process, make_latents
from tests.support.object_store import LocalS3
from train.lmk2video import dataset
from train.lmk2video.dataset import (
    ClipImages,
    ImageSize,
    ItemConfig,
    Lmk2VideoDataset,
    WindowShape,
    draw_window,
    region_weights,
)

SIZE = ImageSize(width=32, height=32, factor=4)
SINGLE = ItemConfig(size=SIZE, window=WindowShape())
WINDOWS = ItemConfig(size=SIZE, window=WindowShape(num_frames=4, long_stride=3, long_probability=0.5))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Data with latents as releases before stored them."""
    storage = build_face_data(tmp_path_factory.mktemp("faces") / "data")
    add_latents(storage, ImageNetworks.load("tiny", "tiny"), 32, 32, column_version=1)
    return storage


@pytest.fixture(scope="module")
def derived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, str]:
    """Data with latents by the job, and the version of them."""
    folder = tmp_path_factory.mktemp("derived") / "data"
    build_face_data(folder)
    return Storage(folder), make_latents(in_process(folder))


@pytest.fixture(scope="module")
def reader(data: Storage) -> ShardReader:
    return ShardReader(data, columns=("landmarks", "valid"))


def number_of(key: str) -> int:
    return [clip_key(n) for n in range(len(LENGTHS))].index(key)


# --- windows ----------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    valid=st.lists(st.booleans(), min_size=5, max_size=60),
    num_frames=st.integers(1, 5),
    stride=st.integers(1, 6),
    gap=st.integers(0, 80),
    seed=st.integers(0, 10),
)
def test_windows_lie_in_the_clip_and_references_far_from_them(
    valid: list[bool], num_frames: int, stride: int, gap: int, seed: int
) -> None:
    shown = np.array(valid)
    shape = WindowShape(num_frames=num_frames, long_stride=stride, long_probability=0.5)
    window = draw_window(shown, shape, gap, lambda what: rng.uniform(seed, what))
    frames = window.frames
    assert len(frames) == num_frames and frames[0] >= 0 and frames[-1] < len(shown)
    assert window.span == frames[-1] - frames[0] + 1
    assert len(set(frames.tolist())) == num_frames, "no frame stands twice"
    if num_frames > 1:
        assert window.stride in (1, min(stride, (len(shown) - 1) // (num_frames - 1)))
    starts = range(len(shown) - (num_frames - 1) * window.stride)
    if any(shown[np.array(start) + window.stride * np.arange(num_frames)].all() for start in starts):
        assert shown[frames].all(), "a window without a face, and there are others"
    distance = np.abs(np.arange(len(shown))[:, None] - frames).min(axis=1)
    candidates = np.flatnonzero(shown) if shown.any() else np.arange(len(shown))
    assert window.reference in candidates
    assert distance[window.reference] >= min(gap, distance[candidates].max())


def test_every_frame_is_drawn_alike_often() -> None:
    valid = np.ones(6, bool)
    drawn = [draw_window(valid, WindowShape(), 2, lambda what, n=n: rng.uniform(n, what)) for n in range(3000)]
    counts = np.bincount([window.first for window in drawn], minlength=6)
    assert (np.abs(counts - 500) < 100).all()
    assert min(abs(window.first - window.reference) for window in drawn) == 2
    strides = [
        draw_window(
            np.ones(40, bool),
            WindowShape(num_frames=8, long_stride=4, long_probability=0.25),
            0,
            lambda what, n=n: rng.uniform(n, what),
        ).stride
        for n in range(1000)
    ]
    assert set(strides) == {1, 4} and abs(strides.count(4) - 250) < 60


# --- items ------------------------------------------------------------------------------------------------------------


def test_items_show_the_frames_that_they_name(reader: ShardReader) -> None:
    dataset = Lmk2VideoDataset(reader, dataclasses.replace(WINDOWS, min_reference_gap=2), seed=4)
    assert len(dataset) == 3
    images = ClipImages(SIZE)
    for slot in range(9):
        item = dataset[slot]
        assert item["slot"] == slot and item["target"].dtype == item["guidance"].dtype == torch.uint8
        assert item["target"].shape == (4, 3, 32, 32) and item["guidance"].shape == (4, 3, 64, 64)
        assert item["reference"].shape == (3, 32, 32) and item["reference_guidance"].shape == (3, 64, 64)
        number = number_of(item["key"])
        chosen = item["first"] + item["stride"] * np.arange(4)
        assert number == 2 or np.abs(chosen - item["reference_frame"]).min() >= 2, "the third clip is short"
        sample = reader.find(item["key"])
        for index, frame in [*enumerate(chosen), (None, item["reference_frame"])]:
            target = item["reference"] if index is None else item["target"][index]
            guidance = item["reference_guidance"] if index is None else item["guidance"][index]
            alone = images.images(sample, np.array([frame]))[0]
            assert np.array_equal(target.numpy(), alone)
            # To the storage error of the landmarks.
            drawn = draw_guidance(sample.annotation("landmarks", int(frame), 1)[0], 64, 64)
            assert np.array_equal(guidance.permute(1, 2, 0).numpy(), drawn)
            unseen = number == 1 and UNSEEN.start <= frame < UNSEEN.stop
            assert drawn.any() != unseen
            if index is not None:
                assert item["mask"][index].item() is not unseen


def test_items_depend_on_the_slot_alone(reader: ShardReader) -> None:
    plain = Lmk2VideoDataset(reader, WINDOWS, seed=1)
    keeping = Lmk2VideoDataset(reader, dataclasses.replace(WINDOWS, keep_in_memory_mb=64), seed=1)
    assert keeping.images.keep and not plain.images.keep
    first = [plain[slot] for slot in range(12)]
    windows = {(item["key"], item["first"], item["stride"], item["reference_frame"]) for item in first}
    assert len(windows) > 8, "epochs differ"
    for slot in reversed(range(12)):
        for item in (keeping[slot], plain[slot]):
            assert same(item, first[slot])
    assert not same(Lmk2VideoDataset(reader, WINDOWS, seed=2)[0], first[0])
    parts = [
        ClipLoader(Lmk2VideoDataset(reader, WINDOWS, seed=1), 2, rank=rank, world=2, num_workers=1) for rank in range(2)
    ]
    for batch, slots in zip((next(iter(part)) for part in parts), ((0, 1), (2, 3)), strict=True):
        assert torch.equal(batch["target"], torch.stack([first[slot]["target"] for slot in slots]))
        assert batch["keys"] == [first[slot]["key"] for slot in slots]


def test_a_clip_is_kept_without_holding_it_at_full_size(reader: ShardReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_AT_ONCE", 8, raising=False)
    video, counts = Sample.video, []
    monkeypatch.setattr(Sample, "video", lambda s, *window: counts.append(window[1]) or video(s, *window))
    sample, every = reader.find(clip_key(1)), np.arange(LENGTHS[1])
    kept = ClipImages(SIZE, keep=True).images(sample, every)
    assert counts == [8, 8, 8, 8, 2]
    assert np.array_equal(kept, ClipImages(SIZE).images(sample, every))


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name]
        for name, value in one.items()
    )


def test_latents_are_of_the_same_frames(data: Storage, reader: ShardReader) -> None:
    encoder = ImageNetworks.load("tiny", "tiny")
    columns = ("landmarks", "valid", "latents", "embedding")
    cached = ShardReader(data, columns=columns, join=(LATENTS_VERSION,))
    with_latents = Lmk2VideoDataset(cached, dataclasses.replace(WINDOWS, latents=True), seed=3)
    with_images = Lmk2VideoDataset(reader, WINDOWS, seed=3)
    for slot in range(4):
        read, seen = with_latents[slot], with_images[slot]
        assert "target" not in read and torch.equal(read["guidance"], seen["guidance"])
        for name, images in (("target", seen["target"]), ("reference", seen["reference"][None])):
            expected = encoder.moments(images)
            found = read[f"{name}_moments"].reshape(expected.shape)
            torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
        expected = encoder.embedding(seen["reference"][None])[0]
        torch.testing.assert_close(read["reference_embedding"], expected, rtol=2e-3, atol=2e-3)


def test_rows_of_latents_are_what_the_arrays_of_before_were(data: Storage, derived: tuple[Storage, str]) -> None:
    storage, version = derived
    old = ShardReader(data, columns=("landmarks", "valid", "latents", "embedding"), join=(LATENTS_VERSION,))
    new = ShardReader(storage, columns=("landmarks", "valid", ROWS), join=(version,))
    weighed = dataclasses.replace(WINDOWS, latents=True, face_weight=2.0)
    before, after = Lmk2VideoDataset(old, weighed, seed=3), Lmk2VideoDataset(new, weighed, seed=3)
    for slot in range(6):
        one, other = before[slot], after[slot]
        assert one.keys() == other.keys() and one["region"].max() > 1
        for name, value in one.items():
            if isinstance(value, torch.Tensor) and value.dtype == torch.float16:
                # The variance of CosineVae is one that the code holds; images of a call change the last bits.
                torch.testing.assert_close(other[name], value, rtol=2e-3, atol=2e-3)
            else:
                assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]


def test_damaged_rows_name_their_file_and_clip(derived: tuple[Storage, str], tmp_path: Path) -> None:
    storage, version = derived
    folder = Path(shutil.copytree(storage.uri, tmp_path / "data"))
    reader = ShardReader(folder, columns=("landmarks", "valid", ROWS), join=(version,))
    for row in range(len(reader)):
        name, member = reader.locate(int(reader.rows[row]), f"{ROWS}.npy")
        with (folder / name).open("r+b") as file:
            file.seek(member.offset + NPY_HEAD)
            file.write(bytes(member.size - NPY_HEAD))
    dataset = Lmk2VideoDataset(reader, dataclasses.replace(WINDOWS, latents=True), seed=3)
    shard = rf"{folder}/ann/{version}/ann-00000\d\.tar"
    with pytest.raises(ValueError, match=rf"{shard}: {dataset.key(0)}\.{ROWS}\.npy: .*rows of latents.*make verify"):
        dataset[0]


@pytest.mark.parametrize("kind", ["images", "latents", "rows"])
def test_a_sample_of_a_store_takes_three_requests(
    data: Storage, derived: tuple[Storage, str], s3: LocalS3, kind: str
) -> None:
    data, version = derived if kind == "rows" else (data, LATENTS_VERSION)
    stored = upload(data, s3, f"lmk2video-{kind}")
    columns = ("landmarks", "valid", *{"images": (), "latents": ("latents", "embedding"), "rows": (ROWS,)}[kind])
    join = () if kind == "images" else (version,)
    config = dataclasses.replace(WINDOWS, latents=kind != "images")
    here, there = (
        Lmk2VideoDataset(ShardReader(storage, columns=columns, join=join), config, seed=3) for storage in (data, stored)
    )
    there[0]  # learns the shape of the latents
    for slot in range(1, 5):
        with counted(s3) as requests:
            item = there[slot]
        assert same(item, here[slot])
        # Window and reference of these short clips come together: of long ones they take a request each.
        assert len(requests) <= (2 if kind == "rows" else 3) and {method for method, _ in requests} == {"GET"}


def test_clips_of_another_aspect_are_cut_with_their_landmarks(reader: ShardReader) -> None:
    """A point of the face lies on the same detail of the image, whatever is cut away around it."""
    wide = ClipImages(ImageSize(width=64, height=32, factor=4))
    sample = reader.find(clip_key(0))
    image = wide.images(sample, np.array([5]))[0]
    whole = sample.video(5, 1)[0].transpose(2, 0, 1)
    assert image.shape == (3, 32, 64) and np.array_equal(image, whole[:, 16:48])
    placed = wide.place(landmarks(0)[5], (sample.info.width, sample.info.height))
    expected = (landmarks(0)[5, :, 1] * SIDE - 16) / 32
    np.testing.assert_allclose(placed[:, 1], expected, atol=1e-6)
    assert np.array_equal(placed[:, 0], landmarks(0)[5, :, 0])


def test_regions_weigh_face_and_mouth() -> None:
    points = landmarks(0)[:1]
    weights = region_weights(np.concatenate([points, np.full_like(points, np.nan)]), (16, 16), 2.0, 3.0)
    assert weights.shape == (2, 16, 16) and weights.dtype == np.float32
    assert (weights[1] == 1).all(), "without a face nothing counts more"
    mouth = points[0, 13, :2] * 16
    assert weights[0, int(mouth[1]), int(mouth[0])] > 4
    assert weights[0, 0, 0] == 1 and weights[0].max() <= 6
    nose = points[0, 4, :2] * 16
    assert weights[0, int(nose[1]), int(nose[0])] == 2


def test_clips_that_are_too_short_are_left_out_or_said(reader: ShardReader) -> None:
    long = dataclasses.replace(SINGLE, window=WindowShape(num_frames=13))
    assert sorted(Lmk2VideoDataset(reader, long, seed=0).samples.tolist()) == [
        n for n in range(3) if reader.num_frames[n] >= 13
    ]
    with pytest.raises(ValueError, match=r"none of the 3 training samples .* has 99 frames"):
        Lmk2VideoDataset(reader, dataclasses.replace(SINGLE, window=WindowShape(num_frames=99)), seed=0)
