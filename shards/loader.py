"""Batches of clip windows for training, the same for every world size and number of workers, and after every resume.

The slot of the sample order (`shards.order`) alone determines an item: the sample, and the window of it that is read.
Which slots make up a batch says `shards.microbatches`. Reading processes only read ahead; the state is the number of
microbatches that were handed out, so that a set of them that is lost can be replaced by a new one.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from shards.microbatches import EqualMicrobatches, Microbatches, Share
from shards.order import SampleOrder
from shards.reader import Part, Sample, ShardReader
from shards.reading_processes import ReaderLost, ReadingProcesses, ReadsAtOnce
from talkinghead import rng
from talkinghead.features.feature import read_feature
from talkinghead.features.table import find_feature
from talkinghead.runtime.errors import MachineError
from talkinghead.timebase import SAMPLES_PER_FRAME

log = logging.getLogger(__name__)

Batch = dict[str, Any]


class SlotDataset(Protocol):
    """Slot → item, a pure function of the slot: every rank and worker reads the same item at any time.

    An item is a dict of tensors and numbers with `key` (the sample's key) and `slot`.
    """

    def __len__(self) -> int:
        """Number of samples in an epoch; slots go on after it."""
        ...

    def __getitem__(self, slot: int, /) -> Batch:
        """Item of a slot."""
        ...

    def key(self, at: int | Share, /) -> str:
        """Key of the sample of a slot, without reading it."""
        ...

    @property
    def readers(self) -> tuple[ShardReader, ...]:
        """Readers of the samples, for who sets how a store is read; none where the samples are in no shards."""
        ...


class ClipDataset(SlotDataset, Protocol):
    """Slots of clips that may be read at any length, so that microbatches can be made of clips of like length."""

    num_frames: np.ndarray
    """Frames of each sample of an epoch, `[N]`."""
    order: SampleOrder
    """Slots → samples."""

    def __getitem__(self, at: int | Share, /) -> Batch:
        """Item of a slot; or of a share, which says how many frames are read."""
        ...


_MEDIA = ("video", "audio")
REPLACED = "replaced"
"""Entry of an item that was read in place of another one, and of a batch with such items."""


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Length and contents of the windows that are read from clips."""

    num_frames: int
    """Number of frames F of a window."""
    columns: tuple[str, ...] = ("video", "audio", "landmarks")
    """Contents of a window: `video`, `audio`, and columns of the annotation or of joined versions."""
    features: tuple[str, ...] = ()
    """Further contents, computed from the window and the frames around it (`talkinghead.features.table`)."""
    short: Literal["pad", "skip"] = "pad"
    """Treatment of clips with fewer frames: pad with the last frame (audio with silence) and mask it, or leave out."""

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"a window has at least 1 frame, not {self.num_frames}")
        contents = (*self.columns, *self.features)
        if not contents or len(set(contents)) != len(contents):
            raise ValueError(f"columns and features must name each thing once and at least one: {contents}")
        for feature in self.features:
            find_feature(feature)


