"""Batches of clip windows for training, the same for every world size, number of workers, and resume.

A slot of the sample order (see `shards.order`) determines its item alone: the sample, and what is read of it. Workers
only read ahead; the state is the number of slots that were handed out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from shards.order import SampleOrder, check_world, rank_slots
from shards.reader import Sample, ShardReader
from talkinghead import rng
from talkinghead.timebase import SAMPLES_PER_FRAME

Batch = dict[str, Any]


class SlotDataset(Protocol):
    """Slot → item, each a pure function of the slot: whoever reads it, whenever, reads the same.

    An item is a dict of tensors and numbers with `key` (of the sample) and `slot`.
    """

    def __len__(self) -> int:
        """Samples of an epoch; there are slots after it, too."""
        ...

    def __getitem__(self, slot: int, /) -> Batch:
        """The item of a slot."""
        ...


_MEDIA = ("video", "audio")


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """What is read of a clip."""

    num_frames: int
    """Frames of a window, F."""
    columns: tuple[str, ...] = ("video", "audio", "landmarks")
    """`video`, `audio`, and annotation columns."""
    short: Literal["pad", "skip"] = "pad"
    """Clips of fewer frames: repeat their last frame (silence for audio) and mask it, or leave them out."""

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"a window has at least 1 frame, not {self.num_frames}")
        if not self.columns or len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns must name each thing once and at least one: {self.columns}")


class WindowDataset(Dataset[Batch]):
    """Slot → one window as tensors, a pure function of (data set, config, seed, slot).

    The window is drawn from (seed, epoch, key). Items: `video` uint8 `[F, C, H, W]`, `audio` float32 `[F * 640]`,
    annotation columns `[F, …]` (NaN where there is no face; `valid` bool), `mask` bool `[F]` (False where a short clip
    was padded), `key`, `first` (frame in the clip) and `slot`.
    """

    def __init__(self, reader: ShardReader, config: WindowConfig, seed: int) -> None:
        for column in set(config.columns) - set(_MEDIA):
            reader.check_column(column)
        self.reader = reader
        self.config = config
        self.seed = seed
        long_enough = reader.num_frames >= (config.num_frames if config.short == "skip" else 1)
        self.samples = np.flatnonzero(long_enough)
        if not len(self.samples):
            raise ValueError(
                f"none of the {len(reader)} samples has {config.num_frames} frames: take shorter windows or short='pad'"
                if len(reader)
                else f"there are no samples to train on in {reader.storage.uri}: look at the splits in make report"
            )
        self.order = SampleOrder(len(self.samples), seed)

    def __len__(self) -> int:
        """Samples of an epoch; there are slots after it, too."""
        return len(self.samples)

    def __getitem__(self, slot: int) -> Batch:
        epoch, position = self.order.at(slot)
        sample = self.reader[int(self.samples[position])]
        count = min(self.config.num_frames, sample.num_frames)
        places = sample.num_frames - count + 1
        key = sample.key
        first = int(rng.uniform(self.seed, "window", epoch, key) * places)
        item: Batch = {name: self._read(sample, name, first, count) for name in self.config.columns}
        item["mask"] = torch.arange(self.config.num_frames) < count
        return item | {"key": key, "first": first, "slot": slot}

    def _read(self, sample: Sample, name: str, first: int, count: int) -> torch.Tensor:
        lacking = self.config.num_frames - count
        if name == "audio":
            return torch.from_numpy(np.pad(sample.audio(first, count), (0, lacking * SAMPLES_PER_FRAME)))
        values = sample.video(first, count) if name == "video" else sample.annotation(name, first, count)
        if lacking:
            values = np.concatenate([values, np.repeat(values[-1:], lacking, axis=0)])
        tensor = torch.from_numpy(values if values.flags.writeable else values.copy())
        return tensor.permute(0, 3, 1, 2).contiguous() if name == "video" else tensor


def collate(items: list[Batch]) -> Batch:
    """Stack items into `[B, F, …]`; `keys` is a list.

    Raises:
        ValueError: The clips differ in size, so that they fit in no one tensor.
    """
    if "video" in items[0] and len({item["video"].shape for item in items}) > 1:
        sizes = ", ".join(f"{i['key']} {i['video'].shape[-1]}x{i['video'].shape[-2]}" for i in items)
        raise ValueError(
            f"clips of one batch differ in size ({sizes}): ingest with one output size, or use batches of 1"
        )
    batch: Batch = {"keys": [item["key"] for item in items]}
    for name, value in items[0].items():
        if isinstance(value, torch.Tensor):
            batch[name] = torch.stack([item[name] for item in items])
        elif name != "key":
            batch[name] = torch.tensor([item[name] for item in items])
    return batch


class ClipLoader:
    """Endless batches of one rank.

    Args:
        dataset: What is read; can be pickled where there are workers and processes do not fork.
        global_batch: Samples of a batch over all ranks, B.
        rank: This process.
        world: Number of processes; must divide `global_batch`.
        num_workers: Reading processes; 0: in this one.
        epochs: Stop after so many epochs; the last batch is filled up with the first slots of the next epoch
            (`slot` tells them apart), so that all ranks stop together. None: endless.
        pin_memory: For copies to a GPU.

    `state_dict` may be taken between any two batches; with it `load_state_dict` continues with the batch that would
    have come next, also at another world size or number of workers.
    """

    def __init__(
        self,
        dataset: SlotDataset,
        *,
        global_batch: int,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
        epochs: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        check_world(global_batch, rank, world)
        self.dataset = dataset
        self.global_batch = global_batch
        self.rank, self.world = rank, world
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self._end = None if epochs is None else epochs * len(self.dataset)
        self._slots = 0

    @property
    def epoch(self) -> float:
        """Epochs consumed, with fraction."""
        return self._slots / len(self.dataset)

    def state_dict(self) -> dict[str, int]:
        """The state: slots handed out so far, over all ranks."""
        return {"slots": self._slots}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a state; takes effect with the next `iter`."""
        self._slots = int(state["slots"])

    def __iter__(self) -> Iterator[Batch]:
        batches = DataLoader(
            cast("Dataset[Batch]", self.dataset),
            batch_sampler=_SlotBatches(self._slots, self._end, self.global_batch, self.rank, self.world),  # type: ignore
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else it draws from the global one
        )
        for batch in batches:
            self._slots += self.global_batch
            yield batch


@dataclass(frozen=True)
class _SlotBatches:
    """The slots of each batch of one rank."""

    first: int
    end: int | None
    global_batch: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[list[int]]:
        first = self.first
        while self.end is None or first < self.end:
            yield list(rank_slots(first, self.global_batch, self.rank, self.world))
            first += self.global_batch
