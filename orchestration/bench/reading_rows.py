"""Rows about reading for both stages of Lmk2Video: requests, bytes and samples a second; and about making latents.

A store far away is moto on this machine with a delay before each answer. What a GPU needs is counted from the texts of
the recipes: at 30 % of an H100's 989 TFLOPS, 5.27 TFLOP for an image of stage 1 and 48.6 for a window of stage 2.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from annotate.latents import LatentSettings, encode_frames, images_that_fit
from orchestration.bench.delayed_store import Counts, delayed_store, lacking
from orchestration.bench.material import Material
from orchestration.bench.row import Row
from orchestration.bench.timing import in_turns, one_core
from shards.loader import ClipLoader
from shards.reader import ShardReader
from talkinghead.files.storage import Storage
from talkinghead.media.clip import decode_clip
from talkinghead.media.image_size import fit_images
from talkinghead.models.image.networks import ImageNetworks
from train.lmk2video.dataset import ImageSize, ItemConfig, Lmk2VideoDataset, WindowShape

DELAY_S = 0.02
"""Time that each request waits."""
AT_ONCE = 4
"""Samples of a microbatch, which a reading process reads at the same time from a store, as in a training."""
MOST_REQUESTS = 3
"""Requests for a sample that are allowed."""
READERS = 8
"""Reading processes, and cores, of a GPU."""
SIDE = 512
"""Width and height of the images."""
COLUMNS = ("landmarks", "valid")


@dataclass(frozen=True)
class Stage:
    """One of the two trainings."""

    name: str
    window: WindowShape
    samples: int
    """Number of samples that are read."""
    needed: float
    """Samples a second that an H100 takes."""

    def dataset(self, data: Storage) -> Lmk2VideoDataset:
        """Its samples, from pixels at the paper's size."""
        size = ImageSize(width=SIDE, height=SIDE, factor=8)
        reader = ShardReader(data, split=None, columns=COLUMNS)
        return Lmk2VideoDataset(reader, ItemConfig(size=size, window=self.window, latents=False), 0)


STAGES = (
    Stage("stage1", WindowShape(), 40, 0.3 * 989 / 5.27),
    Stage("stage2", WindowShape(num_frames=16, long_stride=4, long_probability=0.3), 24, 0.3 * 989 / 48.6),
)


def reading_rows(data: Storage) -> list[Row]:
    """Measure four rows for each stage: requests and bytes of a sample, samples a second from afar and locally.

    Args:
        data: DATA, a packed and annotated data set.
    """
    rows = []
    for stage in STAGES:
        with one_core():
            taken = _seconds(stage.dataset(data), stage.samples, 1)
        rows.append(
            Row(
                name=f"read_{stage.name}_local",
                ours=stage.samples / taken,
                baseline=stage.needed / READERS,
                unit="samples/s",
                better="higher",
                goal=1.0,
                note=f"{stage.samples} samples from pixels at {SIDE} x {SIDE}, one process on one core, files in the"
                f" page cache; the baseline is an H100's need ({stage.needed:.3g}/s, counted) over {READERS} cores",
            )
        )
    if (reason := lacking()) is not None:
        return rows + [row for stage in STAGES for row in _store_rows(stage, None, None, None, reason)]
    with delayed_store(DELAY_S) as store:
        there = Storage(store.uri("data"))
        _upload(data, there)
        for stage in STAGES:
            dataset = stage.dataset(there)
            dataset[0]  # opens what is opened once
            store.counts()
            speed = stage.samples / _seconds(dataset, stage.samples, AT_ONCE)
            note = f"moto on this machine with {1000 * DELAY_S:.0f} ms added to each request"
            rows += _store_rows(stage, speed, store.counts(), _mean_size(stage.dataset(data).reader), note)
    return rows


def _store_rows(stage: Stage, speed: float | None, counts: Counts | None, whole: float | None, note: str) -> list[Row]:
    """Rows of a stage from a store.

    Args:
        stage: The stage.
        speed: Samples a second; None: there was no store.
        counts: Requests for its samples.
        whole: Mean size of all members of a sample, MB.
        note: Description of the store, or why there was none.
    """
    return [
        Row(
            name=f"read_{stage.name}_store",
            ours=speed,
            baseline=stage.needed / READERS,
            unit="samples/s",
            better="higher",
            goal=1.0,
            note=f"{note}; one process, {AT_ONCE} samples at once, from pixels at {SIDE} x {SIDE}; the baseline is an"
            f" H100's need over {READERS} processes",
        ),
        Row(
            name=f"read_{stage.name}_requests",
            ours=None if counts is None else counts.requests / stage.samples,
            baseline=MOST_REQUESTS,
            unit="requests/sample",
            better="lower",
            goal=1.0,
            note=f"{note}; GET and HEAD of shards; the baseline is what is allowed",
        ),
        Row(
            name=f"read_{stage.name}_size",
            ours=None if counts is None else counts.size / stage.samples / 1e6,
            baseline=whole,
            unit="MB/sample",
            better="lower",
            goal=1.0,
            note=f"{note}; the baseline is the size of all members of a sample",
        ),
    ]


def _seconds(dataset: Lmk2VideoDataset, count: int, at_once: int) -> float:
    """Wall time of reading so many samples in this process."""
    batches = iter(ClipLoader(dataset, AT_ONCE, at_once=at_once))
    started = time.perf_counter()
    for _ in range(count // AT_ONCE):
        next(batches)
    return time.perf_counter() - started


def _mean_size(reader: ShardReader) -> float:
    """Mean size of all members of a sample, MB."""
    sizes = [sum(map(len, reader[number].members().values())) for number in range(len(reader))]
    return sum(sizes) / len(sizes) / 1e6


def _upload(data: Storage, there: Storage) -> None:
    """Copy a data set, without what packing leaves."""
    assert data.local_root is not None
    for file in sorted(data.local_root.rglob("*")):
        name = file.relative_to(data.local_root).as_posix()
        if file.is_file() and not name.startswith(("units/", "tmp/")):
            there.write(name, file.read_bytes())


# --- latents ----------------------------------------------------------------------------------------------------------


def latent_row(material: Material, repeats: int) -> Row:
    """Measure encoding the frames of a clip with the tiny networks, against one image after the other.

    Args:
        material: Clips, of which the first is encoded.
        repeats: Number of rounds.
    """
    torch.set_num_threads(1)  # as the workers of the job have it
    settings = LatentSettings(vae="tiny", image_encoder="tiny", width=SIDE, height=SIDE, device="cpu")
    networks = ImageNetworks.load(settings.vae, settings.image_encoder)
    at_once = images_that_fit(networks, settings, "cpu")
    sample = material.chosen[0]
    clip = material.member(sample, "mp4")

    def ours(_: int) -> None:
        encode_frames(networks, decode_clip(clip), SIDE, SIDE, at_once)

    def baseline(_: int) -> None:
        images = fit_images(np.stack(list(decode_clip(clip))).transpose(0, 3, 1, 2), SIDE, SIDE)
        for image in torch.from_numpy(images).split(1):
            networks.moments(image)
            networks.embedding(image)

    costs = in_turns({"ours": ours, "one by one": baseline}, repeats)
    return Row(
        name="latents",
        ours=sample.num_frames / costs["ours"].wall,
        baseline=sample.num_frames / costs["one by one"].wall,
        unit="frames/s",
        better="higher",
        goal=1.0,
        note=f"{sample.num_frames} frames at {SIDE} x {SIDE}, tiny VAE and image encoder on one thread; ours decodes in"
        f" another thread and encodes {at_once} images a call, the baseline decodes a clip and then encodes image by"
        " image",
    )