class WindowDataset(Dataset[Batch]):
    """Slot → one window as tensors, a pure function of (data set, config, seed, slot).

    The window is drawn from (seed, epoch, key). Items: `video` uint8 `[F, C, H, W]`, `audio` float32 `[F * 640]`,
    annotation columns `[F, …]` (NaN where there is no face; `valid` bool), derived columns and features with n rows a
    frame `[n · F, …]`, columns with one row for the clip `[…]`, `mask` bool `[F]` (False where a short clip was
    padded), `key`, `first` (frame in the clip) and `slot`. Padding repeats the last row; of `audio` it is silence.

    A `Share` with a number of frames is read at that length instead, which no clip of its microbatch falls short of.
    """

    def __init__(self, reader: ShardReader, config: WindowConfig, seed: int) -> None:
        needed = {column for feature in config.features for column in find_feature(feature).columns}
        for column in sorted({*config.columns, *needed} - set(_MEDIA)):
            reader.check_column(column)
        self.reader, self.readers = reader, (reader,)
        self.config = config
        self.seed = seed
        long_enough = reader.num_frames >= (config.num_frames if config.short == "skip" else 1)
        # Positions in an epoch are over the samples that are long enough; this gives their number in the reader.
        self.samples = np.flatnonzero(long_enough)
        if not len(self.samples):
            raise ValueError(
                f"none of the {len(reader)} samples has {config.num_frames} frames: take shorter windows or short='pad'"
                if len(reader)
                else f"there are no samples to train on in {reader.storage.uri}: check the splits in make report"
            )
        self.order = SampleOrder(len(self.samples), seed)
        self.num_frames = reader.num_frames[self.samples]

    def __len__(self) -> int:
        """Number of samples in an epoch; slots go on after it."""
        return len(self.samples)

    def key(self, at: int | Share) -> str:
        """Key of the sample of a slot."""
        return self._sample(Share.of(at).slot)[1].key

    def _sample(self, slot: int) -> tuple[int, Sample]:
        """Epoch and sample of a slot."""
        epoch, position = self.order.at(slot)
        return epoch, self.reader[int(self.samples[position])]

    def __getitem__(self, at: int | Share) -> Batch:
        share = Share.of(at)
        # Which sample, and which window of it: both drawn from the slot alone.
        epoch, sample = self._sample(share.slot)
        length = share.frames or self.config.num_frames
        count = min(length, sample.num_frames)
        places = sample.num_frames - count + 1
        key = sample.key
        first = int(rng.uniform(self.seed, "window", epoch, key) * places)  # uniform in [0, 1): 0 … places - 1
        # Read the window; a short clip is padded to the full length, and the mask says how far it is real.
        names = (*self.config.columns, *self.config.features)
        sample.fetch(*self._parts(sample, first, count))
        item: Batch = {name: self._read(sample, name, first, count, length) for name in names}
        item["mask"] = torch.arange(length) < count
        return item | {"key": key, "first": first, "slot": share.slot}

    def _parts(self, sample: Sample, first: int, count: int) -> list[Part]:
        """What is read for a window, and for the features of it."""
        parts = [Part(name, first, count) for name in self.config.columns]
        for feature in map(find_feature, self.config.features):
            start, stop = feature.context(first, count, sample.num_frames)
            parts += [Part(need, start, stop - start) for need in feature.needs]
        return parts

    def _read(self, sample: Sample, name: str, first: int, count: int, length: int) -> torch.Tensor:
        lacking = length - count
        if name == "audio":
            return torch.from_numpy(np.pad(sample.audio(first, count), (0, lacking * SAMPLES_PER_FRAME)))
        if name == "video":
            values = sample.video(first, count)
        elif name in self.config.features:
            values = read_feature(sample, find_feature(name), first, count)
        else:
            values, form = sample.annotation(name, first, count), self.reader.form(name)
            if form is not None and form.rows == "clip":
                values, lacking = values.reshape(values.shape[1:]), 0
        # Repeat the last row, so that the padding holds values that occur in the clip.
        if lacking:
            more = lacking * (len(values) // count)
            values = np.concatenate([values, np.repeat(values[-1:], more, axis=0)])
        # Rows that come straight from the bytes of a file are read-only, and torch shares the memory.
        tensor = torch.from_numpy(values if values.flags.writeable else values.copy())
        # [F, H, W, C] → [F, C, H, W]
        return tensor.permute(0, 3, 1, 2).contiguous() if name == "video" else tensor


def collate(items: list[Batch]) -> Batch:
    """Batch of items, their tensors stacked to `[B, F, …]`; `keys` is a list of the samples' keys.

    Where samples were read in place of others (`shards.replacements`), `replaced` is a list of what was replaced.

    Raises:
        ValueError: The clips differ in image size, so that they cannot be stacked.
    """
    if "video" in items[0] and len({item["video"].shape for item in items}) > 1:
        sizes = ", ".join(f"{i['key']} {i['video'].shape[-1]}x{i['video'].shape[-2]}" for i in items)
        raise ValueError(
            f"clips of one batch differ in size ({sizes}): ingest with one output size, or use batches of 1"
        )
    batch: Batch = {"keys": [item["key"] for item in items]}
    for name, value in items[0].items():
        if isinstance(value, torch.Tensor):
            batch[name] = torch.stack([item[name] for item in items])  # [B, …]
        elif name not in ("key", REPLACED):
            batch[name] = torch.tensor([item[name] for item in items])  # [B]
    if replaced := [item[REPLACED] for item in items if REPLACED in item]:
        batch[REPLACED] = replaced
    return batch


class ClipLoader:
    """Endless microbatches of one rank.

    Args:
        dataset: Dataset of slots; must be picklable where processes read.
        microbatches: What each microbatch holds; a number: as many samples in each.
        rank: Number of this process among the ranks. Rank r of W takes the microbatches r, W + r, 2W + r, …
        world: Number of ranks W.
        num_workers: Number of reading processes; 0: this process reads.
        epochs: Number of epochs after which to stop; the last microbatches are filled up with the first samples of the
            next epoch (`slot` tells them apart), so that all ranks stop together. None: endless.
        pin_memory: Pin the batches' memory, for faster copies to a GPU.
        at_once: Samples of a microbatch that a process reads at the same time, by threads: while some wait for a store,
            others are decoded. The batches are the same.
        timeout_s: Seconds without a sign of life after which a reading process counts as lost.
        restarts: Times in a row that lost reading processes are replaced by new ones, without a batch in between.

    `state_dict` may be taken between any two microbatches; after `load_state_dict` with it, iteration continues with
    the one that would have come next, also at another world size or number of workers.

    Raises:
        ValueError: There is no such rank, or a microbatch would have no sample.
    """

    def __init__(
        self,
        dataset: SlotDataset,
        microbatches: Microbatches | int,
        *,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
        epochs: int | None = None,
        pin_memory: bool = False,
        at_once: int = 1,
        timeout_s: float = 300.0,
        restarts: int = 3,
    ) -> None:
        if world < 1 or not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world} does not exist")
        if isinstance(microbatches, int):
            microbatches = EqualMicrobatches(microbatches, len(dataset))
        self.dataset = dataset
        self.microbatches = microbatches
        self.rank, self.world = rank, world
        self.num_workers, self.pin_memory, self.at_once = num_workers, pin_memory, at_once
        self.timeout_s, self.restarts = timeout_s, restarts
        self._epochs = epochs
        self._done = 0

    @property
    def epoch(self) -> float:
        """Epochs consumed, as a fraction, too."""
        return self.microbatches.epoch(self._done)

    def state_dict(self) -> dict[str, int]:
        """The state: microbatches handed out so far, over all ranks."""
        return {"microbatches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a state; takes effect with the next `iter`."""
        self._done = int(state["microbatches"])

    def __iter__(self) -> Iterator[Batch]:
        with contextlib.closing(self._read_ahead() if self.num_workers else self._read()) as batches:
            for batch in batches:
                # Counted when a batch is handed out: what was read ahead is read again after a resume.
                self._done += self.world
                yield _pinned(batch) if self.pin_memory else batch

    def _read(self) -> Generator[Batch]:
        """Batches that this process reads."""
        reads = ReadsAtOnce(self.at_once)
        for shares in self._shares():
            yield collate(reads.items(self.dataset, shares))

    def _read_ahead(self) -> Generator[Batch]:
        """Batches of reading processes, of a new set of them wherever one is lost."""
        lost = 0
        while True:
            try:
                with ReadingProcesses(
                    self.dataset, collate, self.num_workers, self.timeout_s, self.at_once
                ) as processes:
                    for batch in processes.batches(self._shares()):
                        lost = 0
                        yield batch
                return
            except ReaderLost as error:
                lost += 1
                what = f"{error}{self._named(error)}"
                if lost > self.restarts:
                    raise MachineError(
                        f"{what}; so did those that took its place, {lost} in a row: look at the machine's memory"
                        " (--train.num-workers makes fewer processes) and at its disks, and at the clips (make verify)"
                    ) from error
                log.warning(
                    "%s; new reading processes go on at microbatch %d (%d of %d tries)",
                    what,
                    self._done + self.rank,
                    lost,
                    self.restarts,
                )

    def _named(self, lost: ReaderLost) -> str:
        """What a lost process was reading, in words."""
        keys = ", ".join(self.dataset.key(at) for at in lost.at)
        return f" while it read {keys}" if keys else ""

    def _shares(self) -> Iterator[list[int | Share]]:
        """Slots of each microbatch of this rank, from the state on."""
        return iter(_Shares(self.microbatches, self._done, self._epochs, self.rank, self.world))


def _pinned(batch: Batch) -> Batch:
    return {name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


@dataclass(frozen=True)
class _Shares:
    """Slots of each microbatch of one rank."""

    microbatches: Microbatches
    first: int
    epochs: int | None
    rank: int
    world: int

    def __iter__(self) -> Iterator[list[int | Share]]:
        first = self.first
        # All ranks get as many, also where the last ones lie after the end: no rank may stop before the others.
        while self.epochs is None or self.microbatches.epoch(first) < self.epochs:
            yield [share.item for share in self.microbatches.shares(first + self.rank)]
            first += self.world
